"""Where the frames of a recording belong in time, and how much silence stands between them."""

HOLE_S = 0.1  # time stamps may be off by this much; what is missing adds up until it is more
STEP_S = 0.005  # a hole is filled where one frame does not follow on the other ...
DRIFT_S = 0.5  # ... or where the time stamps have run away from the sound by this much
MAX_SILENCE_S = 600.0  # put in, in all: a time stamp may lie
LEAD_S = 10.0  # that a track without company may begin late, by its edit list


class Timeline:
    """Follows the time stamps of one track."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._zero_s: float | None = None  # the time stamp of the first sample that is given out
        self._given_s = 0.0
        self._end_s: float | None = None  # of the frame before, by its own time stamp
        self._silence_s = 0.0

    @property
    def given_s(self) -> float:
        """How long the sound is so far, with the silence in it."""
        return self._given_s

    @property
    def end_s(self) -> float | None:
        """Where the last frame ends, by its time stamp; None before the first that has one."""
        return self._end_s

    def gap_s(self, at_s: float | None, zero_s: float | None, length_s: float) -> float:
        """How much silence goes before a frame that is stamped `at_s`; the recording begins at `zero_s`."""
        if at_s is None:
            self._given_s += length_s
            return 0.0
        if self._zero_s is None:
            self._zero_s = (at_s if zero_s is None else min(zero_s, at_s)) - self._given_s
        behind_s = at_s - self._zero_s - self._given_s
        step_s = behind_s if self._end_s is None else at_s - self._end_s
        gap_s = 0.0
        if behind_s > HOLE_S and (step_s > STEP_S or behind_s > DRIFT_S):
            gap_s = self._allowed(behind_s)
        if behind_s < -DRIFT_S or (gap_s == 0.0 and behind_s > DRIFT_S):
            self._zero_s = at_s - self._given_s  # the clock was set anew: it counts from here on
        self._end_s = at_s + length_s
        self._given_s += gap_s + length_s
        return gap_s

    def _allowed(self, gap_s: float) -> float:
        if self._silence_s + gap_s <= MAX_SILENCE_S:
            self._silence_s += gap_s
            return gap_s
        if not self.warnings:
            self.warnings.append(f"the time stamps of the recording jump by {gap_s:.0f} s; this was left out")
        return 0.0
