"""What is heard of single events and levels; tests/webrtc/test_receive.py has whole recordings."""

from webrtc.jitter import Packet, Silence, Skip
from webrtc.opus import FRAME
from webrtc.sound import PacketSound, Pauses


def test_a_damaged_packet_that_is_to_be_left_out_adds_no_sound() -> None:
    sound = PacketSound()
    assert sound.decode(Skip(b"", FRAME)) is None
    heard = sound.decode(Packet(b"", FRAME))
    assert heard is not None and len(heard) == FRAME
    assert sound.damaged == 2


def test_silence_before_the_first_packet_is_sound_only_where_it_is_asked_for() -> None:
    assert PacketSound().decode(Silence(FRAME)) is not None
    sound = PacketSound(lead_in=False)
    assert sound.decode(Silence(FRAME)) is None and not sound.begun
    assert sound.decode(Packet(b"", FRAME)) is not None and sound.begun
    assert sound.decode(Silence(FRAME)) is not None


def test_a_pause_is_told_by_level_in_a_quiet_and_in_a_loud_room() -> None:
    room = Pauses()
    assert room.is_quiet(-60)
    assert not room.is_quiet(-20)
    assert room.is_quiet(-55)
    assert room.is_quiet(-46)
    assert not room.is_quiet(-40)
    assert not Pauses().is_quiet(-46)
