"""When sound was captured: deadlines of a call count from then."""

from __future__ import annotations

import math

from stages.geometry import CONTENT_RATE

PAUSE_S = 0.5
"""A push that is so much later than expected means that the source has paused. Its time then starts again."""
DRIFT = 0.01
"""How fast the estimate follows a source that comes later and later, per push."""


class CaptureClock:
    """When a sample was captured, on the loop's clock: pushes come early and late, samples are evenly spaced."""

    def __init__(self) -> None:
        self._start_s = math.inf

    def heard(self, n_samples: int, now_s: float) -> None:
        """So many samples have come by now."""
        late_s = now_s - n_samples / CONTENT_RATE - self._start_s
        if -PAUSE_S < late_s < PAUSE_S:
            late_s = min(late_s, late_s * DRIFT)
            self._start_s += late_s
        else:
            self._start_s = now_s - n_samples / CONTENT_RATE

    def at(self, n_samples: int) -> float:
        """Capture time of the end of sample number `n_samples`."""
        return self._start_s + n_samples / CONTENT_RATE
