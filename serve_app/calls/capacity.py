"""Whether this machine keeps up with its calls, and whether a call is heard at all."""

from __future__ import annotations

from collections import deque

from configs.serve import RtcArgs
from serve_app.calls.protocol import End, problem
from stages.call import BlockReport

LOST_AT_MOST = 0.05
"""The share of late and dropped blocks that the short blocks of the mode `lowest` may have."""
CARRIED_OVER = 500
"""The share counts once there are so many blocks: a minute of one call."""
CARRIED_FOR_S = 600.0
"""Older blocks do not count."""
PAUSE_S = 2.0
"""A longer gap between two failed blocks is a pause of the speaker."""


class Carried:
    """Whether calls keep up with the short blocks of mode `lowest`, judged by the latest blocks."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, int, int]] = deque()  # when, how many blocks, and those of them that were lost

    def add(self, blocks: int, lost: int, now_s: float) -> None:
        """Counts more blocks, and how many of them were lost."""
        if blocks:
            self._lately.append((now_s, blocks, lost))
        while self._lately and sum(blocks for _, blocks, _ in self._lately) - self._lately[0][1] >= CARRIED_OVER:
            self._lately.popleft()

    def keeps_up(self, now_s: float) -> bool:
        """False where too many were lost. Old blocks are forgotten, so that short ones get another try."""
        while self._lately and self._lately[0][0] < now_s - CARRIED_FOR_S:
            self._lately.popleft()
        blocks, lost = sum(blocks for _, blocks, _ in self._lately), sum(lost for _, _, lost in self._lately)
        return blocks < CARRIED_OVER or lost <= LOST_AT_MOST * blocks


class Failing:
    """How long all blocks of a call have been lost. Pauses of the speaker do not count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A block was heard, or other settings give the next ones a new chance."""
        self._for_s = 0.0
        self._lost_s: float | None = None
        self.failure: Exception | None = None

    def follow(self, before: BlockReport, report: BlockReport, now_s: float) -> None:
        """Takes two reports of a call, one after the other."""
        if report.done > before.done or report.bypassed > before.bypassed:
            self.reset()
        elif report.concealed > before.concealed:
            if self._lost_s is not None:
                self._for_s += min(now_s - self._lost_s, PAUSE_S)
            self._lost_s = now_s
            if report.failed > before.failed:
                self.failure = report.failure

    def end(self, args: RtcArgs) -> End | None:
        """Why the call should end; None while it may go on."""
        limit_s = args.unheard_timeout_s if self.failure is None else args.failing_timeout_s
        if self._for_s < limit_s:
            return None
        why = "no answer came in time" if self.failure is None else problem(self.failure)["message"]
        return End("conversion_failed", f"nothing could be converted for {limit_s:g} s: {why}")
