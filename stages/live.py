"""One call: sound comes in as it is spoken, blocks go out in order, and none is ever waited for beyond its deadline.

What comes too late is concealed instead: the block before it fades out, the one after it fades in, and the delay of
the call stays what it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from configs.schema import CallMode, ConfigError, LiveSettings
from stages.blocks import BlockMaker, BlockWindow
from stages.clock import CaptureClock
from stages.geometry import CONTENT_RATE, MODEL_RATE, TICK_16K, TICK_MODEL, TICK_MS, Geometry
from stages.level import LevelFollower
from stages.pipeline import MAX_IN_FLIGHT, BlockLost, BlockRequests, Pending, Sampling, Stages, stitchable
from stages.stitch import Stitcher
from stages.types import Samples, Voice
from stages.vad import SpeechGate

MAX_STEPS = 100
MAX_WAITING = 32
"""Blocks that wait to be taken; beyond it the oldest is left out. More than a deadline of 1 s holds."""
USUAL_SHARE = 0.3
"""How much of the deadline the stages are thought to take before they have shown it."""
USUAL_BLOCKS = 10
"""Over about so many blocks their usual time is averaged."""
WARY_BLOCKS = 8
"""For so many blocks after a late one, a block is not sent that would be late behind those sent before it."""

Mode = Literal["lowest", "constant"]
Outcome = Literal["done", "bypassed", "skipped", "late", "dropped"]
Gate = Callable[[Samples, int], NDArray[np.float32]]
"""A window at 16 kHz and how many of its ticks are new, to a gain for each tick."""


class CallStages(Stages, Protocol):
    """Stages that do not compute inside the call, and may know what each took."""

    def stage_ms(self, wave: Pending) -> dict[str, float]:
        """Milliseconds by stage, as far as they are known now."""


@dataclass(frozen=True)
class CallSettings:
    """What can change during a call.

    Mode `lowest` lets a block out as soon as it is there, `constant` lets every block out equally late.
    """

    voice: Voice | str
    block_ms: int
    steps: int
    cfg_rate: float
    bypass: bool = False
    mode: Mode = "lowest"

    @classmethod
    def of(
        cls,
        live: LiveSettings,
        voice: Voice | str,
        *,
        mode: Mode = "lowest",
        block_ms: int | None = None,
        steps: int | None = None,
        bypass: bool = False,
    ) -> CallSettings:
        """The preset's own values for what is left open."""
        block_ms = call_mode(live, mode).block_ms if block_ms is None else block_ms
        return cls(voice, block_ms, live.steps if steps is None else steps, live.cfg_rate, bypass, mode)


def call_mode(live: LiveSettings, mode: Mode) -> CallMode:
    """A preset's numbers for a mode; ConfigError where there is no such mode."""
    if mode not in ("lowest", "constant"):
        raise ConfigError(f"mode is {mode!r}; allowed are 'lowest' and 'constant'")
    return live.lowest if mode == "lowest" else live.constant


def geometry_of(live: LiveSettings, settings: CallSettings) -> Geometry:
    """The geometry of a call; ConfigError where a setting cannot work."""
    call_mode(live, settings.mode)
    if not 1 <= settings.steps <= MAX_STEPS:
        raise ConfigError(f"steps is {settings.steps}; allowed are 1 to {MAX_STEPS}")
    return Geometry.from_settings(live, settings.block_ms)


def delay_ms(live: LiveSettings, mode: Mode, block_ms: int | None = None) -> int:
    """From sound in to sound out: exactly (constant) or at most (lowest), but for up to 20 ms of alignment."""
    chosen = call_mode(live, mode)
    geometry = Geometry.from_settings(live, chosen.block_ms if block_ms is None else block_ms)
    return (geometry.block_ticks + geometry.lag_ticks) * TICK_MS + chosen.deadline_ms


@dataclass
class BlockReport:
    """Counts of a call's blocks so far, and what the last converted one took."""

    done: int = 0
    bypassed: int = 0
    skipped: int = 0
    """Silence that was not sent."""
    late: int = 0
    """Without a result at their deadline."""
    dropped: int = 0
    """Not sent since two were in flight, given up or failed by the stages, or not taken."""
    failed: int = 0
    """Those of them that a stage had an error of its own for."""
    failure: Exception | None = None
    """The last such error."""
    in_flight: int = 0
    spoken: int = 0
    """With speech in them, whatever became of them."""
    block_ms: float | None = None
    """From the capture of the last sample to the result."""
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def concealed(self) -> int:
        return self.late + self.dropped


@dataclass(eq=False)
class _Block:
    """One block on its way out."""

    window: BlockWindow
    gains: NDArray[np.float32]
    outcome: Outcome
    captured_s: float
    deadline_s: float
    mode: Mode
    sent_s: float = 0.0
    pending: Pending | None = None
    result: asyncio.Task[Samples] | None = None

    @property
    def in_flight(self) -> bool:
        return self.result is not None and not self.result.done()


class LiveStream:
    """Conversion of one call; lives in one event loop, by whose clock its deadlines go.

    `push` whenever sound has come, iterate `blocks` in one task, `change` at any time, `close` at the end.
    """

    def __init__(
        self,
        stages: CallStages,
        live: LiveSettings,
        settings: CallSettings,
        *,
        seed: int = 0,
        gate: Gate | None = None,
        observe: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._stages, self._live, self._seed = stages, live, seed
        self._gate: Gate = gate or SpeechGate()
        self._observe = observe
        self._settings = settings
        geometry = geometry_of(live, settings)
        self._blocks = BlockMaker(geometry, live.high_pass)
        self._stitcher, self._clock = Stitcher(geometry), CaptureClock()
        self._level = LevelFollower() if live.follow_level else None
        self._waiting: deque[_Block] = deque()
        self._more, self._ended = asyncio.Event(), asyncio.Event()
        self._report = BlockReport()
        self._last_result_s = 0.0
        self._paces_s: deque[float] = deque(maxlen=WARY_BLOCKS)
        self._free_s = 0.0
        """When the stages should be done with all that was sent, given up or not."""
        self._wary = 0
        self._usual_s = USUAL_SHARE * call_mode(live, settings.mode).deadline_ms / 1000
        self._n_results = 0

    @property
    def settings(self) -> CallSettings:
        """What the next block is made with."""
        return self._settings

    @property
    def delay_ms(self) -> int:
        """See `delay_ms`, for the present settings."""
        return delay_ms(self._live, self._settings.mode, self._settings.block_ms)

    @property
    def usual_delay_ms(self) -> float:
        """The same as it is of late: in mode `lowest` blocks are there before their deadline."""
        if self._settings.mode == "constant":
            return self.delay_ms
        geometry = geometry_of(self._live, self._settings)
        return (geometry.block_ticks + geometry.lag_ticks) * TICK_MS + self._usual_s * 1000

    @property
    def report(self) -> BlockReport:
        """The counts so far."""
        return replace(self._report, in_flight=self._n_in_flight, stages_ms=dict(self._report.stages_ms))

    def push(self, samples: Samples) -> None:
        """Take samples of any number at 16 kHz as they come; never waits."""
        if self._ended.is_set():
            return
        now_s = asyncio.get_running_loop().time()
        self._clock.heard(self._blocks.n_samples + len(samples), now_s)
        for window in self._blocks.push(samples):
            self._waiting.append(self._start(window, now_s))
            if len(self._waiting) > MAX_WAITING:
                self._give_up(self._waiting.popleft())
                self._count("dropped")
            self._more.set()

    async def blocks(self) -> AsyncIterator[Samples]:
        """Yield the blocks at 22.05 kHz in order, each by its deadline, until the stream is closed.

        What a stage raises only costs the block: the report counts it.
        """
        while not self._ended.is_set():
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
                continue
            block = self._waiting[0]
            await self._until_out(block)
            if self._waiting and self._waiting[0] is block:  # else closed meanwhile, or left out
                self._waiting.popleft()
                yield self._finished(block)

    def change(
        self,
        *,
        voice: Voice | str | None = None,
        block_ms: int | None = None,
        steps: int | None = None,
        bypass: bool | None = None,
        mode: Mode | None = None,
    ) -> CallSettings:
        """Settings from the next block on; a new mode brings its own block size. ConfigError where one cannot work."""
        now = self._settings
        if mode is not None and block_ms is None and mode != now.mode:
            block_ms = call_mode(self._live, mode).block_ms
        settings = CallSettings(
            voice=now.voice if voice is None else voice,
            block_ms=now.block_ms if block_ms is None else block_ms,
            steps=now.steps if steps is None else steps,
            cfg_rate=now.cfg_rate,
            bypass=now.bypass if bypass is None else bypass,
            mode=now.mode if mode is None else mode,
        )
        self._blocks.resize(geometry_of(self._live, settings))
        self._settings = settings
        return settings

    def close(self) -> None:
        """Cancel all that is in flight; `blocks` ends."""
        self._ended.set()
        self._more.set()
        while self._waiting:
            self._give_up(self._waiting.popleft())

    def _start(self, window: BlockWindow, now_s: float) -> _Block:
        """Decide what becomes of a new block, and send it where the networks are wanted."""
        settings = self._settings
        gains = window.returned_ticks(self._gate(window.samples, window.geometry.block_ticks))
        self._report.spoken += bool(gains.any())
        captured_s = self._clock.at(window.end_tick * TICK_16K)
        deadline_s = captured_s + call_mode(self._live, settings.mode).deadline_ms / 1000
        block = _Block(window, gains, "done", captured_s, deadline_s, settings.mode, now_s)
        if settings.bypass:
            block.outcome = "bypassed"
        elif not gains.any():
            block.outcome = "skipped"
        elif not self._has_room(now_s, deadline_s):
            block.outcome = "dropped"
        else:
            sampling = Sampling(self._seed, settings.steps, settings.cfg_rate, self._live.vocoder_past_frames)
            block.pending = BlockRequests.of(window, settings.voice, sampling).start(self._stages)
            block.result = asyncio.create_task(self._collect(block))
            block.result.add_done_callback(_mark_seen)
            self._wary = max(0, self._wary - 1)
            self._free_s = max(self._free_s, now_s) + self._pace_s
        return block

    def _has_room(self, now_s: float, deadline_s: float) -> bool:
        """Whether a block has a chance: one in vain would also cost the block behind it its time."""
        if self._n_in_flight >= MAX_IN_FLIGHT or deadline_s <= now_s:
            return False
        return not self._wary or self._free_s <= now_s or self._free_s + self._pace_s <= deadline_s

    @property
    def _n_in_flight(self) -> int:
        return sum(block.in_flight for block in self._waiting)

    @property
    def _pace_s(self) -> float:
        """The shortest time, of late, from one result to the next while there was work."""
        return min(self._paces_s, default=0.0)

    async def _collect(self, block: _Block) -> Samples:
        wave = await self._collected(block)
        now_s = asyncio.get_running_loop().time()
        self._paces_s.append(now_s - max(block.sent_s, self._last_result_s))
        self._last_result_s = now_s
        self._free_s = now_s + (self._n_in_flight - 1) * self._pace_s  # this one still counts as in flight
        took_s = now_s - block.captured_s
        self._n_results += 1
        self._usual_s += (took_s - self._usual_s) / min(self._n_results, USUAL_BLOCKS)
        self._report.block_ms = took_s * 1000
        self._report.stages_ms = self._stages.stage_ms(block.pending)
        return wave

    async def _collected(self, block: _Block) -> Samples:
        """What the stages made; BlockLost where they gave up, failed, or made something that is no sound."""
        try:
            wave = await self._stages.collect(block.pending)
            if not np.isfinite(wave).all():  # once in the stitcher, it would be heard for ever
                raise FloatingPointError("the stages returned values that are not finite numbers")
        except BlockLost:
            raise
        except Exception as error:
            self._report.failed += 1
            self._report.failure = error
            raise BlockLost from error
        return wave

    async def _until_out(self, block: _Block) -> None:
        """Wait until it is time for a block to come out, with or without a result."""
        if block.result is not None:
            left_s = block.deadline_s - asyncio.get_running_loop().time()
            await asyncio.wait({block.result}, timeout=max(0.0, left_s))
            if block.in_flight:
                block.outcome = "late"
                self._wary = WARY_BLOCKS
                self._give_up(block)
        if block.mode == "constant":
            await self._wait_until(block.deadline_s)
        elif block.result is None:  # when the networks would have been ready: the delay stays the same without them
            await self._wait_until(min(block.captured_s + self._usual_s, block.deadline_s))

    async def _wait_until(self, time_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(time_s):
                await self._ended.wait()

    def _finished(self, block: _Block) -> Samples:
        """The final samples [block] of the oldest block."""
        geometry, wave = block.window.geometry, None
        if block.outcome == "done":
            assert block.result is not None
            try:
                wave = block.result.result()
            except BlockLost:
                block.outcome = "dropped"
        self._count(block.outcome)
        if block.outcome in ("late", "dropped"):
            return self._stitcher.conceal(geometry.block_samples)
        if block.outcome == "bypassed":
            return self._stitcher.push(original(block.window))
        return self._stitcher.push(stitchable(wave, block.gains, block.window, self._level))

    def _give_up(self, block: _Block) -> None:
        if block.in_flight:
            assert block.result is not None
            self._stages.cancel(block.pending)
            block.result.cancel()

    def _count(self, outcome: Outcome) -> None:
        setattr(self._report, outcome, getattr(self._report, outcome) + 1)
        if self._observe is not None:
            self._observe(outcome)


def original(window: BlockWindow) -> Samples:
    """What the stitcher gets of a block that is to sound as it came: the source at 22.05 kHz."""
    ticks = np.arange(len(window.samples) // TICK_16K)
    first, last = window.returned_ticks(ticks)[[0, -1]]
    margin = min(window.geometry.right_ticks, first)
    heard = window.samples[(first - margin) * TICK_16K : (last + 1 + margin) * TICK_16K]
    resampled = soxr.resample(heard, CONTENT_RATE, MODEL_RATE, quality="HQ")
    return np.asarray(resampled[margin * TICK_MODEL :][: window.geometry.return_samples], np.float32)


def _mark_seen(result: asyncio.Task[Samples]) -> None:
    """A result that nobody takes may fail unheard."""
    if not result.cancelled():
        result.exception()
