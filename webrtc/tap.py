"""Packets out of an aiortc receiver as they come, in place of its own jitter buffer and decoder.

aiortc's own way holds 80 ms, and 280 ms for the rest of the call after one lost packet. Its statistics and reports to
the sender stay in use: they are what makes a browser add copies of its frames for the network to lose.
"""

import time
from collections.abc import Callable, Container, Mapping

import aiortc
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtpPacket

# aiortc 1.16 has no public way to get at packets in time: these names of its receiver are private
_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_CODECS = "_RTCRtpReceiver__codecs"


class PacketTap:
    """Stands where aiortc's receiver has its jitter buffer, and never gives it anything to decode."""

    def __init__(
        self,
        codecs: Mapping[int, aiortc.RTCRtpCodecParameters],
        take: Callable[[RtpPacket, float], None],
        clock: Callable[[], float],
    ) -> None:
        self._codecs, self._take, self._clock = codecs, take, clock

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Passes Opus packets on and drops others. The answer tells aiortc: ask for no picture, decode nothing."""
        if self._codecs[packet.payload_type].mimeType.lower() == "audio/opus":
            self._take(packet, self._clock())
        return False, None


def tap(
    receiver: RTCRtpReceiver, take: Callable[[RtpPacket, float], None], clock: Callable[[], float] = time.monotonic
) -> None:
    """Hands each Opus packet, with its arrival in seconds of `clock`, to `take`; before the receiver's first packet.

    Raises:
        RuntimeError: this aiortc's receiver is built differently.
    """
    check_aiortc(receiver.__dict__)
    setattr(receiver, _JITTER_BUFFER, PacketTap(getattr(receiver, _CODECS), take, clock))


def warm_up() -> None:
    """Raises RuntimeError where aiortc lacks what `tap` needs."""
    check_aiortc(RTCRtpReceiver.__init__.__code__.co_names)


def check_aiortc(names: Container[str]) -> None:
    """Raises RuntimeError unless a receiver's attribute names have those that `tap` needs."""
    for name in (_JITTER_BUFFER, _CODECS):
        if name not in names:
            raise RuntimeError(f"aiortc {aiortc.__version__} has no {name}: receiving needs aiortc 1.16")
