"""Bitrate: down at once on congestion, up slowly, and second copies where packets just get lost."""

import numpy as np
import pytest

from webrtc.rate import FEC_BPS, MAX_BPS, MIN_BPS, Rate, RateControl


def reports(control: RateControl, loss: float, rtt_ms: float | None, seconds: int, begin_s: float = 0.0) -> list[Rate]:
    return [control.report(loss, rtt_ms, begin_s + second) for second in range(seconds)]


def test_a_clean_network_gets_all_bits_and_no_second_copies() -> None:
    assert RateControl().rate == Rate(MAX_BPS, 0)
    assert reports(RateControl(), 0.0, 40.0, 30)[-1] == Rate(MAX_BPS, 0)


def test_congestion_brings_the_bitrate_down_within_three_reports() -> None:
    assert reports(RateControl(), 0.3, 40.0, 3)[-1].bitrate == MIN_BPS


def test_it_comes_back_slowly() -> None:
    control = RateControl()
    reports(control, 0.3, 40.0, 3)
    rates = [rate.bitrate for rate in reports(control, 0.0, 40.0, 40, begin_s=3)]
    assert rates == sorted(rates)
    assert rates[4] < 30000 and rates[-1] == MAX_BPS


def test_rare_reports_bring_it_back_as_fast_as_frequent_ones() -> None:
    often, rarely = RateControl(), RateControl()
    for control in (often, rarely):
        reports(control, 0.3, 40.0, 3)
    for at in range(3, 18):
        often.report(0.0, 40.0, float(at))
    for at in range(7, 18, 5):
        rarely.report(0.0, 40.0, float(at))
    assert rarely.rate.bitrate == often.rate.bitrate


def test_plain_loss_leaves_enough_bits_for_second_copies() -> None:
    rate = reports(RateControl(), 0.05, 40.0, 60)[-1]
    assert rate == Rate(FEC_BPS, 5)


@pytest.mark.parametrize(("loss", "percent"), [(0.0, 0), (0.004, 0), (0.01, 5), (0.08, 8), (0.6, 30)])
def test_expected_loss_is_what_libopus_acts_on(loss: float, percent: int) -> None:
    assert RateControl().report(loss, None, 0.0).expected_loss_percent == percent


def test_expected_loss_rises_at_once_and_fades() -> None:
    control = RateControl()
    assert control.report(0.2, 40.0, 0.0).expected_loss_percent == 20
    percents = [rate.expected_loss_percent for rate in reports(control, 0.0, 40.0, 90, begin_s=1)]
    assert percents == sorted(percents, reverse=True)
    assert percents[5] > 10 and percents[-1] == 0


def test_a_rising_round_trip_is_congestion_before_anything_is_lost() -> None:
    control = RateControl()
    reports(control, 0.0, 40.0, 5)
    assert control.report(0.0, 300.0, 5.0).bitrate < MAX_BPS


def test_a_long_round_trip_alone_is_not() -> None:
    assert reports(RateControl(), 0.0, 300.0, 10)[-1].bitrate == MAX_BPS


def test_a_path_that_became_longer_for_good_is_accepted() -> None:
    control = RateControl()
    reports(control, 0.0, 40.0, 5)
    assert reports(control, 0.0, 200.0, 300, begin_s=5)[-1].bitrate == MAX_BPS


def test_no_round_trip_known_yet() -> None:
    assert reports(RateControl(), 0.0, None, 5)[-1].bitrate == MAX_BPS


def test_a_lower_limit_of_the_listener_holds() -> None:
    control = RateControl(max_bps=24000)
    assert control.rate.bitrate == 24000
    assert reports(control, 0.0, 40.0, 30)[-1].bitrate == 24000
    assert RateControl(max_bps=6000).rate.bitrate == MIN_BPS
    assert RateControl(max_bps=510000).rate.bitrate == MAX_BPS


def test_whatever_is_reported_the_bounds_hold() -> None:
    rng = np.random.default_rng(3)
    control = RateControl()
    for at in np.cumsum(rng.exponential(2.0, 2000)) - 10 * (np.arange(2000) % 7 == 0):
        rate = control.report(float(rng.choice([0, 0.03, 0.5, 1.0])), float(rng.exponential(150)), float(at))
        assert MIN_BPS <= rate.bitrate <= MAX_BPS and 0 <= rate.expected_loss_percent <= 30
