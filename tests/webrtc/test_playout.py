"""Playout: even frames out of uneven blocks, no steps, no delay that stays."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from webrtc.bridge import LENGTH
from webrtc.playout import (
    FRAME,
    HEADROOM,
    JOIN_WITHIN,
    LATE_AT_MOST,
    LEAST_KNOWN,
    MS,
    REMEMBERED,
    SPARE,
    Playout,
    Samples,
)
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


class Clocked:
    """A playout whose frames are made every 20 ms, and whose blocks come somewhere between two of them."""

    def __init__(self, max_ms: int = 300) -> None:
        self.playout = Playout(max_ms)
        self.ticks = 0

    def push(self, samples: Samples, before_frame_s: float = 0.01) -> None:
        self.playout.push(samples, self.ticks * 0.02 - before_frame_s)

    def frame(self) -> Samples:
        self.ticks += 1
        return self.playout.frame((self.ticks - 1) * 0.02)


class Stream(Clocked):
    """Cuts a sound into blocks and hands each over at its tick, or some ticks later."""

    def __init__(self, sound: Samples) -> None:
        super().__init__()
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
                self.push(block)
            heard.append(self.frame())
        return np.concatenate(heard)


def steepest(sound: Samples) -> float:
    return float(np.abs(np.diff(sound)).max())


def test_sound_comes_through_after_the_headroom_and_the_filter() -> None:
    clocked = Clocked()
    click = np.zeros(BLOCK_TICKS * TICK, np.float32)
    click[TICK] = 1.0
    clocked.push(click)
    assert clocked.playout.buffered_ms == 120 + HEADROOM / MS
    heard = np.concatenate([clocked.frame() for _ in range(3)])
    assert np.argmax(np.abs(heard)) == pytest.approx(HEADROOM + FRAME + FILTER_MS * MS, abs=1)


def test_even_blocks_make_one_unbroken_sound() -> None:
    stream = Stream(tone(60))
    heard = stream.play()
    counts = stream.playout.counts
    assert counts.bridged == counts.dropped == 0
    assert steepest(heard) < 1.02 * STEEPEST
    assert np.abs(heard[FRAME:]).max() == pytest.approx(0.5, abs=0.01)


def test_how_the_blocks_are_cut_changes_nothing() -> None:
    sound = voice(50)
    whole, pieces = Clocked(2000), Clocked(2000)
    whole.push(sound)
    sizes = [1, 146, 400, 1, 7000, 3000, 50 * TICK]
    for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        pieces.push(sound[start : start + size])
    for _ in range(49):
        np.testing.assert_allclose(pieces.frame(), whole.frame(), atol=1e-6)


def test_nothing_to_play_is_silence() -> None:
    clocked = Clocked()
    assert not clocked.frame().any()
    counts = clocked.playout.counts
    assert counts.bridged == counts.silence == counts.extended == 0  # the call has not begun


def test_a_block_that_is_little_late_leaves_no_hole() -> None:
    stream = Stream(tone(60))
    heard = stream.play(late={4: 2})
    counts = stream.playout.counts
    assert counts.bridged == 1 and counts.silence == 0
    assert 0 <= counts.extended - (2 * FRAME - HEADROOM) <= JOIN_WITHIN
    assert steepest(heard) < 1.1 * STEEPEST
    loudness = np.sqrt(np.convolve(heard[2 * FRAME :] ** 2, np.ones(480) / 480, mode="valid"))  # over two periods
    assert loudness.min() > 0.25 and loudness.max() < 0.36  # of 0.354: the bridge begins to fade after 20 ms


def test_the_end_of_the_sound_and_its_return_make_no_step() -> None:
    stream = Stream(tone(60))
    heard = stream.play(late={4: 6})
    counts = stream.playout.counts
    assert counts.bridged == 1
    assert counts.extended + counts.silence == pytest.approx(6 * FRAME - HEADROOM, abs=1)
    ended = 4 * 6 * FRAME + HEADROOM + LENGTH
    assert not heard[ended + 20 * MS : ended + 40 * MS].any()
    assert steepest(heard) < 0.5 * (np.pi / 2) / (5 * MS) + STEEPEST  # no steeper than the fade on top of the tone


def test_a_gap_lasts_no_longer_than_the_block_is_late_and_a_short_headroom() -> None:
    clocked = Clocked()
    clocked.push(tone(6))
    for _ in range(11):
        clocked.frame()
    clocked.push(tone(6))
    returned = np.flatnonzero(np.abs(clocked.frame()) > 0.01)[0]
    assert returned < HEADROOM + 3 * MS


@pytest.mark.parametrize("ticks_late", [1, 2, 5, 12])
def test_the_surplus_of_a_late_block_goes_away_again(ticks_late: int) -> None:
    punctual, late = Stream(voice(900)), Stream(voice(900))
    punctual.play()
    late.play(late={20: ticks_late})
    assert late.playout.counts.bridged == 1 and late.playout.counts.dropped == 0
    assert late.playout.buffered_ms - punctual.playout.buffered_ms < 6


def test_surplus_leaves_a_sound_without_pauses_by_whole_periods() -> None:
    stream = Stream(tone(402))
    heard = stream.play(late={9: 6})
    assert stream.playout.counts.cut > 50 * MS
    after_the_gap = heard[16 * 6 * FRAME : 66 * 6 * FRAME]
    assert steepest(after_the_gap) < 1.1 * STEEPEST
    loudness = np.sqrt(np.convolve(after_the_gap**2, np.ones(480) / 480, mode="valid"))  # over two periods
    assert loudness.min() > 0.3  # of 0.354: no cut takes the tone out of phase


def test_cuts_in_pauses_leave_the_rest_as_it_was() -> None:
    sound = tone(300)
    sound[np.arange(len(sound)) % (25 * TICK) > 18 * TICK] = 0
    stream = Stream(sound)
    heard = stream.play(late={3: 3})
    assert stream.playout.counts.bridged == 1 and 0 < stream.playout.counts.cut < 4 * FRAME
    assert steepest(heard[100 * FRAME :]) <= steepest(Stream(sound).play()[100 * FRAME :]) * 1.01


def test_what_comes_in_goes_out_or_is_counted() -> None:
    sound = voice(600)
    stream = Stream(sound)
    stream.play(late={3: 9, 30: 4, 60: 2})
    counts = stream.playout.counts
    made_up = counts.extended + counts.silence
    pushed = len(sound) / BLOCK_HZ * 48000
    gone = counts.cut + counts.dropped
    starts = 3 * HEADROOM  # of the call, and after the two longer gaps
    assert pushed + starts + made_up == pytest.approx(600 * FRAME + gone + stream.playout.buffered_ms * MS, abs=5)


def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    clocked = Clocked(400)
    click = np.zeros(100 * TICK, np.float32)
    click[-TICK] = 1.0  # 20 ms before the end
    for block in np.split(click, 10):
        clocked.push(block)
        assert clocked.playout.buffered_ms <= 400 + 200
    assert clocked.playout.counts.dropped == (2000 + HEADROOM / MS - 600) * MS
    heard = np.concatenate([clocked.frame() for _ in range(30)])
    assert np.argmax(np.abs(heard)) == pytest.approx(580 * MS + FILTER_MS * MS, abs=2)


def test_a_block_longer_than_the_bound_is_not_cut_short() -> None:
    clocked = Clocked(300)
    clocked.push(tone(25))
    assert clocked.playout.buffered_ms > 495 and clocked.playout.counts.dropped == 0


def drive(arrivals_s: NDArray[np.floating[Any]], seconds: float, slewing: bool = True) -> tuple[Playout, list[float]]:
    """A playout with its own clock for frames, fed with blocks of 120 ms; what it kept waiting at each frame."""
    playout, block, at_s, number = Playout(), voice(BLOCK_TICKS), 0.0, 0
    waited = []
    while at_s < seconds:
        while number < len(arrivals_s) and arrivals_s[number] <= at_s:
            playout.push(block, arrivals_s[number])
            number += 1
        playout.frame(at_s)
        waited.append(playout.delay_ms)
        at_s += 0.02 + (playout.slew_s if slewing else 0.0)
    return playout, waited


def test_frames_move_to_where_even_blocks_wait_least() -> None:
    arrivals_s = 0.0133 + 0.12 * np.arange(100)
    _, waited = drive(arrivals_s, 12)
    _, fixed = drive(arrivals_s, 12, slewing=False)
    assert waited[-1] == pytest.approx(SPARE / MS, abs=0.5)
    assert fixed[-1] > waited[-1] + 3


@pytest.mark.parametrize("late_share", [0.02, 0.5])
def test_so_much_is_kept_in_hand_as_blocks_are_late(late_share: float) -> None:
    """Few late ones are bridged; many are waited for."""
    late_s = 0.04 * (np.random.default_rng(1).random(250) < late_share)
    playout, waited = drive(0.001 + 0.12 * np.arange(250) + late_s, 29)
    counts = playout.counts
    assert counts.silence == 0
    if late_share < 0.1:
        assert np.mean(waited[1000:]) < 20 and counts.bridged == (late_s > 0).sum()
    else:
        assert np.mean(waited[1000:]) < 40 and counts.bridged < 5


@pytest.mark.parametrize(("slower_s", "block_ticks"), [(0.06, 6), (0.0, 9), (0.06, 9), (0.0, 3), (-0.06, 6)])
def test_what_changes_in_mid_call_is_learnt_at_once(slower_s: float, block_ticks: int) -> None:
    """Other block sizes, and stages that take another time: a few bridges, and soon no more delay than before."""
    playout, at_s, waited = Playout(), 0.0, list[float]()
    blocks = [(0.08 + 0.12 * number, BLOCK_TICKS) for number in range(1, 120)]
    begin_s = blocks[-1][0]
    blocks += [(begin_s + slower_s + 0.02 * block_ticks * number, block_ticks) for number in range(1, 120)]
    while blocks:
        while blocks and blocks[0][0] <= at_s:
            came_s, ticks = blocks.pop(0)
            playout.push(voice(ticks), came_s)
        playout.frame(at_s)
        waited.append(playout.delay_ms)
        at_s += 0.02 + playout.slew_s
    assert playout.counts.bridged <= 5 and playout.counts.silence <= 0.05 * 48000
    changed = int(begin_s / 0.02)
    assert max(waited[changed - 50 : changed - 10]) < 10 and waited[-1] < 10


def test_a_number_that_is_none_ends_no_call() -> None:
    clocked = Clocked()
    for number in range(12):
        block = voice(BLOCK_TICKS)
        block[100 : 100 + number] = np.nan
        clocked.push(block)
        assert all(np.isfinite(clocked.frame()).all() for _ in range(BLOCK_TICKS))


def test_a_pause_between_words_is_no_late_block() -> None:
    playout = Playout()
    for number in range(2 * REMEMBERED):
        playout.push(voice(BLOCK_TICKS) if number % 2 else np.zeros(BLOCK_TICKS * TICK, np.float32), number * 0.12)
        for tick in range(BLOCK_TICKS):
            playout.frame(number * 0.12 + 0.001 + tick * 0.02)
    assert playout.counts.bridged == 0 and playout.counts.extended == 0


def test_ten_minutes_of_late_blocks_and_a_fast_source_does_not_add_up() -> None:
    rng = np.random.default_rng(2)
    arrivals_s = np.cumsum(np.full(5000, 0.12 * (1 - 200e-6)))  # the source's clock is 200 ppm fast
    arrivals_s = np.maximum.accumulate(arrivals_s + np.where(rng.random(5000) < 0.01, rng.uniform(0, 0.3, 5000), 0))
    playout, waited = drive(arrivals_s, 600)
    assert np.median(waited[-1000:]) < 15 and np.median(waited[1000:2000]) < 15
    assert playout.counts.dropped < 0.001 * 30000 * FRAME


def test_a_stall_of_the_frames_is_known_as_delay_and_goes_away() -> None:
    playout, block, at_s = Playout(), voice(BLOCK_TICKS), 0.0
    for number in range(200):
        playout.push(block, number * 0.12)
        while at_s < (number + 1) * 0.12:
            if not 12 < at_s < 12.2:  # ten frames were never made
                playout.frame(at_s)
            at_s += 0.02
        if number == 103:
            assert playout.delay_ms > 60
    assert playout.delay_ms < 30  # not slewed: up to a frame, and the spare


def test_no_more_delay_is_told_than_sound_can_wait() -> None:
    clocked = Clocked(max_ms=300)
    for _ in range(10):
        clocked.push(tone(BLOCK_TICKS))
        for _ in range(BLOCK_TICKS):
            clocked.frame()
    clocked.playout.frame(clocked.ticks * 0.02 + 5.0)  # a machine that stood still, and blocks that are lost
    assert clocked.playout.delay_ms <= 300 + BLOCK_TICKS * 20


def test_a_pause_of_the_stream_says_nothing_about_late_blocks() -> None:
    clocked = Clocked()
    for _ in range(LEAST_KNOWN + 2):
        clocked.push(tone(BLOCK_TICKS))
        for _ in range(BLOCK_TICKS):
            clocked.frame()
    for _ in range(LATE_AT_MOST // FRAME + 20):
        clocked.frame()
    for _ in range(LEAST_KNOWN + 2):
        clocked.push(tone(BLOCK_TICKS))
        for _ in range(BLOCK_TICKS):
            clocked.frame()
    assert clocked.playout.counts.bridged == 1 and clocked.playout.delay_ms < 25


def test_clearing_forgets_all_sound() -> None:
    clocked = Clocked()
    clocked.push(tone(20))
    clocked.frame()
    clocked.playout.clear()
    assert clocked.playout.buffered_ms == 0 and not clocked.frame().any()
