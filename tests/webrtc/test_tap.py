"""What is taken out of aiortc's receiver; tests/webrtc/test_receive.py does it on a real connection."""

import pytest
from aiortc import RTCRtpCodecParameters

from tests.webrtc.network import SPEECH, START_S, Sent, rtp
from webrtc.receive import warm_up
from webrtc.tap import PacketTap, check_aiortc


def test_what_is_not_opus_is_dropped() -> None:
    took = list[float]()
    opus = RTCRtpCodecParameters("audio/opus", 48000, 2, payloadType=111)
    pcmu = RTCRtpCodecParameters("audio/PCMU", 8000, 1, payloadType=0)
    tap = PacketTap({111: opus, 0: pcmu}, lambda packet, arrival_s: took.append(arrival_s), lambda: START_S)
    packet = rtp(Sent(0, 0, SPEECH, START_S, START_S))
    assert tap.add(packet) == (False, None)
    packet.payload_type = 0
    assert tap.add(packet) == (False, None)
    assert took == [START_S]


def test_what_is_needed_of_aiortc_is_checked() -> None:
    warm_up()
    with pytest.raises(RuntimeError, match=r"aiortc 1\.16\.0 has no _RTCRtpReceiver__jitter_buffer"):
        check_aiortc(["_RTCRtpReceiver__codecs"])
