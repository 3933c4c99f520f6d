"""Whether a call is heard at all."""

from __future__ import annotations

from configs.serve import RtcArgs
from serve_app.calls.protocol import End, problem
from stages.call import BlockReport

PAUSE_S = 2.0
"""A longer gap between two failed blocks is a pause of the speaker."""


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
