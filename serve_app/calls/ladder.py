"""The ladder that calls climb where the computer falls behind: fewer steps, longer blocks, then no new calls.

One ladder for all calls of a replica, since they share what computes. Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from configs.schema import MAX_STEPS, LiveSettings, Mode
from serve_app.calls.protocol import Change, Told
from stages.call import BlockReport, CallStream
from stages.settings import call_mode, deadline_ms, usual_delay_ms

LONGER_MS = (180, 240, 360, 500)
"""Blocks of each rung, in turn. The networks see the same window, so a block twice as long is nearly half the work."""
FEWER_STEPS = (6, 4)
"""Sampling steps of the rungs below, for presets that render in several. Below four the voice suffers."""

SETTLE_S = 1.0
"""Blocks of the rung before come out for so long, and are not judged."""
SOON_S, SOON_LOST, SOON_SHARE = 2.0, 3, 0.15
"""Climbs where in so long so many blocks, and such a share of them, were lost,"""
LATER_S, LATER_LOST, LATER_SHARE = 10.0, 4, 0.05
"""or in so long so many, and more than one in twenty."""
ROOM = 0.75
"""The share of a block's length that the stages may need for it on a rung that is climbed to,"""
MORE_ROOM = 0.6
"""and on one that is gone back to."""
QUIET_SHARE = 0.01
"""No more blocks may be lost before a lower rung is tried."""
HOLD_S, LONGEST_HOLD_S = 20.0, 600.0
"""How long all must be well before that. It doubles with each try that failed, so that a call does not flap."""
FAILED_WITHIN_S = 60.0
"""A try has failed where the rung is climbed again so soon."""
FORGET_S = 600.0
"""After so long without calls, the machine may be another one."""
LEAST_KNOWN = 8
"""Blocks of speech that must have been judged before a lower rung is tried."""
ADAPT_EVERY_S = 0.5
"""How often a call looks at the ladder."""
PAUSE_WITHIN_S = 10.0
"""For so long a call waits for a pause of its speaker before its blocks get shorter again: sound is cut out there."""


@dataclass(frozen=True, slots=True)
class Rung:
    """What all calls do at once: no more steps, no shorter blocks than these."""

    steps: int = MAX_STEPS
    block_ms: int = 0
    refuses: bool = False
    """Whether no new calls are taken."""


def rungs_of(live: LiveSettings, renders_in_one: bool) -> tuple[Rung, ...]:
    """The rungs of a preset, from the usual one to that which takes no new calls."""
    rungs = [Rung()]
    if not renders_in_one:
        rungs += [Rung(steps=steps) for steps in FEWER_STEPS if steps < live.steps]
    longest_ms = live.block_ms + live.diffusion_context_ms
    longer_ms = [ms for ms in LONGER_MS if live.lowest.block_ms < ms <= longest_ms]
    rungs += [replace(rungs[-1], block_ms=ms) for ms in longer_ms]
    return (*rungs, replace(rungs[-1], refuses=True))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one call told at a moment, of the time since it told the last."""

    at_s: float
    blocks: int
    lost: int
    needed_ms: float | None


class Ladder:
    """On which rung the calls of this replica are."""

    def __init__(self, live: LiveSettings, *, renders_in_one: bool) -> None:
        self.renders_in_one = renders_in_one
        self.live = live
        self._rungs = rungs_of(live, renders_in_one)
        self.usual_ms: float | None = None
        """From the capture of a block's last sample to its result, as it was in the latest calls."""
        self._begin()

    def _begin(self) -> None:
        self._at, self._hold_s = 0, HOLD_S
        self._moved_s = self._tried_s = self._heard_s = -FORGET_S
        self._seen: deque[_Seen] = deque()
        self.needed_ms: float | None = None

    def rung(self, now_s: float) -> Rung:
        """What holds for all calls now."""
        if now_s - self._heard_s > FORGET_S:
            self._begin()
        return self._rungs[self._at]

    def fitted(self, wanted: Wanted, now_s: float) -> Fitted:
        """Block size and steps of a call now."""
        return wanted.on(self.rung(now_s), self.live)

    @property
    def number(self) -> int:
        """How far it was climbed; 0 is the usual rung."""
        return self._at

    def follow(self, before: BlockReport, report: BlockReport, now_s: float) -> None:
        """Takes two reports of a call, one after the other, and climbs or goes back where it is time to.

        Blocks that failed say nothing about the machine.
        """
        lost = (report.concealed - report.failed) - (before.concealed - before.failed)
        done = report.done - before.done
        self.usual_ms = report.usual_ms or self.usual_ms
        if done + lost:
            self._heard_s = now_s
        if done + lost and now_s - self._moved_s >= SETTLE_S:
            self._seen.append(_Seen(now_s, done + lost, lost, report.needed_ms if done else None))
        while self._seen and self._seen[0].at_s < now_s - max(LATER_S, HOLD_S):
            self._seen.popleft()
        if self._falls_behind(now_s):
            self._climb(now_s)
        elif self._has_room(now_s):
            self._move(self._at - 1, now_s)
            self._tried_s = now_s
        elif now_s - self._tried_s > FAILED_WITHIN_S and self._tried_s > self._moved_s - 1e-6:
            self._hold_s = HOLD_S  # the last try went well

    def _since(self, now_s: float, seconds: float) -> list[_Seen]:
        return [seen for seen in self._seen if seen.at_s > now_s - seconds]

    def _falls_behind(self, now_s: float) -> bool:
        tests = ((SOON_S, SOON_LOST, SOON_SHARE), (LATER_S, LATER_LOST, LATER_SHARE))
        for seconds, fewest, share in tests:
            seen = self._since(now_s, seconds)
            lost = sum(one.lost for one in seen)
            if lost >= fewest and lost >= share * sum(one.blocks for one in seen):
                return True
        return False

    def _climb(self, now_s: float) -> None:
        """To the next rung, or past those that would not do either."""
        last = len(self._rungs) - 1
        if self._at == last:
            return
        if now_s - self._tried_s <= FAILED_WITHIN_S:
            self._hold_s = min(2 * self._hold_s, LONGEST_HOLD_S)
        at_least_ms = deadline_ms(self.live, "lowest", self._block_ms(self._rungs[self._at]))
        self.needed_ms = self._needed_ms(now_s, SOON_S, 50) or at_least_ms  # where no block was in time
        at = self._at + 1
        while at < last - 1 and not self._carries(at, self.needed_ms, ROOM):
            at += 1
        self._move(at, now_s)

    def _has_room(self, now_s: float) -> bool:
        """Whether the rung below would do, too."""
        if self._at == 0 or now_s - self._moved_s < self._hold_s:
            return False
        seen = self._since(now_s, HOLD_S)
        blocks, lost = sum(one.blocks for one in seen), sum(one.lost for one in seen)
        if lost > QUIET_SHARE * blocks:
            return False
        if self._rungs[self._at].refuses:  # the rung below has the same blocks
            return True
        needed_ms = self._needed_ms(now_s, HOLD_S, 75)
        return blocks >= LEAST_KNOWN and needed_ms is not None and self._carries(self._at - 1, needed_ms, MORE_ROOM)

    def _needed_ms(self, now_s: float, seconds: float, percentile: float) -> float | None:
        known = [seen.needed_ms for seen in self._since(now_s, seconds) if seen.needed_ms is not None]
        return float(np.percentile(known, percentile)) if known else None

    def _carries(self, at: int, needed_ms: float, room: float) -> bool:
        """Whether blocks that need so long on this rung would be in time on that one."""
        now, then = (self._steps(rung) for rung in (self._rungs[self._at], self._rungs[at]))
        return needed_ms * then / now <= room * self._block_ms(self._rungs[at])

    def _block_ms(self, rung: Rung) -> int:
        return max(self.live.lowest.block_ms, rung.block_ms)

    def _steps(self, rung: Rung) -> int:
        return 1 if self.renders_in_one else min(rung.steps, self.live.steps)

    def _move(self, at: int, now_s: float) -> None:
        self._at, self._moved_s = at, now_s
        self._seen.clear()


class Fitted(NamedTuple):
    """What a call's blocks are made with."""

    block_ms: int
    steps: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call's client asked for; None leaves the choice to the server.

    `adapt` True: all may be adapted, False: nothing, None: all but what is named.
    """

    mode: Mode
    block_ms: int | None = None
    steps: int | None = None
    adapt: bool | None = None

    def changed(self, change: Change) -> Wanted:
        """After a change. Another mode brings its own block size along."""
        mode = change.mode or self.mode
        return Wanted(
            mode,
            change.block_ms or (self.block_ms if mode == self.mode else None),
            change.steps or self.steps,
            self.adapt if change.adapt is None else change.adapt,
        )

    @property
    def holds_block(self) -> bool:
        """Whether blocks keep their size."""
        return self.block_ms is not None if self.adapt is None else not self.adapt

    @property
    def holds_steps(self) -> bool:
        """Whether steps keep their number."""
        return self.steps is not None if self.adapt is None else not self.adapt

    def usual(self, live: LiveSettings) -> Fitted:
        """Block size and steps of a call that keeps up."""
        block_ms = call_mode(live, self.mode).block_ms if self.block_ms is None else self.block_ms
        return Fitted(block_ms, live.steps if self.steps is None else self.steps)

    def on(self, rung: Rung, live: LiveSettings) -> Fitted:
        """The same on a rung of the ladder."""
        block_ms, steps = self.usual(live)
        return Fitted(
            block_ms if self.holds_block else max(block_ms, rung.block_ms),
            steps if self.holds_steps else min(steps, rung.steps),
        )


class Adaptation:
    """One call on the ladder: `step` every `ADAPT_EVERY_S`. Its clock is the one of the stream.

    `computer` is what clients are told to be too slow.
    """

    def __init__(self, ladder: Ladder, stream: CallStream, wanted: Wanted, computer: str) -> None:
        self.wanted = wanted
        self._ladder, self._stream, self._computer = ladder, stream, computer
        self._before = stream.report
        self._shorter_since_s: float | None = None

    def step(self, now_s: float) -> bool:
        """Follows the ladder; whether that has changed the settings of the stream.

        Blocks get longer at once, and shorter in a pause of the speaker.
        """
        before, report = self._before, self._stream.report
        self._before = report
        if not self._is_held:
            self._ladder.follow(before, report, now_s)
        settings, fitted = self._stream.settings, self._ladder.fitted(self.wanted, now_s)
        is_shorter = fitted.block_ms < settings.block_ms
        self._shorter_since_s = (self._shorter_since_s or now_s) if is_shorter else None
        pauses = report.skipped > before.skipped and report.spoken == before.spoken
        waits = self._shorter_since_s is not None and not pauses and now_s - self._shorter_since_s < PAUSE_WITHIN_S
        if waits or fitted == (settings.block_ms, settings.steps):
            return False
        self._stream.change(**fitted._asdict())
        return True

    @property
    def adapts(self) -> bool:
        """Whether anything may be adapted that has an effect."""
        return not (self.wanted.holds_block and (self._ladder.renders_in_one or self.wanted.holds_steps))

    @property
    def _is_held(self) -> bool:
        """Whether it is too costly by its own choice, which is no reason for others to climb."""
        return self.wanted.holds_block or (self.wanted.holds_steps and not self._ladder.renders_in_one)

    @property
    def told(self) -> Told | None:
        """What a client is told of settings that are not those that it wanted; None where they are."""
        settings, live, needed_ms = self._stream.settings, self._ladder.live, self._ladder.needed_ms
        usual, now = self.wanted.usual(live), Fitted(settings.block_ms, settings.steps)
        if now == usual:
            return None
        before_ms, after_ms = (usual_delay_ms(live, settings.mode, fitted.block_ms, None) for fitted in (usual, now))
        more_ms = round(after_ms - before_ms)
        does = []
        if now.steps != usual.steps:
            does.append(f"{now.steps} steps in place of {usual.steps}")
        if more_ms:
            does.append(f"longer blocks, {more_ms} ms more delay")
        why = f"blocks of {usual.block_ms} ms came too late"
        if needed_ms is not None and needed_ms > ROOM * usual.block_ms:
            why = f"{self._computer} needs {needed_ms:.0f} ms for {usual.block_ms} ms"
        return {
            **usual._asdict(),
            "more_delay_ms": more_ms,
            "needed_ms": None if needed_ms is None else round(needed_ms),
            "message": f"{why}: {'; '.join(does)}",
        }
