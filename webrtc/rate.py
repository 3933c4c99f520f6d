"""How many bits to send, and how many of them for second copies, by what the receiver reports. Pure."""

import math
from dataclasses import dataclass

MIN_BPS = 16000
MAX_BPS = 64000
FEC_BPS = 40000
"""Below it libopus makes no second copies, whatever loss it is told."""

HARMLESS_LOSS = 0.02
CONGESTED_LOSS = 0.10
QUEUE_MS = 60.0
"""A round trip this much longer than the shortest, and half as long again, means that queues fill up."""
UP_BPS_PER_S = 2000
MAX_GAP_S = 5.0
"""A longer time between two reports counts as this much: nothing is known about the rest."""
LOSS_HALVES_S = 10.0
FEC_FROM_PERCENT = 5
"""libopus makes no second copies for a smaller loss."""
MAX_PERCENT = 30
BASE_RTT_CREEP = 0.01
"""How far, per report, the shortest round trip moves towards that of a path that has become longer."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What the encoder is told."""

    bitrate: int
    expected_loss_percent: int


class RateControl:
    """Quick down on congestion, slow up.

    Loss of up to a tenth of the packets, without queues, brings second copies, and fewer bits only down to where the
    copies still fit in: on a radio link fewer bits do not help, and missing copies hurt.
    """

    def __init__(self, max_bps: int = MAX_BPS) -> None:
        self._max = float(min(max(max_bps, MIN_BPS), MAX_BPS))
        self._bitrate = self._max
        self._loss = 0.0
        self._base_rtt: float | None = None
        self._reported_s: float | None = None

    @property
    def rate(self) -> Rate:
        """What the encoder is to be told now."""
        percent = math.ceil(100 * self._loss - 0.5)
        if percent > 0:
            percent = min(max(percent, FEC_FROM_PERCENT), MAX_PERCENT)
        return Rate(round(self._bitrate), percent)

    def report(self, loss: float, rtt_ms: float | None, at_s: float) -> Rate:
        """Takes in one receiver report: the share of packets lost since the one before, and the round trip."""
        elapsed = 0.0 if self._reported_s is None else min(max(at_s - self._reported_s, 0.0), MAX_GAP_S)
        self._reported_s = at_s
        self._loss = max(loss, self._loss * 0.5 ** (elapsed / LOSS_HALVES_S))
        if loss >= CONGESTED_LOSS or self._queues_fill(rtt_ms):
            self._bitrate = max(MIN_BPS, self._bitrate * max(0.5, 0.8 - loss))
        elif loss > HARMLESS_LOSS:
            self._bitrate = max(min(self._bitrate, FEC_BPS), 0.85 * self._bitrate)
        else:
            self._bitrate = min(self._max, self._bitrate + UP_BPS_PER_S * elapsed)
        return self.rate

    def _queues_fill(self, rtt_ms: float | None) -> bool:
        if rtt_ms is None:
            return False
        if self._base_rtt is None or rtt_ms < self._base_rtt:
            self._base_rtt = rtt_ms
        else:
            self._base_rtt += BASE_RTT_CREEP * (rtt_ms - self._base_rtt)
        return rtt_ms > self._base_rtt + QUEUE_MS and rtt_ms > 1.5 * self._base_rtt
