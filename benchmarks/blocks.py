"""What one block of a call costs: each stage in this process, and the graph around them, over both transports.

`python -m benchmarks.blocks` prints a table and writes benchmarks/results/blocks.json; the graph is measured with one
block in flight, from a driver, so the added cost is that of the three hops.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soxr
import torch
from ray import serve

import stages
from benchmarks.machine import machine
from benchmarks.serving import APPLICATION, running_graph
from serve_app.graph.handles import StageHandle
from stages.blocks import BlockWindow
from stages.geometry import CONTENT_RATE
from stages.line import BlockRequests, Sampling
from stages.local import LocalStages
from stages.timing import WARM_UP, Spread, stages_s
from stages.types import Samples, Voice
from webrtc.files import decode_file

SAMPLES = Path(__file__).parent.parent / "samples"
RESULTS = Path(__file__).parent / "results"
SOURCE, VOICE = "station", "martin"
REPEATS, REPEATS_ALONE = 40, 100


@dataclass(frozen=True)
class BlockCost:
    """One block: the new sound in it; its stages and their sum in this process; the whole way through the graph.

    `alone` is the sum before the graph is there: in turns with it, each finds the processor's caches full of the other.
    """

    block_ms: float
    steps: int
    alone: Spread
    encoder: Spread
    diffusion: Spread
    vocoder: Spread
    in_process: Spread
    object_store: Spread
    grpc: Spread

    @property
    def real_time_factor(self) -> float:
        """Compute time over the sound that it yields."""
        return self.in_process.p50_ms / self.block_ms

    @property
    def added_ms(self) -> dict[str, float]:
        """What the graph adds to the stages, by the way that results travel."""
        ways = {"object store": self.object_store, "gRPC": self.grpc}
        return {way: round(spread.p50_ms - self.in_process.p50_ms, 1) for way, spread in ways.items()}


def make_block(local: LocalStages, voice: Voice | str) -> BlockRequests:
    """A window out of the middle of a sample recording."""
    geometry, live = local.geometry, local.preset.live
    source, rate = decode_file(SAMPLES / "sources" / f"{SOURCE}.flac")
    sound: Samples = soxr.resample(source, rate, CONTENT_RATE)[CONTENT_RATE:][: geometry.window_samples_16k]
    sampling = Sampling(0, live.steps, live.cfg_rate, live.vocoder_past_frames)
    return BlockRequests.of(BlockWindow(sound, geometry.window_ticks, geometry), voice, sampling)


def measure_alone(local: LocalStages) -> Spread:
    """One block again and again, in this process."""
    torch.set_num_threads(1)  # as in a replica
    block = make_block(local, local.voice(*decode_file(SAMPLES / "voices" / f"{VOICE}.flac")))
    took = [_stages_s(local, block)["in_process"] for _ in range(WARM_UP + REPEATS_ALONE)]
    return Spread.of(took[WARM_UP:])


def measure(local: LocalStages, alone: Spread) -> BlockCost:
    """One block again and again, in this process and through the running graph in turns: other load meets all alike."""
    sound, rate = decode_file(SAMPLES / "voices" / f"{VOICE}.flac")
    # A conversion makes the voice's features; the graph's block then names the voice by its id, as a stream's does.
    serve.get_app_handle(APPLICATION).convert.remote(sound, rate, VOICE).result()
    in_process, in_graph = make_block(local, local.voice(sound, rate)), make_block(local, VOICE)
    names = ("Encoder", "Diffusion", "Vocoder")
    handles = [StageHandle.of(serve.get_deployment_handle(name, APPLICATION), "object_store") for name in names]
    by_reference, by_value = [h.by_reference for h in handles], [h.by_value for h in handles]
    seconds: dict[str, list[float]] = {}
    for repeat in range(WARM_UP + REPEATS):
        took = _stages_s(local, in_process)
        took["object_store"] = _timed_s(lambda: _through_object_store(by_reference, in_graph))
        took["grpc"] = _timed_s(lambda: _through_grpc(by_value, in_graph))
        if repeat >= WARM_UP:
            for name, value in took.items():
                seconds.setdefault(name, []).append(value)
    block_ms = local.geometry.block_samples * 1000 / stages.MODEL_RATE
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    return BlockCost(round(block_ms, 1), local.preset.live.steps, alone, **spreads)


def _stages_s(local: LocalStages, block: BlockRequests) -> dict[str, float]:
    took = stages_s(local, block)
    return took | {"in_process": sum(took.values())}


def _timed_s(convert: Callable[[], object]) -> float:
    start = time.perf_counter()
    convert()
    return time.perf_counter() - start


def _through_object_store(handles: list[Any], block: BlockRequests) -> object:
    encoder, diffusion, vocoder = handles
    mel = diffusion.remote(encoder.remote(block.encode), block.diffuse)
    return vocoder.remote(mel, block.vocode).result()


def _through_grpc(handles: list[Any], block: BlockRequests) -> object:
    encoder, diffusion, vocoder = handles
    content = encoder.remote(block.encode).result()
    mel = diffusion.remote(content, block.diffuse).result()
    return vocoder.remote(mel, block.vocode).result()


def table(cost: BlockCost) -> str:
    """The costs as text, one line each."""
    head = f"one block: {cost.block_ms:.0f} ms of sound, {cost.steps} diffusion steps"
    rows = {
        "encoder": cost.encoder,
        "diffusion": cost.diffusion,
        "vocoder": cost.vocoder,
        "the three in process": cost.in_process,
        "the three, no graph beside them": cost.alone,
        "graph, object store": cost.object_store,
        "graph, gRPC": cost.grpc,
    }
    lines = [f"{head:<48}{'p50':>8}{'p95':>8}  ms"]
    lines += [f"  {name:<46}{spread.p50_ms:>8.1f}{spread.p95_ms:>8.1f}" for name, spread in rows.items()]
    added = ", ".join(f"{ms:+.1f} ms over the {way}" for way, ms in cost.added_ms.items())
    return "\n".join([*lines, f"the graph adds {added}; real-time factor of the stages: {cost.real_time_factor:.2f}"])


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="folder with the preset's weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "blocks.json")
    args = parser.parse_args()
    local = stages.load(args.preset, args.weights)
    alone = measure_alone(local)
    with running_graph("cpu", preset=args.preset, weights=args.weights):
        cost = measure(local, alone)
    print(table(cost))
    result = {"machine": machine("benchmarks.blocks"), "preset": args.preset, **asdict(cost), "added_ms": cost.added_ms}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
