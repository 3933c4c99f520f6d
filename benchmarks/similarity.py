"""The pairs of samples/ at a glance: Resemblyzer similarity and PocketSphinx word errors of each conversion.

`python -m benchmarks.similarity` converts the pairs of samples/pairs.yaml in this process and prints a table.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.judges import Floats, speaker_embedding, word_error_rate
from benchmarks.pairs import SAMPLES, TRANSCRIPTS


@dataclass(frozen=True)
class Score:
    """One pair: cosines of source and of converted sound to the target, of converted to the source, and word errors."""

    source: str
    voice: str
    to_target_before: float
    to_target: float
    to_source: float
    words_wrong_before: float
    words_wrong: float

    @property
    def nearer_to_target(self) -> bool:
        """Whether the converted sound stands nearer to its target than to its source."""
        return self.to_target > self.to_source


def score(name: str, voice_id: str, source: Floats, target: Floats, converted: Floats, rate: int) -> Score:
    """Judge one conversion; all three recordings at one rate."""
    own, wanted, made = (speaker_embedding(wave, rate) for wave in (source, target, converted))
    return Score(
        name,
        voice_id,
        float(own @ wanted),
        float(made @ wanted),
        float(made @ own),
        word_error_rate(source, rate, TRANSCRIPTS[name]),
        word_error_rate(converted, rate, TRANSCRIPTS[name]),
    )


def table(scores: list[Score]) -> str:
    """The scores as text, with the counts that matter below."""
    lines = [f"{'pair':<18} {'target: before':>14} {'after':>6} {'source: after':>13} {'WER before':>10} {'after':>6}"]
    for s in scores:
        lines.append(
            f"{s.source + ' > ' + s.voice:<18} {s.to_target_before:>14.3f} {s.to_target:>6.3f} {s.to_source:>13.3f} "
            f"{s.words_wrong_before:>10.2f} {s.words_wrong:>6.2f}  {'nearer to target' if s.nearer_to_target else ''}"
        )
    before, after = (np.mean([s.words_wrong_before for s in scores]), np.mean([s.words_wrong for s in scores]))
    nearer = sum(s.nearer_to_target for s in scores)
    lines.append(f"nearer to the target: {nearer} of {len(scores)}; word errors {before:.2f} before, {after:.2f} after")
    return "\n".join(lines)


def judge_samples(preset: str, weights: Path | None, steps: int | None, wav_folder: Path | None = None) -> list[Score]:
    """Convert every pair of samples/pairs.yaml with the in-process stages, and judge it."""
    import soundfile

    import stages

    local = stages.load(preset, weights)
    scores = []
    for pair in yaml.safe_load((SAMPLES / "pairs.yaml").read_text()):
        source, rate = soundfile.read(SAMPLES / "sources" / f"{pair['source']}.flac", dtype="float32")
        target, _ = soundfile.read(SAMPLES / "voices" / f"{pair['voice']}.flac", dtype="float32")
        converted = local.convert(source, rate, local.voice(target, rate), steps=steps)
        if wav_folder is not None:
            wav_folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(wav_folder / f"{pair['source']}-{pair['voice']}.wav", converted, stages.MODEL_RATE)
        scores.append(score(pair["source"], pair["voice"], source, target, converted, rate))
    return scores


def main() -> None:
    """Print the table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--wavs", type=Path, help="folder for the converted recordings")
    parser.add_argument("--out", type=Path, help="JSON file for the scores")
    args = parser.parse_args()
    scores = judge_samples(args.preset, args.weights, args.steps, args.wavs)
    print(table(scores))
    if args.out:
        args.out.write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")


if __name__ == "__main__":
    main()
