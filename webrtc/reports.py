"""What the other side reports of the packets that it gets from us."""

from aiortc.stats import RTCRemoteInboundRtpStreamStats, RTCStatsReport


class SenderReports:
    """Reads the statistics of one aiortc sender; a report that was read before changes nothing."""

    def __init__(self) -> None:
        self.rtt_ms: float | None = None
        """Round trip, smoothed; None: not measured yet."""
        self.loss = 0.0
        """Share of our packets that the other side missed, by its last report."""
        self._last: RTCRemoteInboundRtpStreamStats | None = None

    def read(self, stats: RTCStatsReport) -> bool:
        """Takes the newest report; False where it was read before, or there is none."""
        for entry in stats.values():
            if isinstance(entry, RTCRemoteInboundRtpStreamStats) and entry is not self._last:
                self._last = entry
                self.loss = entry.fractionLost / 256  # aiortc hands on RTCP's fixed-point byte
                if entry.roundTripTime is not None:  # aiortc's type does not say so
                    self.rtt_ms = max(0.0, 1000 * entry.roundTripTime)
                return True
        return False
