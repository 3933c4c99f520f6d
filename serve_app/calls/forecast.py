"""How many calls a machine will carry, from what one block takes on it. Arithmetic only; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import TICK_MS, ConfigError, LiveSettings
from stages.timing import Spread

USED_AT_MOST = 0.85
"""Of each core: what is fuller answers ever later."""
HOP_MS = 15.0
"""What handing a block to its replica and back adds to the stages."""
MEDIA_CORES = 0.1
"""Network, Opus and frames of one call, and its share of Ray's own processes. A call in blocks of 120 ms took 0.62 of a
core in all, where a block took 42 ms (the same machine and day)."""
PAGE_CORES = 0.5
"""A browser with the page in a call: a headless Chromium took 0.23 of a core (AMD EPYC, 2026-11-28); one that also
cancels echo, or paints a large screen without a graphics card, takes more."""
SHARED = 1.4
"""Two blocks at once that take longer than this, over one alone, do not have a core each."""


@dataclass(frozen=True)
class Measured:
    """One block on this machine, computed by one thread: alone, and while each core has one, two at the most."""

    cores: int
    alone: Spread
    at_once: Spread
    stages_ms: Mapping[str, float]
    """p50 of each stage, alone."""


@dataclass(frozen=True)
class Forecast:
    """Calls that a machine carries in blocks of one length."""

    block_ms: int
    deadline_ms: int
    calls: int
    """Whose clients are elsewhere."""
    beside_page: int
    """Where the page of one of them runs in a browser here."""
    beside_recording: int
    """While a recording is converted."""


def forecast(measured: Measured, block_ms: int, deadline_ms: int) -> Forecast:
    """None where a block would be late; else as many as the cores have room for.

    A block takes equally long whatever its length, since the window around it does not change.
    """
    in_time = measured.at_once.p95_ms + HOP_MS <= deadline_ms
    share = (measured.at_once.p50_ms + HOP_MS) / block_ms + MEDIA_CORES
    usable = measured.cores * USED_AT_MOST if in_time else 0.0

    def room(taken: float) -> int:
        return max(0, math.floor((usable - taken) / share))

    return Forecast(block_ms, deadline_ms, room(0.0), room(PAGE_CORES), room(1.0))


def forecasts(measured: Measured, live: LiveSettings) -> list[Forecast]:
    """For the blocks of both modes of a preset."""
    return [forecast(measured, mode.block_ms, mode.deadline_ms) for mode in (live.lowest, live.constant)]


def remedies(measured: Measured, live: LiveSettings) -> list[str]:
    """What to change where one of the modes carries no call; nothing where both do."""
    if all(each.calls for each in forecasts(measured, live)):
        return []
    told = []
    if measured.at_once.p50_ms > SHARED * measured.alone.p50_ms:
        times = measured.at_once.p50_ms / measured.alone.p50_ms
        told.append(
            f"two blocks at once take {times:.1f} times as long as one alone: the cores are shared or busy, so close "
            "other programs, or give this machine more cores"
        )
    if (steps := _fewer_steps(measured, live)) is not None:
        told.append(
            f"with {steps} steps in place of {live.steps} a block takes less: set live.steps in a preset of your own"
        )
    if (block_ms := _longer_blocks(measured, live)) is not None:
        told.append(
            f"blocks of {block_ms} ms would carry a call: set live.lowest in a preset of your own to "
            f"{{block_ms: {block_ms}, deadline_ms: {2 * block_ms}}}"
        )
    return told or ["recordings are converted all the same; calls need a faster machine or a GPU"]


def _longer_blocks(measured: Measured, live: LiveSettings) -> int | None:
    """The shortest blocks that carry a call where they may be late by two, as those of `lowest` are."""
    for block_ms in range(live.lowest.block_ms, live.block_ms + live.diffusion_context_ms + 1, TICK_MS):
        try:
            live.check_block(block_ms)
        except ConfigError:
            continue
        if forecast(measured, block_ms, 2 * block_ms).calls:
            return block_ms
    return None


def _fewer_steps(measured: Measured, live: LiveSettings) -> int | None:
    """The most steps, fewer than now, with which both modes carry a call."""
    for steps in range(live.steps - 1, 0, -1):
        saved_ms = measured.stages_ms["diffusion"] * (1 - steps / live.steps)
        left = 1 - saved_ms / sum(measured.stages_ms.values())
        scaled = Measured(
            measured.cores,
            Spread(measured.alone.p50_ms * left, measured.alone.p95_ms * left),
            Spread(measured.at_once.p50_ms * left, measured.at_once.p95_ms * left),
            measured.stages_ms,
        )
        if all(each.calls for each in forecasts(scaled, live)):
            return steps
    return None
