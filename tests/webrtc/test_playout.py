"""Playout: even frames out of uneven blocks, no steps, no delay that stays."""

import numpy as np
import pytest

from webrtc.playout import FRAME, HEADROOM, LATE_AT_MOST, MAX_MARGIN, MS, Playout, Samples
from webrtc.upsample import DELAY_S
from webrtc.upsample import RATE_IN_HZ as BLOCK_HZ

TICK = 441  # samples of a block in 20 ms
BLOCK_TICKS = 6
FILTER_MS = 1000 * DELAY_S
STEEPEST = 2 * np.pi * 200 / 48000 * 0.5
"""Largest difference between two samples of the tone below."""


def tone(ticks: int, hz: float = 200.0) -> Samples:
    samples: Samples = (0.5 * np.sin(2 * np.pi * hz / BLOCK_HZ * np.arange(ticks * TICK))).astype(np.float32)
    return samples


def voice(ticks: int) -> Samples:
    """Harmonics of a pitch that glides, with pauses of 80 ms every half second."""
    time = np.arange(ticks * TICK) / BLOCK_HZ
    phase = 2 * np.pi * (120 * time + 6 * np.sin(2 * np.pi * 0.7 * time))
    sound = np.sum([np.sin(n * phase) / n for n in range(1, 20)], axis=0)
    sound[(time % 0.5) > 0.42] *= 0.0005
    samples: Samples = (0.2 * sound).astype(np.float32)
    return samples


class Stream:
    """Cuts a sound into blocks and hands each to a playout at its tick, or some ticks later."""

    def __init__(self, sound: Samples, playout: Playout) -> None:
        self.playout = playout
        self.blocks = [sound[i : i + BLOCK_TICKS * TICK] for i in range(0, len(sound), BLOCK_TICKS * TICK)]

    def play(self, late: dict[int, int] | None = None) -> Samples:
        due: dict[int, list[Samples]] = {}
        at = 0
        for number, block in enumerate(self.blocks):
            at = max(at, number * BLOCK_TICKS + (late or {}).get(number, 0))  # never out of order
            due.setdefault(at, []).append(block)
        heard = []
        for tick in range(len(self.blocks) * BLOCK_TICKS):
            for block in due.get(tick, []):
                self.playout.push(block)
            heard.append(self.playout.frame())
        return np.concatenate(heard)


def steepest(sound: Samples) -> float:
    return float(np.abs(np.diff(sound)).max())


def test_sound_comes_through_after_the_headroom_and_the_filter() -> None:
    playout = Playout()
    click = np.zeros(BLOCK_TICKS * TICK, np.float32)
    click[TICK] = 1.0
    playout.push(click)
    assert playout.buffered_ms == 120 + HEADROOM / MS
    heard = np.concatenate([playout.frame() for _ in range(3)])
    assert np.argmax(np.abs(heard)) == pytest.approx(HEADROOM + FRAME + FILTER_MS * MS, abs=1)


def test_even_blocks_make_one_unbroken_sound() -> None:
    playout = Playout()
    heard = Stream(tone(60), playout).play()
    assert playout.counts.gaps == playout.counts.cut == playout.counts.dropped == 0
    assert steepest(heard) < 1.02 * STEEPEST
    assert np.abs(heard[FRAME:]).max() == pytest.approx(0.5, abs=0.01)


def test_how_the_blocks_are_cut_changes_nothing() -> None:
    sound = voice(50)
    whole, pieces = Playout(max_ms=2000), Playout(max_ms=2000)
    whole.push(sound)
    sizes = np.random.default_rng(7).integers(1, 700, 2000)
    for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        pieces.push(sound[start : start + size])
    for _ in range(49):
        np.testing.assert_allclose(pieces.frame(), whole.frame(), atol=1e-6)


def test_nothing_to_play_is_silence() -> None:
    playout = Playout()
    assert not playout.frame().any()
    assert playout.counts.gaps == playout.counts.silence == 0  # the call has not begun


def test_the_end_of_the_sound_and_its_return_make_no_step() -> None:
    playout = Playout()
    heard = Stream(tone(60), playout).play(late={4: 5})
    assert playout.counts.gaps == 1
    assert playout.counts.silence == pytest.approx(5 * FRAME - HEADROOM, abs=6 * MS)
    gap = heard[4 * 6 * FRAME + 20 * MS : 4 * 6 * FRAME + 90 * MS]
    assert not gap.any()
    assert steepest(heard) < 0.5 * (np.pi / 2) / (5 * MS) + STEEPEST  # no steeper than the fade on top of the tone


def test_a_gap_lasts_no_longer_than_the_block_is_late_and_a_short_headroom() -> None:
    playout = Playout()
    playout.push(tone(6))
    for _ in range(7):
        playout.frame()
    playout.push(tone(6))
    returned = np.flatnonzero(np.abs(playout.frame()) > 0.01)[0]
    assert returned < HEADROOM + 3 * MS


@pytest.mark.parametrize("ticks_late", [2, 5, 12])
def test_the_surplus_of_a_late_block_goes_away_again(ticks_late: int) -> None:
    punctual, late = Playout(), Playout()
    Stream(voice(600), punctual).play()
    Stream(voice(600), late).play(late={10: ticks_late})
    assert late.counts.gaps == 1 and late.counts.dropped == 0
    assert punctual.counts.cut == 0
    kept = (MAX_MARGIN - HEADROOM) / MS  # for the next late block
    assert late.buffered_ms - punctual.buffered_ms < kept + 6


def test_surplus_leaves_a_sound_without_pauses_by_whole_periods() -> None:
    playout = Playout()
    heard = Stream(tone(402), playout).play(late={5: 5})
    assert playout.counts.cut > 50 * MS
    after_the_gap = heard[12 * 6 * FRAME : 66 * 6 * FRAME]
    assert steepest(after_the_gap) < 1.1 * STEEPEST
    loudness = np.sqrt(np.convolve(after_the_gap**2, np.ones(480) / 480, mode="valid"))  # over two periods
    assert loudness.min() > 0.3  # of 0.354: no cut takes the tone out of phase


def test_cuts_in_pauses_leave_the_rest_as_it_was() -> None:
    playout = Playout()
    sound = tone(300)
    sound[np.arange(len(sound)) % (25 * TICK) > 18 * TICK] = 0
    Stream(sound, playout).play(late={3: 3})
    counted = playout.counts
    assert counted.gaps == 1 and 0 < counted.cut < 3 * FRAME


def test_what_comes_in_goes_out_or_is_counted() -> None:
    playout = Playout()
    sound = voice(600)
    Stream(sound, playout).play(late={3: 9, 30: 4, 60: 2})
    pushed = len(sound) / BLOCK_HZ * 48000
    starts = 1 + playout.counts.gaps
    played = 600 * FRAME - playout.counts.silence
    gone = playout.counts.cut + playout.counts.dropped
    assert pushed + starts * HEADROOM == pytest.approx(played + gone + playout.buffered_ms * MS, rel=0.002)


def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    playout = Playout(max_ms=400)
    click = np.zeros(100 * TICK, np.float32)
    click[-TICK] = 1.0  # 20 ms before the end
    for block in np.split(click, 10):
        playout.push(block)
        assert playout.buffered_ms <= 400 + 200
    assert playout.counts.dropped == (2000 + HEADROOM / MS - 600) * MS
    heard = np.concatenate([playout.frame() for _ in range(30)])
    assert np.argmax(np.abs(heard)) == pytest.approx(580 * MS + FILTER_MS * MS, abs=2)


def test_a_block_longer_than_the_bound_is_not_cut_short() -> None:
    playout = Playout(max_ms=300)
    playout.push(tone(25))
    assert playout.buffered_ms > 495 and playout.counts.dropped == 0


def test_blocks_that_are_late_now_and_then_are_waited_for() -> None:
    """After some gaps as much is kept in hand as blocks were late; the gaps end, and the delay stays small."""
    rng = np.random.default_rng(1)
    playout = Playout()
    sound = voice(6 * 250)
    late = {number: int(rng.integers(0, 2)) for number in range(250)}
    Stream(sound[: 6 * 20 * TICK], playout).play(late=late)
    gaps = playout.counts.gaps
    heard = Stream(sound, playout).play(late=late)
    assert playout.counts.gaps - gaps <= 6  # of 125 blocks that came late
    assert len(heard) and playout.buffered_ms <= 120 + 20 + MAX_MARGIN / MS


def test_ten_minutes_of_late_blocks_and_a_fast_source_does_not_add_up() -> None:
    rng = np.random.default_rng(2)
    playout = Playout()
    block = voice(BLOCK_TICKS)
    most = 0.0
    arrivals = np.cumsum(np.full(5000, 0.12 * (1 - 200e-6)))  # the source's clock is 200 ppm fast
    arrivals = np.maximum.accumulate(arrivals + np.where(rng.random(5000) < 0.01, rng.uniform(0, 0.3, 5000), 0))
    waiting = iter(arrivals)
    due = next(waiting)
    for tick in range(30000):
        while due <= tick * 0.02:
            playout.push(block)
            due = next(waiting, np.inf)
        playout.frame()
        if tick > 29000:
            most = max(most, playout.buffered_ms)
    assert most < 300 + 120
    assert playout.counts.dropped < 0.001 * 30000 * FRAME


def test_a_pause_of_the_stream_does_not_raise_the_margin() -> None:
    playout = Playout()
    playout.push(tone(6))
    for _ in range(LATE_AT_MOST // FRAME + 20):
        playout.frame()
    heard = Stream(tone(60), playout).play()
    assert heard.any() and playout.counts.cut == 0 and playout.buffered_ms < 20


def test_clearing_forgets_all_sound() -> None:
    playout = Playout()
    playout.push(tone(20))
    playout.frame()
    playout.clear()
    assert playout.buffered_ms == 0 and not playout.frame().any()
