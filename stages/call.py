"""One call: sound comes in as it is spoken, and blocks go out in order, each by its deadline.

A late block is concealed: the block before it fades out, the one after it fades in, and the delay of the call stays
the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from configs.schema import LiveSettings, Mode
from stages.line import MAX_IN_FLIGHT, Block, BlockLine, Gate
from stages.settings import USUAL_SHARE, CallSettings, call_mode, deadline_ms, delay_ms, usual_delay_ms
from stages.types import BlockLost, Outcome, Pending, Samples, Stages, Voice

MAX_WAITING = 32
"""How many blocks may wait to be taken; then the oldest is left out. A deadline of 1 s needs fewer."""
USUAL_BLOCKS = 10
"""Their usual time is an average over about so many blocks."""
WARY_BLOCKS = 8
"""For so many blocks after a late one, a block that would be late too is not sent."""


@dataclass
class BlockReport:
    """Counts of a call's blocks so far, and what the last converted one took."""

    done: int = 0
    bypassed: int = 0
    skipped: int = 0
    """Blocks of silence, which were not sent."""
    late: int = 0
    """Blocks without a result at their deadline."""
    dropped: int = 0
    """Blocks that were not sent since they had no chance, that the stages lost, or that nobody took."""
    failed: int = 0
    """Dropped blocks for which a stage raised an error."""
    failure: Exception | None = None
    """The last such error."""
    in_flight: int = 0
    spoken: int = 0
    """Blocks with speech, whatever became of them."""
    block_ms: float | None = None
    """From the capture of the last sample to the result."""
    needed_ms: float | None = None
    """What the stages need for a block, by the last ones: from one result to the next while there was work."""
    usual_ms: float | None = None
    """From the capture of the last sample to the result, as it usually is."""
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def concealed(self) -> int:
        return self.late + self.dropped


@dataclass(eq=False)
class _Outgoing:
    """One block on its way out of the call."""

    block: Block
    outcome: Outcome
    deadline_s: float
    sent_s: float
    pending: Pending | None = None
    result: asyncio.Task[Samples] | None = None

    @property
    def in_flight(self) -> bool:
        return self.result is not None and not self.result.done()


class CallStream:
    """Conversion of one call in one event loop, whose clock its deadlines use.

    `push` whenever sound has come, iterate `blocks` in one task, `change` at any time, `close` at the end.
    """

    def __init__(
        self,
        stages: Stages,
        live: LiveSettings,
        settings: CallSettings,
        *,
        seed: int = 0,
        gate: Gate | None = None,
        observe: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._stages, self._live, self._observe = stages, live, observe
        self._line = BlockLine(live, settings, seed=seed, gate=gate)
        self._waiting: deque[_Outgoing] = deque()
        self._more, self._ended = asyncio.Event(), asyncio.Event()
        self._report = BlockReport()
        self._last_result_s = 0.0
        self._paces_s: deque[float] = deque(maxlen=WARY_BLOCKS)
        self._free_s = 0.0
        """When the stages should be done with all blocks that were sent, also those that were given up."""
        self._wary = 0
        self._usual_s = USUAL_SHARE * call_mode(live, settings.mode).deadline_ms / 1000
        self._n_results = 0

    @property
    def settings(self) -> CallSettings:
        """What the next block is made with."""
        return self._line.settings

    @property
    def delay_ms(self) -> int:
        """See `delay_ms`, for the present settings."""
        return delay_ms(self._live, self.settings.mode, self.settings.block_ms)

    @property
    def usual_delay_ms(self) -> float:
        """The same, as lately measured. In mode `lowest` blocks come out before their deadline."""
        return usual_delay_ms(self._live, self.settings.mode, self.settings.block_ms, self._usual_s * 1000)

    @property
    def report(self) -> BlockReport:
        """The counts so far."""
        return replace(self._report, in_flight=self._n_in_flight, stages_ms=dict(self._report.stages_ms))

    def push(self, samples: Samples) -> None:
        """Take samples of any number at 16 kHz as they come; never waits."""
        if self._ended.is_set():
            return
        now_s = asyncio.get_running_loop().time()
        for block in self._line.push(samples, now_s):
            self._waiting.append(self._start(block, now_s))
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
            outgoing = self._waiting[0]
            await self._until_out(outgoing)
            if self._waiting and self._waiting[0] is outgoing:  # else closed meanwhile, or left out
                self._waiting.popleft()
                yield self._finished(outgoing)

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
        now = self.settings
        if mode is not None and block_ms is None and mode != now.mode:
            block_ms = call_mode(self._live, mode).block_ms
        self._line.settings = CallSettings(
            voice=now.voice if voice is None else voice,
            block_ms=now.block_ms if block_ms is None else block_ms,
            steps=now.steps if steps is None else steps,
            cfg_rate=now.cfg_rate,
            bypass=now.bypass if bypass is None else bypass,
            mode=now.mode if mode is None else mode,
        )
        return self.settings

    def close(self) -> None:
        """Cancel all that is in flight; `blocks` ends."""
        self._ended.set()
        self._more.set()
        while self._waiting:
            self._give_up(self._waiting.popleft())

    def _start(self, block: Block, now_s: float) -> _Outgoing:
        """Decide what becomes of a new block, and send it where the networks are wanted."""
        self._report.spoken += block.spoken
        deadline_s = block.captured_s + deadline_ms(self._live, block.settings.mode, block.settings.block_ms) / 1000
        outgoing = _Outgoing(block, "done", deadline_s, now_s)
        if block.way == "bypass":
            outgoing.outcome = "bypassed"
        elif block.way == "skip":
            outgoing.outcome = "skipped"
        elif not self._has_room(now_s, deadline_s):
            outgoing.outcome = "dropped"
        else:
            outgoing.pending = block.requests.start(self._stages)
            outgoing.result = asyncio.create_task(self._collect(outgoing))
            outgoing.result.add_done_callback(_mark_seen)
            self._wary = max(0, self._wary - 1)
            self._free_s = max(self._free_s, now_s) + self._pace_s
        return outgoing

    def _has_room(self, now_s: float, deadline_s: float) -> bool:
        """Whether a block can be in time. A hopeless one would delay the next."""
        if self._n_in_flight >= MAX_IN_FLIGHT or deadline_s <= now_s:
            return False
        return not self._wary or self._free_s <= now_s or self._free_s + self._pace_s <= deadline_s

    @property
    def _n_in_flight(self) -> int:
        return sum(outgoing.in_flight for outgoing in self._waiting)

    @property
    def _pace_s(self) -> float:
        """The shortest recent time from one result to the next while there was work."""
        return min(self._paces_s, default=0.0)

    async def _collect(self, outgoing: _Outgoing) -> Samples:
        wave = await self._collected(outgoing)
        now_s = asyncio.get_running_loop().time()
        self._paces_s.append(now_s - max(outgoing.sent_s, self._last_result_s))
        self._last_result_s = now_s
        self._free_s = now_s + (self._n_in_flight - 1) * self._pace_s  # this one still counts as in flight
        took_s = now_s - outgoing.block.captured_s
        self._n_results += 1
        self._usual_s += (took_s - self._usual_s) / min(self._n_results, USUAL_BLOCKS)
        self._report.block_ms, self._report.usual_ms = took_s * 1000, self._usual_s * 1000
        self._report.needed_ms = float(np.median(self._paces_s)) * 1000
        self._report.stages_ms = self._stages.stage_ms(outgoing.pending)
        return wave

    async def _collected(self, outgoing: _Outgoing) -> Samples:
        """The samples of the stages; BlockLost where they gave up, failed, or returned numbers that are not finite."""
        try:
            wave = await self._stages.collect(outgoing.pending)
            if not np.isfinite(wave).all():  # once in the stitcher, it would be heard for ever
                raise FloatingPointError("the stages returned values that are not finite numbers")
        except BlockLost:
            raise
        except Exception as error:
            self._report.failed += 1
            self._report.failure = error
            raise BlockLost from error
        return wave

    async def _until_out(self, outgoing: _Outgoing) -> None:
        """Wait until it is time for a block to come out, with or without a result."""
        if outgoing.result is not None:
            left_s = outgoing.deadline_s - asyncio.get_running_loop().time()
            await asyncio.wait({outgoing.result}, timeout=max(0.0, left_s))
            if outgoing.in_flight:
                outgoing.outcome = "late"
                self._wary = WARY_BLOCKS
                self._give_up(outgoing)
        if outgoing.block.settings.mode == "constant":
            await self._wait_until(outgoing.deadline_s)
        elif outgoing.result is None:  # waits as long as the networks usually take, so that the delay stays the same
            await self._wait_until(min(outgoing.block.captured_s + self._usual_s, outgoing.deadline_s))

    async def _wait_until(self, time_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(time_s):
                await self._ended.wait()

    def _finished(self, outgoing: _Outgoing) -> Samples:
        """The final samples [block] of the oldest block."""
        wave = None
        if outgoing.outcome == "done":
            assert outgoing.result is not None
            try:
                wave = outgoing.result.result()
            except BlockLost:
                outgoing.outcome = "dropped"
        self._count(outgoing.outcome)
        if wave is not None:
            return self._line.finish(outgoing.block, wave)
        if outgoing.outcome == "bypassed":
            return self._line.bypass(outgoing.block)
        return self._line.skip(outgoing.block) if outgoing.outcome == "skipped" else self._line.conceal(outgoing.block)

    def _give_up(self, outgoing: _Outgoing) -> None:
        if outgoing.in_flight:
            assert outgoing.result is not None
            self._stages.cancel(outgoing.pending)
            outgoing.result.cancel()

    def _count(self, outcome: Outcome) -> None:
        setattr(self._report, outcome, getattr(self._report, outcome) + 1)
        if self._observe is not None:
            self._observe(outcome)


def _mark_seen(result: asyncio.Task[Samples]) -> None:
    """Keeps asyncio from reporting the error of a result that nobody takes."""
    if not result.cancelled():
        result.exception()
