"""Does a conversion sound like its target, and is it understood? Resemblyzer similarity and PocketSphinx word errors.

`python -m benchmarks.similarity` converts the pairs of samples/pairs.yaml in this process and prints a table;
`speaker_similarity` and `word_error_rate` serve other programs too. Needs resemblyzer and pocketsphinx.
"""

import argparse
import functools
import json
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

SAMPLES = Path(__file__).parent.parent / "samples"
JUDGE_RATE = 16000
# What samples/make.sh has the sources say.
TRANSCRIPTS = {
    "bakery": "The bakery on the corner sells out of rye bread by ten, so we usually stop there on the way to school.",
    "station": "The next train leaves from platform four. "
    "Please keep your tickets ready and mind the gap between the doors.",
    "weather": "Tomorrow will be cloudy in the morning, with a little rain near the coast and sunshine after lunch.",
    "garden": "We planted twelve apple trees along the wall, and three of them already carry fruit this year.",
}

Floats = npt.NDArray[np.float32]


@functools.cache
def _speaker_encoder() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resemblyzer 0.1.4 imports names that newer scipy and setuptools deprecate
        from resemblyzer import VoiceEncoder

        return VoiceEncoder("cpu", verbose=False)


def speaker_embedding(samples: Floats, sample_rate: int) -> Floats:
    """Resemblyzer's unit vector [256] of a mono recording."""
    encoder = _speaker_encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from resemblyzer import preprocess_wav

        wave = preprocess_wav(np.asarray(samples, np.float32), source_sr=sample_rate)
        return np.asarray(encoder.embed_utterance(wave), np.float32)


def speaker_similarity(a: Floats, a_rate: int, b: Floats, b_rate: int) -> float:
    """Cosine of the two recordings' speaker vectors: about 0.5 for strangers, above 0.8 for one speaker."""
    return float(speaker_embedding(a, a_rate) @ speaker_embedding(b, b_rate))


@functools.cache
def _recogniser() -> Any:
    from pocketsphinx import Decoder

    return Decoder(loglevel="FATAL")


def recognised(samples: Floats, sample_rate: int) -> str:
    """The English words that PocketSphinx hears."""
    import soxr

    wave = soxr.resample(np.asarray(samples, np.float32), sample_rate, JUDGE_RATE)
    decoder = _recogniser()
    decoder.start_utt()
    decoder.process_raw((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    return decoder.hyp().hypstr if decoder.hyp() else ""


def word_error_rate(samples: Floats, sample_rate: int, transcript: str) -> float:
    """Insertions, deletions and substitutions over the transcript's words; 0 is perfect, above 1 is possible."""
    said, heard = _words(transcript), _words(recognised(samples, sample_rate))
    row = np.arange(len(heard) + 1)
    for i, word in enumerate(said, start=1):
        previous, row = row, np.full(len(heard) + 1, i)
        for j, other in enumerate(heard, start=1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
    return float(row[-1]) / len(said)


def _words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]+", " ", text.lower()).split()


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
