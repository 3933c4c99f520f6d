"""What a file costs a call: one call alone, beside a file conversion, and beside a recording on the path of a call.

`python -m benchmarks.beside` starts the graph of a config, lets the three take turns in one run, so that other load of
the machine meets all alike, and writes benchmarks/results/beside-<config>.json. Conversions run one after another for
as long as the call lasts. They are timed without a call too.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import delays
from benchmarks.headless import Recorded
from benchmarks.latency import LEAST_CALL_S, SAMPLES, SETTLE_S, VOICE, Scenario, held_call, parts
from benchmarks.machine import machine, same_work
from benchmarks.serving import running_graph
from configs import load_preset
from configs.schema import LiveSettings
from webrtc.files import OUTPUT_FORMATS, decode_file, encode_file

RESULTS = Path(__file__).parent / "results"
FILE_S = 20
"""Length of the recording that is converted again and again."""
ALONE_S = 10.0
"""How long conversions run without a call."""
ANSWER_TIMEOUT_S = 600.0
WAYS: dict[str, dict[str, str] | None] = {"alone": None, "beside a file": {}, "beside ?live=true": {"live": "true"}}
"""What runs beside the call: the query of the conversions, or none."""


@dataclass
class Heard:
    """What a call's turns came to, without the first seconds of each."""

    blocks: dict[str, int] = field(default_factory=dict)
    bridged: int = 0
    found: list[delays.Delay] = field(default_factory=list)
    parts_ms: dict[str, float] = field(default_factory=dict)
    """Where the time went in the last turn."""

    def take(self, recorded: Recorded, live: LiveSettings) -> None:
        """One more turn."""
        first, last = recorded.server[int(SETTLE_S)], recorded.server[-1]
        for kind, n in last["blocks"].items():
            self.blocks[kind] = self.blocks.get(kind, 0) + n - first["blocks"][kind]
        self.bridged += last["bridged"] - first["bridged"]
        found = delays.of_words(*recorded.sound(SETTLE_S))
        self.found += found
        self.parts_ms = parts(recorded, live, delays.spread(found)["p50_ms"])

    def told(self) -> dict[str, Any]:
        """Shares are of the blocks with speech."""
        spoken = max(1, sum(n for kind, n in self.blocks.items() if kind != "skipped"))
        late, dropped = self.blocks["late"], self.blocks["dropped"]
        return {
            "spoken": spoken,
            "late": late,
            "dropped": dropped,
            "bridged": self.bridged,
            "late_or_dropped_share": round((late + dropped) / spoken, 4),
            "bridged_share": round(self.bridged / spoken, 4),
            **delays.spread(self.found),
            "parts_ms": self.parts_ms,
        }


@dataclass
class Conversions:
    """Conversions one after another, and how fast they were."""

    took_s: list[float] = field(default_factory=list)
    running_s: float = 0.0
    """How long the one has run that was not waited for."""

    def told(self) -> dict[str, Any]:
        """The real-time factor counts the unfinished one as nothing."""
        if not self.took_s:
            return {"conversions": 0, "unfinished_s": round(self.running_s, 1)}
        took_s = float(np.mean(self.took_s))
        return {
            "conversions": len(self.took_s),
            "mean_s": round(took_s, 2),
            "real_time_factor": round(took_s / FILE_S, 3),
        }


def recording() -> bytes:
    """The sample recordings one behind another, as one file."""
    pieces = [decode_file(path) for path in sorted(SAMPLES.glob("*.flac"))]
    rate = pieces[0][1]
    file = io.BytesIO()
    encode_file(
        [np.concatenate([samples for samples, _ in pieces])[: FILE_S * rate]], OUTPUT_FORMATS["wav_22050"], file
    )
    return file.getvalue()


@asynccontextmanager
async def converting(url: str, query: dict[str, str] | None, file: bytes, done: Conversions) -> AsyncIterator[None]:
    """Conversions of the file, one after another, while the context is open; none without a query."""
    if query is None:
        yield
        return
    task = asyncio.create_task(_convert(url, query, file, done))
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _convert(url: str, query: dict[str, str], file: bytes, done: Conversions) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S) as client:
        while True:
            start_s = time.monotonic()
            try:
                answer = await client.post(
                    f"/v1/speech-to-speech/{VOICE}", params=query, files={"audio": file}, data={"seed": "0"}
                )
            except asyncio.CancelledError:
                done.running_s += time.monotonic() - start_s
                raise
            answer.raise_for_status()
            done.took_s.append(time.monotonic() - start_s)


async def measured(url: str, seconds: float, rounds: int, live: LiveSettings) -> dict[str, Any]:
    """Calls of so many seconds in each of the ways, in turns.

    The block size is asked for: a server that has just lost too many short blocks would choose longer ones.
    """
    file = recording()
    await held_call(url, 3.0, Scenario("warm-up"))
    alone = {name: Conversions() for name, query in WAYS.items() if query is not None}
    for name, done in alone.items():
        async with converting(url, WAYS[name], file, Conversions()):
            await asyncio.sleep(1.0)
        async with converting(url, WAYS[name], file, done):
            await asyncio.sleep(ALONE_S)
    heard = {name: Heard() for name in WAYS}
    beside = {name: Conversions() for name in WAYS}
    for _ in range(rounds):
        for name, query in WAYS.items():
            scenario = Scenario(name, block_ms=live.lowest.block_ms)
            async with converting(url, query, file, beside[name]):
                heard[name].take(await held_call(url, seconds, scenario), live)
            print(f"  {name}: {heard[name].told()}", flush=True)
    return {
        name: heard[name].told()
        | ({"file": beside[name].told(), "file_without_a_call": alone[name].told()} if name in alone else {})
        for name in WAYS
    }


def table(found: dict[str, Any]) -> str:
    """One line for each way."""
    lines = [f"{'a call':<20}{'late':>6}{'dropped':>9}{'of':>6}{'bridged':>9}{'p50':>8}{'p95':>7}  ms   file's factor"]
    for name, row in found.items():
        factor = row.get("file", {}).get("real_time_factor", "-")
        lines.append(
            f"{name:<20}{row['late']:>6}{row['dropped']:>9}{row['spoken']:>6}{row['bridged']:>9}"
            f"{row['p50_ms'] or 0:>8.0f}{row['p95_ms'] or 0:>7.0f}       {factor}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="local", help="configs/<config>.yaml")
    parser.add_argument("--seconds", type=float, default=33.0, help="length of each turn of a call")
    parser.add_argument("--rounds", type=int, default=2, help="how often each takes its turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.seconds < LEAST_CALL_S:
        parser.error(f"--seconds is {args.seconds:g}; a call has to last at least {LEAST_CALL_S:g} s to be measured")
    result: dict[str, Any] = {"machine": {**machine("benchmarks.beside"), **same_work()}, "config": args.config}
    with running_graph(args.config) as url:
        found = asyncio.run(measured(url, args.seconds, args.rounds, load_preset("tiny").live))
    print(table(found))
    out = args.out or RESULTS / f"beside-{args.config}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
