"""Frames of sound to Opus packets that are worth sending: of silence, only its first packet and a few signs of life."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.packet import Packet
from av.stream import Stream

from webrtc.opus import FRAME, RATE_HZ, OpusEncoder, Samples48k, is_dtx
from webrtc.rate import Rate

TIME_BASE = Fraction(1, RATE_HZ)

INAUDIBLE = 0.001
"""-60 dBFS: a frame whose peak is lower is not heard."""
HIDDEN = 0.0056
"""-45 dB: nor is a frame whose peak is this far below the speech before it."""
FORGET = 0.99
"""What remains of that speech's level after each frame: it falls by 4 dB a second."""
INAUDIBLE_AFTER = 3
"""Inaudible frames in a row that are still sent as sound; those after them are sent as silence.

libopus waits for ten, and spends as many bits on hiss as on speech until then.
"""
REFRESH_AFTER = 20
"""Frames of silence after which libopus' own packet goes out again: receivers learn that the stream lives."""


@dataclass(slots=True)
class SendCounts:
    """What became of the frames."""

    packets: int = 0
    payload_bytes: int = 0
    silent: int = 0
    """Frames without a packet: the packet before says already that there is silence."""


class PacketMaker:
    """One stream of frames to packets."""

    def __init__(self, encoder: OpusEncoder) -> None:
        self.counts = SendCounts()
        self._encoder = encoder
        self._was_silent = False
        self._loudest = 0.0  # peak of the speech before, which fades
        self._inaudible = 0  # frames in a row
        self._unheard = 0  # frames since the last packet with sound in it

    def set_rate(self, rate: Rate) -> None:
        """Sets the bitrate and the copies of the next packets."""
        self._encoder.set_bitrate(rate.bitrate)
        self._encoder.set_expected_loss(rate.expected_loss_percent)

    def make(self, frame: Samples48k, tick: int) -> "Packet[Stream] | None":
        """The packet of 20 ms that begin `tick` times 20 ms after the stream; None where it need not be sent."""
        payload = self._encoded(frame)
        silent, before = is_dtx(payload), self._was_silent
        self._was_silent = silent
        if silent and before:
            self.counts.silent += 1
            return None
        self.counts.packets += 1
        self.counts.payload_bytes += len(payload)
        packet: Packet[Stream] = Packet(payload)
        packet.pts, packet.time_base = tick * FRAME, TIME_BASE
        return packet

    def _encoded(self, frame: Samples48k) -> bytes:
        """The frame's payload; of sound that nobody hears only the first byte, which means silence (RFC 6716)."""
        payload = self._encoder.encode(frame)  # in silence too: the encoder's state must follow
        peak = float(np.abs(frame).max())
        self._loudest = max(peak, FORGET * self._loudest)
        self._inaudible = self._inaudible + 1 if peak < max(INAUDIBLE, HIDDEN * self._loudest) else 0
        self._unheard += 1
        if self._inaudible > INAUDIBLE_AFTER and self._unheard <= REFRESH_AFTER:
            return payload[:1]
        if not is_dtx(payload):
            self._unheard = 0
        return payload
