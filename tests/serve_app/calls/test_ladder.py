"""Calls keep up with a slow computer: longer blocks and fewer steps in time, back when there is room, no flapping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from configs.schema import load_preset
from serve_app.calls.ladder import FAILED_WITHIN_S, FORGET_S, HOLD_S, LONGEST_HOLD_S, Ladder, Rung, Wanted, rungs_of
from serve_app.calls.protocol import Change, End, Wishes
from serve_app.errors import CallsFull
from stages.call import BlockReport
from stages.gate import tick_gains
from stages.geometry import TICK_16K
from stages.settings import call_mode
from stages.types import Samples
from tests.serve_app.calls.fakes import LIVE, CallRoom, QuickStages, audio_offer
from tests.stages.virtual import run_virtual

STOPPED = End("stopped", "the call was ended")
STEPPED = load_preset("seed-vc-small").live
SHORT_MS = LIVE.lowest.block_ms
Speed = Callable[[float], float]


class OneCore(QuickStages):
    """Computes one block after the other; each takes `needs_ms(now_s)`."""

    def __init__(self, needs_ms: Speed) -> None:
        super().__init__()
        self.needs_ms = needs_ms
        self._core = asyncio.Lock()

    async def collect(self, wave: int) -> Samples:
        await self._core.acquire()
        await asyncio.shield(asyncio.create_task(self._compute()))  # what has begun goes on, though nobody waits
        return await super().collect(wave)

    async def _compute(self) -> None:
        await asyncio.sleep(self.needs_ms(asyncio.get_running_loop().time()) / 1000)
        self._core.release()


def spoken(samples: Samples, n_new: int) -> Any:
    """A gate that only leaves out silence."""
    return tick_gains(samples)


class Held:
    """A call in virtual time on a computer of a given speed, and what its client was told."""

    def __init__(self, needs_ms: Speed, **wishes: Any) -> None:
        self.room = CallRoom(stages=OneCore(needs_ms), gate=spoken, stats_every_s=1.0, adapt_every_s=0.5)
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.call = self.room.calls.start(Wishes(voice="martin", **wishes), audio_offer(), self._tell)
        self._rng = np.random.default_rng(1)

    def _tell(self, message: dict[str, Any]) -> None:
        self.told.append((asyncio.get_running_loop().time(), message))

    async def speak(self, seconds: float, loud: float = 0.2) -> None:
        await self.call.answered()
        for _ in range(round(seconds * 50)):
            self.room.peers[0].on_frame(self._rng.normal(0, loud, TICK_16K).astype(np.float32))
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self.call.stop(STOPPED)
        await self.call.over.wait()

    @property
    def sizes(self) -> list[tuple[float, int]]:
        """When which block size was told."""
        return [(at_s, message["block_ms"]) for at_s, message in self.told if message["type"] == "settings"]

    def lost_share(self, from_s: float) -> float:
        reports = [told["blocks"] for at_s, told in self.told if told["type"] == "stats" and at_s >= from_s]
        lost, done = (
            sum(reports[-1][kind] - reports[0][kind] for kind in kinds) for kinds in (("late", "dropped"), ("done",))
        )
        return float(lost / (lost + done))


@pytest.mark.parametrize("needs_ms", [130, 180, 240, 330])
def test_a_call_keeps_up_from_its_fifth_second_on(needs_ms: float) -> None:
    async def run() -> None:
        held = Held(lambda _: needs_ms)
        await held.speak(20)
        assert held.sizes[0][0] <= 3.0
        assert held.lost_share(5.0) <= 0.05
        settings = held.call.settings
        assert needs_ms <= settings["block_ms"] == held.sizes[-1][1] <= 500
        more_ms = settings["block_ms"] - SHORT_MS
        assert settings["adapted"]["more_delay_ms"] == more_ms
        assert settings["adapted"]["message"].endswith(f"for {SHORT_MS} ms: longer blocks, {more_ms} ms more delay")
        json.dumps(settings)
        await held.stop()

    run_virtual(run())


def test_a_call_that_holds_its_blocks_keeps_them() -> None:
    async def run() -> None:
        held = Held(lambda _: 200.0, adapt=False)
        await held.speak(5)
        assert not held.sizes and held.call.settings["block_ms"] == SHORT_MS
        held.call.hear('{"type":"change","adapt":true}', held._tell)
        await held.speak(5)
        assert held.call.settings["block_ms"] > 200
        held.call.hear('{"type":"change","block_ms":60,"adapt":false}', held._tell)
        await held.speak(5)
        assert held.call.settings["block_ms"] == 60 and held.call.settings["adapted"] is None
        await held.stop()

    run_virtual(run())


def test_a_fast_computer_is_never_adapted_to() -> None:
    async def run() -> None:
        held = Held(lambda now_s: 300.0 if 10 < now_s < 10.1 else 60.0)  # one block that nobody would call slow
        await held.speak(60)
        assert not held.sizes
        await held.stop()

    run_virtual(run())


def test_short_blocks_come_back_in_a_pause_and_do_not_flap() -> None:
    async def run() -> None:
        held = Held(lambda now_s: 200.0 if now_s < 12 else 40.0)
        for _ in range(18):
            await held.speak(4)
            await held.speak(1, loud=0.0)
        assert held.call.settings["block_ms"] == SHORT_MS and held.call.settings["adapted"] is None
        shorter = [at_s for (at_s, size), (_, before) in zip(held.sizes[1:], held.sizes, strict=False) if size < before]
        assert all(at_s % 5 > 4 or at_s % 5 < 0.6 for at_s in shorter)  # in a pause
        assert len(held.sizes) <= 6
        await held.stop()

    run_virtual(run())


def test_a_computer_that_stays_slow_is_tried_ever_more_seldom() -> None:
    async def run() -> None:
        held = Held(lambda now_s: 125.0 if now_s % 10 > 5 else 60.0)  # too slow half of the time
        await held.speak(150)
        assert held.lost_share(5.0) <= 0.05
        assert len(held.sizes) <= 7
        await held.stop()

    run_virtual(run())


def test_new_calls_begin_where_the_others_are_and_are_refused_at_the_top() -> None:
    async def run() -> None:
        held = Held(lambda _: 200.0)
        await held.speak(8)
        calls, size = held.room.calls, held.call.settings["block_ms"]
        assert calls.modes["lowest"]["block_ms"] == size > 200
        assert calls.modes["lowest"]["usual_delay_ms"] <= calls.modes["lowest"]["delay_ms"]
        second = calls.start(Wishes(voice="clara"), audio_offer())
        await second.answered()
        assert second.settings["block_ms"] == size
        second.stop(STOPPED)
        held.room.stages.needs_ms = lambda _: 900.0  # type: ignore[attr-defined]
        await held.speak(20)
        with pytest.raises(CallsFull, match="falls behind"):
            calls.start(Wishes(voice="clara"), audio_offer())
        assert not held.call.over.is_set()  # a running call is not ended for it
        await held.stop()
        calls.start(Wishes(voice="clara"), audio_offer()).stop(STOPPED)  # alone, it is taken

    run_virtual(run())


def report(done: int, lost: int, needed_ms: float = 100.0) -> BlockReport:
    return BlockReport(done=done, late=lost, needed_ms=needed_ms)


def follow(ladder: Ladder, now_s: float, seconds: float, lost: int, needed_ms: float) -> float:
    """Eight blocks each second, so many of them lost."""
    for _ in range(round(seconds)):
        now_s += 1.0
        ladder.follow(report(0, 0), report(8 - lost, lost, needed_ms), now_s)
    return now_s


def test_steps_are_given_up_before_delay_where_they_count() -> None:
    assert rungs_of(LIVE, renders_in_one=True)[:2] == (Rung(), Rung(block_ms=180))
    rungs = rungs_of(STEPPED, renders_in_one=False)
    assert [(rung.steps, rung.block_ms) for rung in rungs[1:4]] == [(6, 0), (4, 0), (4, 180)]
    assert [rung.refuses for rung in rungs] == [False] * (len(rungs) - 1) + [True]
    ladder = Ladder(STEPPED, renders_in_one=False)
    follow(ladder, 0.0, 1, lost=4, needed_ms=130.0)
    wanted = Wanted("lowest")
    assert wanted.on(ladder.rung(1.0), STEPPED) == (STEPPED.lowest.block_ms, 6)


def test_each_try_that_fails_doubles_the_time_to_the_next() -> None:
    ladder = Ladder(LIVE, renders_in_one=True)
    now_s, tries = follow(ladder, 0.0, 1, lost=4, needed_ms=110.0), list[float]()
    while now_s < 4000:
        before = ladder.number
        now_s = follow(ladder, now_s, 1, lost=4 * (before == 0), needed_ms=60.0)
        if ladder.number < before:
            tries.append(now_s)
    waits = np.diff(tries)  # the first try fails, so already the second waits longer
    assert waits[0] >= 2 * HOLD_S and waits[-1] >= LONGEST_HOLD_S and len(tries) < 12
    assert (np.diff(waits) > -2).all()
    now_s = follow(ladder, now_s, LONGEST_HOLD_S + FAILED_WITHIN_S + 5, lost=0, needed_ms=60.0)
    assert ladder.number == 0
    now_s = follow(ladder, now_s, 1, lost=4, needed_ms=60.0)
    assert ladder.number == 1
    follow(ladder, now_s, HOLD_S + 2, lost=0, needed_ms=60.0)
    assert ladder.number == 0  # what went well is forgotten, too


def test_after_long_without_calls_all_is_as_usual() -> None:
    ladder = Ladder(LIVE, renders_in_one=True)
    now_s = follow(ladder, 0.0, 3, lost=4, needed_ms=200.0)
    assert ladder.rung(now_s + FORGET_S - 1).block_ms > 0
    assert ladder.rung(now_s + FORGET_S + 1) == Rung()


def test_blocks_that_failed_say_nothing_about_the_machine() -> None:
    ladder = Ladder(LIVE, renders_in_one=True)
    for second in range(10):
        ladder.follow(BlockReport(), BlockReport(dropped=8, failed=8), float(second))
    assert ladder.number == 0


def test_what_is_asked_for_is_held_until_the_client_lets_go() -> None:
    high = Rung(steps=4, block_ms=500)
    wanted = Wanted("lowest", block_ms=60, steps=20)
    assert wanted.on(high, STEPPED) == (60, 20)
    released = wanted.changed(Change(type="change", adapt=True))
    assert released.on(high, STEPPED) == (500, 4) and released.on(Rung(), STEPPED) == (60, 20)
    other = wanted.changed(Change(type="change", mode="constant"))
    assert other.on(high, STEPPED) == (500, 20)  # another mode brings its own block size
    assert Wanted("lowest", steps=20, adapt=True).on(high, STEPPED) == (500, 4)
    for change in (Change(type="change", mode="constant"), Change(type="change", steps=5)):
        own_ms = call_mode(STEPPED, change.mode or "lowest").block_ms
        assert Wanted("lowest", adapt=False).changed(change).on(high, STEPPED).block_ms == own_ms
        assert Wanted("lowest", adapt=True).changed(change).on(high, STEPPED) == (500, 4)


@pytest.mark.parametrize(
    ("wishes", "adapts"), [({"block_ms": 40}, False), ({"adapt": False}, False), ({"steps": 9}, True)]
)
def test_what_a_call_holds_makes_no_other_climb(wishes: dict[str, Any], adapts: bool) -> None:
    async def run() -> None:
        held = Held(lambda _: 200.0, **wishes)
        await held.speak(6)
        assert held.call.settings["adapts"] is adapts  # tiny renders in one step: to hold steps holds nothing
        assert (held.room.calls.ladder.number > 0) is adapts
        await held.stop()

    run_virtual(run())


def test_a_server_that_refused_takes_calls_again_though_nobody_speaks() -> None:
    ladder = Ladder(LIVE, renders_in_one=True)
    now_s = follow(ladder, 0.0, 20, lost=8, needed_ms=900.0)
    assert ladder.rung(now_s).refuses
    for _ in range(round(HOLD_S) + 2):
        now_s += 1
        ladder.follow(BlockReport(), BlockReport(), now_s)
    assert not ladder.rung(now_s).refuses
    assert ladder.rung(now_s + FORGET_S) == Rung()  # a call without blocks is no reason to remember


def test_a_server_that_still_falls_behind_goes_on_refusing() -> None:
    ladder = Ladder(LIVE, renders_in_one=True)
    now_s = follow(ladder, 0.0, 20, lost=8, needed_ms=900.0)
    for tick in range(round(8 * HOLD_S)):  # long blocks come out in every other tick only
        now_s += 0.5
        ladder.follow(report(0, 0), report(0, tick % 2), now_s)
        assert ladder.rung(now_s).refuses


def test_a_call_that_comes_back_is_taken_where_new_ones_are_refused() -> None:
    async def run() -> None:
        held = Held(lambda _: 900.0)
        await held.speak(30)
        calls = held.room.calls
        with pytest.raises(CallsFull):
            calls.start(Wishes(voice="clara"), audio_offer())
        calls.start(Wishes(voice="clara"), audio_offer(), comes_back=True).stop(STOPPED)
        await held.stop()

    run_virtual(run())
