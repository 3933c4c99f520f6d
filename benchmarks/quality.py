"""How conversions sound: any preset, on pairs of speakers that its training never heard, before independent judges.

`python -m benchmarks.quality --preset tiny --data DIR --out benchmarks/results/quality-tiny.json` prints a table and
keeps every score; `--samples` takes the recordings of samples/ instead. Each pair is converted block by block, as in a
call that wishes for nothing and in one of mode `constant`, and whole, as a file; with `--teacher-steps` or
`--teacher-preset` also by a model that takes its time.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import soundfile

import stages
from benchmarks.judges import RECOGNISER, Dnsmos, Floats, JudgeMissing
from benchmarks.machine import machine
from benchmarks.pairs import RATE, DataMissing, Pair, Speaker, choose_pairs, held_out_speakers, sample_pairs
from benchmarks.pictures import draw
from benchmarks.scores import WEIGHED_BY, Bench, Judged, Mean, Way, gaps, means, source_means
from configs.schema import ConfigError, load_preset
from stages.local import LocalStages, open_weights
from training.data import DEFAULT_DATA

STREAMING, LONG_BLOCKS, OFFLINE, TEACHER = "streaming", "streaming, long blocks", "offline", "teacher"
GAPS = {"streaming less offline": (STREAMING, OFFLINE), "student less teacher": (OFFLINE, TEACHER)}
GAP_MEASURES = ("to_target", "wer_own_words", "wer", "pitch_correlation", "overall")
PICTURES_PER_GROUP = 2
PERCENT = {"nearer_to_target", *WEIGHED_BY}

# What the table says of each measure; those that nothing was measured for are left out.
ROWS = {
    "source_to_target": "source to target, similarity",
    "to_target": "converted to target, similarity",
    "to_target_unheard": "converted to other sound of the target",
    "to_source": "converted to source, similarity",
    "nearer_to_target": "nearer to the target than to the source",
    "source_wer": "word errors of the source, against its transcript",
    "wer": "word errors of the converted, against the source's transcript",
    "wer_added": "word errors added to the source's, against its transcript",
    "source_wer_own_words": "word errors of the source with noise 30 dB below, against the words heard in it without",
    "wer_own_words": "word errors of the converted, against the words heard in the source",
    "wer_own_words_added": "word errors added to those of the source with noise, against the words heard in the source",
    "pitch_correlation": "pitch, correlation to the source",
    "semitones_off": "pitch above the target's, semitones",
    "semitones_away": "pitch away from the target's, semitones",
    "level_db": "level above the source's, dB",
    "source_overall": "DNSMOS overall, source",
    "overall": "DNSMOS overall",
    "speech": "DNSMOS speech",
    "background": "DNSMOS background",
    "real_time_factor": "real-time factor",
}
HEARD_BY = f"Words are those that Moonshine's {RECOGNISER} hears, in the converted and in the source alike."


@dataclass(frozen=True)
class Group:
    """Pairs of one kind, with all that was measured."""

    strangers: Mean | None
    """Similarity of two different speakers of this kind."""
    same_speaker: Mean | None
    """Similarity of two recordings of one speaker of this kind."""
    sources: dict[str, Mean | None]
    means: dict[str, dict[str, Mean | None]]
    gaps: dict[str, dict[str, Mean | None]]
    pairs: list[Judged]


def measure(
    name: str,
    pairs: list[Pair],
    speakers: list[Speaker],
    bench: Bench,
    pictures: Path | None = None,
    wavs: Path | None = None,
) -> Group:
    """Convert and judge the pairs of one kind, with a line of progress for each."""
    judged = list[Judged]()
    for number, pair in enumerate(pairs, start=1):
        start = time.perf_counter()
        scores, conversions = bench.judge(pair)
        judged.append(scores)
        title = f"{name}-{number:02d}"
        if pictures and number <= PICTURES_PER_GROUP:
            _picture(pictures / f"{title}.png", pair, conversions)
        if wavs:
            _keep(wavs, title, pair, conversions)
        heard = ", ".join(f"{way} {score.to_target:.2f}" for way, score in scores.ways.items())
        print(
            f"  {name} {number}/{len(pairs)}: {pair.source_speaker} > {pair.target_speaker}: "
            f"to target {scores.source_to_target:.2f} before, {heard}  ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    ways = list(judged[0].ways)
    return Group(
        bench.strangers(speakers),
        bench.same_speaker(speakers),
        source_means(judged),
        {way: means(judged, way) for way in ways},
        {title: gaps(judged, *both) for title, both in GAPS.items() if set(both) <= set(ways)},
        judged,
    )


def _picture(path: Path, pair: Pair, conversions: dict[str, Floats]) -> None:
    rows = {
        f"source: {pair.source_speaker}": pair.source.samples,
        f"target: {pair.target_speaker}": pair.target.samples,
        "converted, block by block": conversions[STREAMING],
    }
    draw(path, rows, RATE)


def _keep(folder: Path, title: str, pair: Pair, conversions: dict[str, Floats]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in {"source": pair.source.samples, "target": pair.target.samples, **conversions}.items():
        soundfile.write(folder / f"{title}-{name}.wav", samples, RATE)


def table(groups: dict[str, Group]) -> str:
    """The means as Markdown: a column for each kind of pairs and way, then what the ways differ by."""
    columns = [(group, way) for group in groups.values() for way in group.means]
    titles = [f"{name}, {way}" for name, group in groups.items() for way in group.means]
    rows = [
        ("pairs", [str(len(group.pairs)) for group, _ in columns]),
        ("two different speakers, similarity", [_once(group, way, group.strangers) for group, way in columns]),
        ("one speaker twice, similarity", [_once(group, way, group.same_speaker) for group, way in columns]),
    ]
    for name, title in ROWS.items():
        cells = [
            _cell(name, group.means[way][name], group) if name in group.means[way]
            else _once(group, way, group.sources[name], name)
            for group, way in columns
        ]  # fmt: skip
        if any(cells):
            rows.append((title, cells))
    measured = [(f"{kind}, {title}", gap, group) for kind, group in groups.items() for title, gap in group.gaps.items()]
    names = [name for name in GAP_MEASURES if any(gap[name] for _, gap, _ in measured)]
    gap_rows = [(title, [_cell(name, gap[name], group) for name in names]) for title, gap, group in measured]
    both = _markdown("mean [95 %]", titles, rows), _markdown("difference", [ROWS[name] for name in names], gap_rows)
    return "\n\n".join(both)


def _markdown(corner: str, titles: list[str], rows: list[tuple[str, list[str]]]) -> str:
    lines = [(corner, titles), ("---", ["---"] * len(titles)), *rows]
    return "\n".join(" | ".join(["", first, *cells, ""]).strip() for first, cells in lines)


def _once(group: Group, way: str, mean: Mean | None, name: str = "") -> str:
    """A figure that does not depend on the way stands in the group's first column alone."""
    return _cell(name, mean, group) if way == next(iter(group.means)) else ""


def _cell(name: str, mean: Mean | None, group: Group) -> str:
    """One figure as `0.71 [0.69, 0.73]`, shares in per cent; with its count where some pairs lack it."""
    if mean is None:
        return ""
    figures = [f"{x:.1%}" if name in PERCENT else f"{x:.2f}" for x in (mean.mean, mean.low, mean.high)]
    return f"{figures[0]} [{figures[1]}, {figures[2]}]" + (f", n={mean.n}" if mean.n < len(group.pairs) else "")


def load_stages(preset: str, weights: str | None) -> tuple[LocalStages, str]:
    """A preset's stages in this process, and the fingerprint of its weights."""
    chosen = load_preset(preset)
    checkpoint = open_weights(chosen, weights)
    return LocalStages(chosen, checkpoint), checkpoint.fingerprint


def ways_of(args: argparse.Namespace) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that the command line asks for, and the fingerprints of their weights by preset."""
    local, fingerprint = load_stages(args.preset, args.weights)
    fingerprints = {args.preset: fingerprint}
    ways = {
        STREAMING: Way(local, live=True, steps=args.steps, seed=args.seed),
        LONG_BLOCKS: Way(
            local, live=True, steps=args.steps, seed=args.seed, block_ms=local.preset.live.constant.block_ms
        ),
        OFFLINE: Way(local, live=False, steps=args.steps, seed=args.seed),
    }
    if args.teacher_preset and args.teacher_preset != args.preset:
        local, fingerprints[args.teacher_preset] = load_stages(args.teacher_preset, args.teacher_weights)
    if args.teacher_preset or args.teacher_steps:
        ways[TEACHER] = replace(ways[OFFLINE], local=local, steps=args.teacher_steps)
    return ways, fingerprints


def chosen_pairs(args: argparse.Namespace) -> dict[str, tuple[list[Pair], list[Speaker]]]:
    """The pairs of each kind, and the speakers that they come from."""
    if args.samples:
        return {"samples": sample_pairs()}
    counts = {"human": args.pairs, "synthetic": args.synthetic_pairs}
    speakers = held_out_speakers(args.data)
    chosen = {
        kind: (choose_pairs(speakers.get(kind, []), n, args.seed), speakers.get(kind, [])) for kind, n in counts.items()
    }
    return {kind: (pairs, own) for kind, (pairs, own) in chosen.items() if pairs}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="folder with the preset's weights")
    parser.add_argument("--steps", type=int, help="diffusion steps; the preset's own if left out")
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA), help="data folder of the trainings")
    parser.add_argument("--samples", action="store_true", help="judge the recordings of samples/ instead")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of human speakers")
    parser.add_argument("--synthetic-pairs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="chooses the pairs and starts the diffusion")
    parser.add_argument("--teacher-steps", type=int, help="convert with so many steps, too")
    parser.add_argument("--teacher-preset", help="convert with this preset, too")
    parser.add_argument("--teacher-weights", help="folder with the teacher preset's weights")
    parser.add_argument("--dnsmos", type=Path, help="scorer file sig_bak_ovr.onnx of the DNS-Challenge (P.835)")
    parser.add_argument("--out", type=Path, help="JSON file for all scores")
    parser.add_argument("--pictures", type=Path, help="folder for spectrograms of the first pairs of each kind")
    parser.add_argument("--wavs", type=Path, help="folder for all recordings and conversions")
    return parser


def main() -> int:
    """Converts, judges, prints, keeps; the exit code."""
    args = arguments().parse_args()
    stages.set_threads(1)
    start = time.perf_counter()
    try:
        dnsmos = Dnsmos(args.dnsmos) if args.dnsmos else None
        if dnsmos is None:
            print("DNSMOS is left out: give its scorer file with --dnsmos")
        ways, fingerprints = ways_of(args)
        bench = Bench(ways, dnsmos)
        groups = {
            kind: measure(kind, pairs, speakers, bench, args.pictures, args.wavs)
            for kind, (pairs, speakers) in chosen_pairs(args).items()
        }
    except (ConfigError, DataMissing, JudgeMissing, stages.WeightsError) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result(args, ways, fingerprints, groups), indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(groups)}\n\n{HEARD_BY}\n\n{time.perf_counter() - start:.0f} s")
    return 0


def result(
    args: argparse.Namespace, ways: dict[str, Way], fingerprints: dict[str, str], groups: dict[str, Group]
) -> dict[str, object]:
    """What the JSON file holds."""
    return {
        "machine": machine("benchmarks.quality"),
        "judges": {name: version(name) for name in ("resemblyzer", "moonshine-voice")},
        "measures": ROWS,
        "preset": args.preset,
        "weights": fingerprints,
        "seed": args.seed,
        "block_ms": {
            name: way.block_ms or way.local.preset.live.lowest.block_ms for name, way in ways.items() if way.live
        },
        "steps": {name: way.n_steps for name, way in ways.items()},
        "groups": {kind: _rounded(asdict(group)) for kind, group in groups.items()},
    }


def _rounded(tree: object) -> object:
    """The same tree with four digits behind the point."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    return round(tree, 4) if isinstance(tree, float) else tree


if __name__ == "__main__":
    sys.exit(main())
