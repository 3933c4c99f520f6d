"""libopus is found and does what PyAV cannot: silence costs nothing, a lost frame comes back from the next packet."""

import ctypes

import numpy as np
import pytest

from tests.webrtc.speech import SPEECH_S, frames_of, speech_48k
from webrtc import opus
from webrtc.opus import FRAME, OpusDecoder, OpusEncoder, OpusError, Samples48k, has_copy, is_dtx, packet_samples

SPEECH = frames_of(speech_48k())
SILENCE = np.zeros(FRAME, np.float32)
LOOKAHEAD = 312  # samples that the encoder holds back


def spectrum_likeness(a: Samples48k, b: Samples48k) -> float:
    """Correlation of two log spectra up to 8 kHz: 1 for the same frame."""
    window = np.hanning(len(a))
    pair = [np.log(np.abs(np.fft.rfft(x * window))[: len(a) // 6] + 1e-4) for x in (a, b)]
    return float(np.corrcoef(pair)[0, 1])


def loud(frames: list[Samples48k]) -> list[int]:
    return [n for n, frame in enumerate(frames) if np.sqrt(np.mean(frame**2)) > 0.02]


def test_pyavs_own_library_is_found_first_and_a_system_one_second() -> None:
    names = list(opus._candidates())
    assert len(names) == 2
    assert "libopus" in names[0].rpartition("/")[2] and "/av" in names[0]
    assert names[1] == "libopus.so.0"


def test_no_library_is_one_sentence_that_names_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opus, "_candidates", lambda: iter(["libnothing.so.9", "libc.so.6"]))
    with pytest.raises(opus.OpusMissing, match=r"libnothing\.so\.9.*libc\.so\.6.*libopus0"):
        opus._library.__wrapped__()


def test_a_library_that_spoils_the_sound_fails_its_self_test() -> None:
    class Deaf:
        """The real library, but for a decoder that leaves its output as it is."""

        def __getattr__(self, name: str) -> object:
            return (lambda *args: FRAME) if name == "opus_decode_float" else getattr(opus._library(), name)

    with pytest.raises(OpusError, match=r"came back with 0\.00"):
        opus._self_test(Deaf())
    opus.warm_up()


def test_speech_comes_back_alike_at_the_bitrate_asked_for() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [encoder.encode(frame) for frame in SPEECH]
    heard = np.concatenate([decoder.decode(packet) for packet in packets])
    spoken = np.concatenate(SPEECH)
    assert (
        np.corrcoef(heard[LOOKAHEAD:], spoken[: len(spoken) - LOOKAHEAD])[0, 1] > 0.9
    )  # the voice mode turns phases below 100 Hz
    bitrate = 8 * sum(map(len, packets)) / SPEECH_S
    assert 16_000 < bitrate < 64_000


@pytest.mark.parametrize("bitrate", [16_000, 32_000])
def test_the_bitrate_changes_in_mid_stream(bitrate: int) -> None:
    encoder = OpusEncoder()
    half = len(SPEECH) // 2
    before = sum(len(encoder.encode(SPEECH[n])) for n in loud(SPEECH) if n < half)
    encoder.set_bitrate(bitrate)
    assert encoder.bitrate == bitrate
    after = [len(encoder.encode(SPEECH[n])) for n in loud(SPEECH)]
    assert 8 * sum(after) / (0.02 * len(after)) < 1.15 * bitrate
    assert before > 0


def test_what_is_out_of_range_is_refused() -> None:
    encoder = OpusEncoder()
    with pytest.raises(ValueError, match="6000 to 510000 bit/s, not 100"):
        encoder.set_bitrate(100)
    with pytest.raises(ValueError, match="0 to 100 percent, not 101"):
        encoder.set_expected_loss(101)
    with pytest.raises(ValueError, match=r"960 samples, not an array of shape \(480,\)"):
        encoder.encode(SILENCE[:480])


def test_silence_costs_next_to_nothing_and_speech_resumes_at_once() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [encoder.encode(SILENCE) for _ in range(100)]
    assert sum(map(is_dtx, packets)) > 80
    assert [packet_samples(packet) for packet in packets] == [FRAME] * 100
    speech = [encoder.encode(SPEECH[n]) for n in loud(SPEECH)]
    assert not any(map(is_dtx, speech))
    for packet in packets:
        assert np.abs(decoder.decode(packet)).max() < 1e-3
    assert np.abs(decoder.decode(speech[0])).max() > 1e-3


def test_without_dtx_silence_is_sent() -> None:
    encoder = OpusEncoder(dtx=False)
    assert not any(is_dtx(encoder.encode(SILENCE)) for _ in range(100))


def lost_frames(expected_loss: int, *, fec: bool = True) -> tuple[float, float]:
    """Each fourth packet is lost: likeness of the loud frames that replace them, recovered and concealed."""
    encoder = OpusEncoder(fec=fec)
    encoder.set_expected_loss(expected_loss)
    packets = [encoder.encode(frame) for frame in SPEECH]
    whole, recovering, guessing = OpusDecoder(), OpusDecoder(), OpusDecoder()
    likeness = []
    for n, packet in enumerate(packets[:-1]):
        truth = whole.decode(packet)
        if n % 4 == 3:
            recovered, guessed = recovering.recover(packets[n + 1]), guessing.conceal()
            if np.sqrt(np.mean(truth**2)) > 0.02:
                likeness.append((spectrum_likeness(truth, recovered), spectrum_likeness(truth, guessed)))
        else:
            recovering.decode(packet)
            guessing.decode(packet)
    recovered_mean, guessed_mean = np.mean(likeness, axis=0)
    return float(recovered_mean), float(guessed_mean)


def test_a_lost_frame_comes_back_from_the_next_packet() -> None:
    recovered, guessed = lost_frames(expected_loss=10)
    assert recovered > 0.9
    assert 1 - recovered < 0.6 * (1 - guessed)


def test_which_packets_hold_a_copy_is_what_libopus_says() -> None:
    library = opus._library()
    library.opus_packet_has_lbrr.argtypes = [ctypes.c_char_p, ctypes.c_int32]
    for first in range(0, 256, 4):
        for second in range(256):
            packet = bytes([first, second, 0])
            assert has_copy(packet) == (library.opus_packet_has_lbrr(packet, 3) == 1), packet
    encoder = OpusEncoder()
    assert not any(has_copy(encoder.encode(frame)) for frame in SPEECH[:100])
    encoder.set_expected_loss(10)
    assert sum(has_copy(encoder.encode(SPEECH[n])) for n in loud(SPEECH)) > 0.5 * len(loud(SPEECH))


def test_without_expected_loss_there_is_no_copy_and_recovering_is_concealing() -> None:
    recovered, guessed = lost_frames(expected_loss=0)
    assert recovered == pytest.approx(guessed, abs=0.02)


def test_concealment_fades_and_takes_any_number_of_steps() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    for n in loud(SPEECH)[:20]:
        last = decoder.decode(encoder.encode(SPEECH[n]))
    guesses = [decoder.conceal() for _ in range(15)]
    assert np.std(guesses[0]) > 0.2 * np.std(last)
    assert np.std(guesses[-1]) < 0.05 * np.std(last)
    assert len(decoder.conceal(120)) == 120
    assert len(decoder.recover(b"", 480)) == 480


def test_a_damaged_packet_is_an_error_and_not_the_end() -> None:
    decoder = OpusDecoder()
    with pytest.raises(OpusError, match="at least one byte"):
        decoder.decode(b"")
    with pytest.raises(OpusError, match="corrupted stream"):
        decoder.decode(b"\xff\xff\xff")
    assert len(decoder.decode(OpusEncoder().encode(SILENCE))) == FRAME


def test_the_length_of_any_packet_is_what_libopus_says() -> None:
    library = opus._library()
    library.opus_packet_get_nb_samples.argtypes = [ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32]
    for first in range(256):
        for second in range(0, 64, 5):
            packet = bytes([first, second])
            assert packet_samples(packet) == max(0, library.opus_packet_get_nb_samples(packet, 2, opus.RATE_HZ))
    assert packet_samples(b"") == 0
