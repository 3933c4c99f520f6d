"""Settings of a call that can change while it lasts, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import MAX_STEPS, MODES, CallMode, ConfigError, LiveSettings, Mode
from stages.geometry import TICK_MS, Geometry
from stages.types import Voice


@dataclass(frozen=True)
class CallSettings:
    """What can change during a call.

    Mode `lowest` lets a block out when it is ready; `constant` lets every block out equally late.
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
        """The given values, and those of the preset for the others."""
        block_ms = call_mode(live, mode).block_ms if block_ms is None else block_ms
        return cls(voice, block_ms, live.steps if steps is None else steps, live.cfg_rate, bypass, mode)


def call_mode(live: LiveSettings, mode: Mode) -> CallMode:
    """A preset's numbers for a mode; ConfigError where there is no such mode."""
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}; allowed are {' and '.join(map(repr, MODES))}")
    return live.lowest if mode == "lowest" else live.constant


def geometry_of(live: LiveSettings, settings: CallSettings) -> Geometry:
    """The geometry of a call; ConfigError where a setting cannot work."""
    call_mode(live, settings.mode)
    if not 1 <= settings.steps <= MAX_STEPS:
        raise ConfigError(f"steps is {settings.steps}; allowed are 1 to {MAX_STEPS}")
    return Geometry.from_settings(live, settings.block_ms)


def deadline_ms(live: LiveSettings, mode: Mode, block_ms: int) -> int:
    """How long after its last sample a block comes out at the latest. One longer than the mode's has so much more."""
    chosen = call_mode(live, mode)
    return chosen.deadline_ms + max(0, block_ms - chosen.block_ms)


def delay_ms(live: LiveSettings, mode: Mode, block_ms: int | None = None) -> int:
    """From sound in to sound out: exactly (constant) or at most (lowest). Alignment changes it by up to 20 ms."""
    block_ms = call_mode(live, mode).block_ms if block_ms is None else block_ms
    geometry = Geometry.from_settings(live, block_ms)
    return (geometry.block_ticks + geometry.lag_ticks) * TICK_MS + deadline_ms(live, mode, block_ms)


USUAL_SHARE = 0.3
"""The share of the deadline that the stages are assumed to take until they are measured."""


def usual_delay_ms(live: LiveSettings, mode: Mode, block_ms: int, stages_ms: float | None) -> float:
    """The same where the stages take `stages_ms` (None: not measured); in mode `lowest` a block waits no longer."""
    if mode == "constant":
        return delay_ms(live, mode, block_ms)
    geometry = Geometry.from_settings(live, block_ms)
    taken_ms = USUAL_SHARE * call_mode(live, mode).deadline_ms if stages_ms is None else stages_ms
    return (geometry.block_ticks + geometry.lag_ticks) * TICK_MS + taken_ms
