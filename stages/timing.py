"""What one block of a call takes on this machine. As a program, a child that measures whenever its parent says so."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from stages.types import STAGE_NAMES, Networks

if TYPE_CHECKING:
    from stages.line import BlockRequests

WARM_UP = 5
Took = dict[str, list[float]]
"""Seconds of each block, by stage."""


@dataclass(frozen=True)
class Spread:
    """Milliseconds over the repeats."""

    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Half of the repeats took at most `p50_ms`, 95 of 100 at most `p95_ms`."""
        p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
        return cls(round(float(p50), 2), round(float(p95), 2))


def stages_s(networks: Networks, block: BlockRequests) -> dict[str, float]:
    """One block computed: the seconds of each stage."""
    marks = [perf_counter()]
    content = networks.encode(block.encode)
    marks.append(perf_counter())
    mel = networks.diffuse(content, block.diffuse)
    marks.append(perf_counter())
    networks.vocode(mel, block.vocode)
    marks.append(perf_counter())
    return dict(zip(STAGE_NAMES, map(float, np.diff(marks)), strict=True))


def blocks_s(networks: Networks, block: BlockRequests, repeats: int, at_most_s: float) -> Took:
    """One block again and again, three times at least: as often as asked for, or until the time is over."""
    took: Took = {stage: [] for stage in STAGE_NAMES}
    started = perf_counter()
    for repeat in range(repeats):
        if repeat >= 3 and perf_counter() - started > at_most_s:
            break
        for stage, seconds in stages_s(networks, block).items():
            took[stage].append(seconds)
    return took


def main(preset_name: str, weights: str | None) -> None:
    """Says when it is ready. Then reads lines of `repeats seconds`, and answers each with what the blocks took."""
    from configs.schema import ConfigError, load_preset
    from stages.blocks import BlockWindow
    from stages.checkpoints import WeightsError
    from stages.geometry import Geometry
    from stages.line import BlockRequests, Sampling
    from stages.local import LocalStages, open_weights, set_threads
    from stages.voice import blank_voice

    set_threads(1)  # as in a replica
    preset = load_preset(preset_name)
    try:
        checkpoint = open_weights(preset, weights)
    except (ConfigError, WeightsError) as error:
        sys.exit(str(error))
    networks, geometry, live = LocalStages(preset, checkpoint), Geometry.from_settings(preset.live), preset.live
    hiss = np.random.default_rng(0).standard_normal(geometry.window_samples_16k) * 0.1
    window = BlockWindow(hiss.astype(np.float32), geometry.window_ticks, geometry)
    sampling = Sampling(0, live.steps, live.cfg_rate, live.vocoder_past_frames)
    block = BlockRequests.of(window, blank_voice(preset, checkpoint.sizes), sampling)
    blocks_s(networks, block, WARM_UP, at_most_s=0)
    print("ready", flush=True)
    for line in sys.stdin:
        repeats, at_most_s = line.split()
        print(json.dumps(blocks_s(networks, block, int(repeats), float(at_most_s))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
