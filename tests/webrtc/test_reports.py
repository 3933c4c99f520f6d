"""What the other side reports: shares of packets, round trips where they are known, each report counted once."""

import datetime

import pytest
from aiortc.stats import RTCRemoteInboundRtpStreamStats, RTCStatsReport

from webrtc.reports import SenderReports


def reported(fraction_lost: int, round_trip_s: float | None) -> RTCStatsReport:
    """Statistics as aiortc's sender has them after one receiver report."""
    stats = RTCStatsReport()
    stats.add(
        RTCRemoteInboundRtpStreamStats(
            timestamp=datetime.datetime.now(datetime.UTC),
            type="remote-inbound-rtp",
            id="remote-inbound-rtp_1",
            ssrc=1,
            kind="audio",
            transportId="transport_1",
            packetsReceived=100,
            packetsLost=10,
            jitter=0,
            roundTripTime=round_trip_s,  # type: ignore[arg-type]  # None until one of our reports was answered
            fractionLost=fraction_lost,
        )
    )
    return stats


def test_nothing_is_known_before_the_first_report() -> None:
    reports = SenderReports()
    assert not reports.read(RTCStatsReport())
    assert (reports.rtt_ms, reports.loss) == (None, 0.0)


@pytest.mark.parametrize(("byte", "share"), [(0, 0.0), (64, 0.25), (255, 255 / 256)])
def test_loss_is_a_share(byte: int, share: float) -> None:
    reports = SenderReports()
    assert reports.read(reported(byte, 0.05))
    assert reports.loss == share
    assert reports.rtt_ms == pytest.approx(50)


def test_each_report_is_news_once() -> None:
    reports, first = SenderReports(), reported(64, 0.05)
    assert reports.read(first) and not reports.read(first)
    assert not reports.read(RTCStatsReport())
    assert reports.loss == 0.25
    assert reports.read(reported(64, 0.05))


def test_a_report_without_a_round_trip_leaves_the_last_one() -> None:
    reports = SenderReports()
    reports.read(reported(0, None))
    assert reports.rtt_ms is None
    reports.read(reported(0, 0.05))
    reports.read(reported(0, None))
    assert reports.rtt_ms == pytest.approx(50)


def test_a_round_trip_is_never_negative() -> None:
    """A client may say that it held our report for longer than that has been out."""
    reports = SenderReports()
    reports.read(reported(0, -65.0))
    assert reports.rtt_ms == 0.0
