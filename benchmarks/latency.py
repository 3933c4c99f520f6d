"""Mouth to ear on loopback, from sound to sound: a headless client speaks, and finds its words again in what it hears.

`python -m benchmarks.latency` starts the graph of configs/local.yaml, holds one call after the other over a good and
ever worse networks, and writes benchmarks/results/latency-<preset>.json and .png. The sound cards are not in it: they
add what `seedvc call` prints when it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from benchmarks import delays
from benchmarks.headless import Recorded, calling
from benchmarks.impair import Network
from benchmarks.machine import machine, same_work
from benchmarks.serving import running_graph
from configs import load_preset
from configs.schema import LiveSettings
from serve_app.commands.soundcard import FRAME
from stages.geometry import TICK_MS, Geometry
from stages.types import STAGE_NAMES
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

SAMPLES = Path(__file__).parent.parent / "samples" / "sources"
RESULTS = Path(__file__).parent / "results"
VOICE = "martin"
RATE_HZ = 48000
SETTLE_S = 5.0
"""The start of each call, which is left out: queues find their length."""
LEAST_CALL_S = 30.0
"""Shorter calls have no windows between their start and the packet that is lost in their middle."""
PAUSE_S = 1.0
FRAME_AND_CODECS_MS = 33.0
"""A packet of 20 ms, and the look-ahead of two encoders."""
MOST_CALLS = 8
PART_NAMES = ("capture", "network", "jitter buffer", "block", "queue", "stages", "stitch", "pacing", "playout", "rest")
BAR_MS = 10.0
"""One letter of the bar that is drawn as text."""


@dataclass(frozen=True)
class Scenario:
    """One call."""

    name: str
    mode: str = "lowest"
    network: Network | None = None
    bypass: bool = False
    block_ms: int | None = None
    """None: the mode's own."""


SCENARIOS = (
    Scenario("bypass, by waves", bypass=True),
    Scenario("clean"),
    Scenario("clean, 180 ms blocks", block_ms=180),
    Scenario("clean, constant", mode="constant"),
    Scenario("1 % loss", network=Network(loss=0.01)),
    Scenario("5 % loss", network=Network(loss=0.05)),
    Scenario("20 % loss", network=Network(loss=0.20)),
    Scenario("30 ms jitter", network=Network(jitter_ms=30)),
    Scenario("1 % loss, 30 ms jitter", network=Network(loss=0.01, jitter_ms=30)),
    Scenario("30 ms each way", network=Network(delay_ms=30)),
    Scenario("150 ms each way", network=Network(delay_ms=150)),
)


class Talk:
    """The sample recordings in turn, with silence after each, for as long as it is asked; frame by frame."""

    def __init__(self, pause_s: float, first: int = 0) -> None:
        pieces = [_at_48k(path) for path in sorted(SAMPLES.glob("*.flac"))]
        pieces = pieces[first % len(pieces) :] + pieces[: first % len(pieces)]
        silence = np.zeros(int(pause_s * RATE_HZ), np.float32)
        whole = np.concatenate([part for piece in pieces for part in (piece, silence)])
        self._frames = whole[: len(whole) // FRAME * FRAME].reshape(-1, FRAME)
        self.talk_share = sum(map(len, pieces)) / len(whole)

    def __call__(self, number: int) -> Samples:
        frame: Samples = self._frames[number % len(self._frames)]
        return frame


def silent(number: int) -> Samples:
    """A room in which nobody speaks: noise at -66 dB."""
    return np.random.default_rng(number).normal(0.0, 5e-4, FRAME).astype(np.float32)


def _at_48k(path: Path) -> Samples:
    samples, rate = decode_file(path)
    return np.asarray(soxr.resample(samples, rate, RATE_HZ), np.float32)


async def held_call(
    url: str, seconds: float, scenario: Scenario, source: Callable[[int], Samples] | None = None
) -> Recorded:
    """One call of that length."""
    settings = {"voice": VOICE, "mode": scenario.mode, "bypass": scenario.bypass, "block_ms": scenario.block_ms}
    async with calling(url, source or Talk(PAUSE_S), scenario.network, **settings) as recorded:
        await asyncio.sleep(seconds)
    return recorded


def judged(recorded: Recorded, scenario: Scenario, live: LiveSettings) -> dict[str, Any]:
    """What a call's figures are, without its first seconds."""
    said, heard = recorded.sound(SETTLE_S)
    found = delays.of_waves(said, heard) if scenario.bypass else delays.of_words(said, heard)
    result: dict[str, Any] = {"scenario": scenario.name, "mode": scenario.mode, **delays.spread(found)}
    if scenario.bypass:  # both ways of measuring see the same sound here: how far are they apart?
        result["by_words"] = delays.spread(delays.of_words(said, heard))
    return result | {
        "parts_ms": parts(recorded, live, result["p50_ms"]),
        "published_delay_ms": recorded.settings["delay_ms"],
        "received_kbit_s": received_kbit_s(recorded),
        "blocks": recorded.server[-1]["blocks"] if recorded.server else None,
        "bridged": recorded.server[-1]["bridged"] if recorded.server else None,
        "refusals": recorded.refusals,
    }


def received_kbit_s(recorded: Recorded) -> float | None:
    """Opus alone, without RTP, over the whole call."""
    if len(recorded.own) < 2:
        return None
    first, last = recorded.own[0], recorded.own[-1]
    return round((last.received_bytes - first.received_bytes) * 8 / (len(recorded.own) - 1) / 1000, 1)


def parts(recorded: Recorded, live: LiveSettings, whole_ms: float | None) -> dict[str, float]:
    """Where the time goes: means of both sides' own measurements; `rest` is what the sound says beyond them.

    Of the round trips the least counts: what jitter adds to the others is in the jitter buffers already.
    """
    settled = int(SETTLE_S)
    server, own = recorded.server[settled:], recorded.own[settled:]
    if not server or not own:
        return {}
    block_ms = recorded.settings["block_ms"]
    lag_ms = Geometry.from_settings(live, block_ms).lag_ticks * TICK_MS
    stages_ms = sum(_mean(report["stages_ms"].get(name) for report in server) for name in STAGE_NAMES)
    behind_ms = _mean(report["stages_ms"].get("total") for report in server)
    if recorded.settings["mode"] == "constant":
        behind_ms = recorded.settings["delay_ms"] - block_ms - lag_ms
    found = {
        "capture": FRAME_AND_CODECS_MS,
        "network": min((stats.rtt_ms for stats in own if stats.rtt_ms is not None), default=0.0),
        "jitter buffer": _mean(report["jitter_buffer_ms"] for report in server),
        "block": float(block_ms),
        "queue": max(0.0, behind_ms - stages_ms),
        "stages": stages_ms,
        "stitch": float(lag_ms),
        "pacing": _mean(report["playout_ms"] for report in server),
        "playout": _mean(stats.jitter_buffer_ms + stats.held_ms for stats in own),
    }
    if whole_ms is not None:
        found["rest"] = whole_ms - sum(found.values())
    return {name: round(value, 1) for name, value in found.items()}


def _mean(values: Any) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


async def after_one_lost_packet(url: str, seconds: float) -> dict[str, Any]:
    """Delay before and after one single packet of the client was lost in the middle of the call."""
    network = Network()
    async with calling(url, Talk(PAUSE_S), network, voice=VOICE, mode="lowest") as recorded:
        await asyncio.sleep(seconds / 2)
        lost_at_s = recorded.seconds
        network.lose_next = 1
        await asyncio.sleep(seconds / 2)
    found = delays.of_words(*recorded.sound())
    before = [d for d in found if SETTLE_S < d.at_s < lost_at_s - delays.WINDOW_S]
    after = [d for d in found if d.at_s > lost_at_s + 1.0]
    return {"before": delays.spread(before), "after": delays.spread(after)}


async def over_silence(url: str, seconds: float) -> dict[str, Any]:
    """Share of the blocks that silence does not send to the networks, and what is received of it."""
    recorded = await held_call(url, seconds, Scenario("silence"), silent)
    blocks = recorded.server[-1]["blocks"]
    return {"skipped_share": round(blocks["skipped"] / max(1, sum(blocks.values())), 3), "blocks": blocks,
            "received_kbit_s": received_kbit_s(recorded)}  # fmt: skip


async def half_talk(url: str, seconds: float) -> dict[str, Any]:
    """Bitrate of received sound where every sentence is followed by silence of its length."""
    source = Talk(6.0)
    recorded = await held_call(url, seconds, Scenario("half talk"), source)
    return {"talk_share": round(source.talk_share, 2), "received_kbit_s": received_kbit_s(recorded)}


async def until_late(url: str, seconds: float) -> list[dict[str, Any]]:
    """More and more calls at once, until a block is late or dropped, reports stay away, or the server takes no more."""
    steps = []
    for calls in range(1, MOST_CALLS + 1):
        scenario = Scenario(f"{calls} at once")
        sources = [Talk(PAUSE_S, first=number) for number in range(calls)]
        try:
            held = await asyncio.gather(*(held_call(url, seconds, scenario, source) for source in sources))
        except Exception as error:
            steps.append({"calls": calls, "refused": str(error)})
            break
        if any(len(recorded.server) <= SETTLE_S for recorded in held):
            steps.append({"calls": calls, "overloaded": "too few of the reports came that are due each second"})
            break
        blocks = [_since(recorded, SETTLE_S) for recorded in held]
        late = sum(counts["late"] + counts["dropped"] for counts in blocks)
        found = [delay for recorded in held for delay in delays.of_words(*recorded.sound(SETTLE_S))]
        steps.append({"calls": calls, "late_or_dropped": late, **delays.spread(found), "blocks": blocks})
        print(f"  {calls} at once: {late} blocks late or dropped", flush=True)
        if late:
            break
    return steps


def _since(recorded: Recorded, seconds: float) -> dict[str, int]:
    """Counts of blocks without those of the first seconds."""
    first, last = recorded.server[int(seconds)]["blocks"], recorded.server[-1]["blocks"]
    return {kind: last[kind] - first[kind] for kind in last}


async def growth(url: str, minutes: float, block_ms: int) -> dict[str, Any]:
    """Delay in the first and in the last minute of one long call.

    The block size is asked for: a server that has just lost too many short blocks would choose longer ones.
    """
    recorded = await held_call(url, minutes * 60, Scenario("long", block_ms=block_ms))
    found = delays.of_words(*recorded.sound(SETTLE_S))
    end_s = recorded.seconds - SETTLE_S
    first, last = [d for d in found if d.at_s < 60], [d for d in found if d.at_s > end_s - 60]
    return {
        "minutes": minutes,
        "first": delays.spread(first),
        "last": delays.spread(last),
        "growth_ms": round(_p50(last) - _p50(first), 1) if first and last else None,
        "blocks": recorded.server[-1]["blocks"],
        "bridged": recorded.server[-1]["bridged"],
    }


def _p50(found: list[delays.Delay]) -> float:
    return float(np.median([delay.delay_ms for delay in found]))


def table(results: list[dict[str, Any]]) -> str:
    """One line and one bar for each scenario."""
    lines = [f"{'':<26}{'p50':>8}{'p95':>8}  ms{'late':>7}{'dropped':>9}{'kbit/s':>8}"]
    for result in results:
        blocks = result["blocks"] or {}
        lines.append(
            f"{result['scenario']:<26}{_cell(result['p50_ms'])}{_cell(result['p95_ms'])}    "
            f"{blocks.get('late', '-'):>7}{blocks.get('dropped', '-'):>9}{_cell(result['received_kbit_s'])}"
        )
        if result["parts_ms"]:
            lines.append(f"  {bar(result['parts_ms'])}")
    key = ", ".join(f"{_letter(name)} {name}" for name in PART_NAMES)
    return "\n".join([*lines, f"one letter is {BAR_MS:.0f} ms: {key}"])


def bar(parts_ms: dict[str, float]) -> str:
    """A stacked bar of letters; their number is right in sum."""
    drawn, until_ms = "", 0.0
    for name, value in parts_ms.items():
        until_ms += max(0.0, value)
        drawn += _letter(name) * (round(until_ms / BAR_MS) - len(drawn))
    return drawn


def _letter(name: str) -> str:
    return {"stitch": "x", "playout": "o", "stages": "S"}.get(name, name[0])


def _cell(value: float | None) -> str:
    return f"{value:>8.0f}" if value is not None else f"{'-':>8}"


def draw(path: Path, results: list[dict[str, Any]]) -> None:
    """The stacked bars as a PNG; says so where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'seedvc-serve[quality]')")
        return
    shown = [result for result in results if result["parts_ms"]]
    figure = Figure(figsize=(9, 0.45 * len(shown) + 1.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    names = [result["scenario"] for result in shown]
    left = np.zeros(len(shown))
    for number, part in enumerate(PART_NAMES):
        widths = np.array([max(0.0, result["parts_ms"].get(part, 0.0)) for result in shown])
        axes.barh(names, widths, left=left, label=part, color=f"C{number}")
        left += widths
    for row, result in enumerate(shown):
        axes.plot([result["p95_ms"]], [row], marker="|", markersize=14, color="black")
    axes.invert_yaxis()
    axes.set(xlabel="ms from mouth to ear; the mark is p95", xlim=(0, None))
    axes.legend(ncols=5, fontsize="small", loc="upper center", bbox_to_anchor=(0.4, -0.15), frameon=False)
    figure.savefig(path)


def _told(network: Network) -> dict[str, float]:
    return {"loss": network.loss, "jitter_ms": network.jitter_ms, "delay_ms": network.delay_ms}


async def measured(url: str, args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All figures; `keep` is given what there is after each part, so that a later one loses nothing."""
    live = load_preset(args.preset).live
    wanted = [scenario for scenario in SCENARIOS if args.only is None or args.only in scenario.name]
    await held_call(url, 3.0, Scenario("warm-up"))
    found: dict[str, Any] = {"scenarios": []}
    for scenario in wanted:
        recorded = await held_call(url, args.seconds, scenario)
        found["scenarios"].append(judged(recorded, scenario, live))
        print(f"  {scenario.name}: {found['scenarios'][-1]['p50_ms']} ms", flush=True)
        keep(found)
    others: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "one_lost_packet": partial(after_one_lost_packet, url, args.seconds),
        "silence": partial(over_silence, url, args.seconds),
        "half_talk": partial(half_talk, url, args.seconds + 20),
        "calls_at_once": partial(until_late, url, 15.0),
        "growth": partial(growth, url, args.minutes, live.lowest.block_ms),
    }
    for name, measure in others.items():
        if args.only is None and (args.minutes or name != "growth"):
            found[name] = await measure()
            keep(found)
    return found


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--url", help="a server that runs already; without it one is started")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of each call")
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the long call; 0 leaves it out")
    parser.add_argument("--only", help="only scenarios whose names hold this")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.seconds < LEAST_CALL_S:
        parser.error(f"--seconds is {args.seconds:g}; a call has to last at least {LEAST_CALL_S:g} s to be measured")
    out = args.out or RESULTS / f"latency-{args.preset}.json"
    networks = {s.name: _told(s.network) for s in SCENARIOS if s.network is not None}
    result: dict[str, Any] = {"machine": {**machine("benchmarks.latency"), **same_work()}}
    result |= {"preset": args.preset, "networks": networks}

    def keep(found: dict[str, Any]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result | found, indent=1) + "\n", encoding="utf-8")

    if args.url:
        found = asyncio.run(measured(args.url, args, keep))
    else:
        with running_graph(preset=args.preset, rtc={"max_calls": MOST_CALLS}) as url:  # how many it carries is asked
            found = asyncio.run(measured(url, args, keep))
    print(table(found["scenarios"]))
    print(json.dumps({name: value for name, value in found.items() if name != "scenarios"}, indent=1))
    draw(out.with_suffix(".png"), found["scenarios"])


if __name__ == "__main__":
    main()
