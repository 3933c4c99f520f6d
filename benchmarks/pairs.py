"""Who is turned into whom: pairs of speakers that no training heard, chosen by a seed, and the pairs of samples/."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import yaml

from benchmarks.judges import Floats, Heard
from configs.schema import MODEL_RATE
from training.data import Clip, held_out, read_manifests, read_wave
from webrtc.files import decode_file

RATE = MODEL_RATE
SHORTEST_S, LONGEST_S = 4.0, 6.0
WHOLE_S = 8.0
"""Clips up to this length stay whole, since nobody knows which words a part of one holds."""
LEAST_S = 3.0
"""What is left of a speaker's clips counts down to this length."""
JOIN_S = 0.2
QUIET_S = 0.05
MAX_EXCERPTS = 4
SAMPLES = Path(__file__).parent.parent / "samples"
# What samples/make.sh has the sources say.
TRANSCRIPTS = {
    "bakery": "The bakery on the corner sells out of rye bread by ten, so we usually stop there on the way to school.",
    "station": "The next train leaves from platform four. "
    "Please keep your tickets ready and mind the gap between the doors.",
    "weather": "Tomorrow will be cloudy in the morning, with a little rain near the coast and sunshine after lunch.",
    "garden": "We planted twelve apple trees along the wall, and three of them already carry fruit this year.",
}
KINDS = {"human": "human", "synth": "synthetic"}
SEXES = (("F", "M"), ("M", "F"), ("F", "F"), ("M", "M"))
HIGH_VOICE_HZ = 165.0
"""Where the manifest does not tell the sex, a median pitch above this counts as a woman's."""


class DataMissing(RuntimeError):
    """The data folder does not hold what a run needs; the message says what."""


@dataclass(frozen=True)
class Excerpt:
    """Some seconds of one speaker at 22.05 kHz under a name of their own, and the words in it where they are known."""

    name: str
    samples: Floats
    transcript: str = ""


@dataclass(frozen=True)
class Speaker:
    """Excerpts that share no sound; those with known words come first."""

    name: str
    sex: str
    excerpts: tuple[Excerpt, ...]


@dataclass(frozen=True)
class Pair:
    """What is said, in whose voice it shall be said, and other sound of that voice, which the conversion never gets."""

    source: Excerpt
    source_speaker: str
    target: Excerpt
    target_speaker: str
    unheard: Excerpt | None


def held_out_speakers(root: Path) -> dict[str, list[Speaker]]:
    """English speakers of a training's data folder that it kept out, by kind: human, synthetic."""
    clips = [clip for clip in read_manifests(root) if held_out(clip) and clip.lang == "en"]
    if not clips:
        raise DataMissing(
            f"no held-out speaker in {root}; it must hold human/manifest.csv or synth/manifest.csv, "
            "which training/README.md describes"
        )
    sexes = dict(_sexes(root))
    speakers: dict[str, list[Speaker]] = {}
    for (kind, name), own in groupby(sorted(clips, key=lambda c: (c.kind, c.speaker)), lambda c: (c.kind, c.speaker)):
        excerpts = tuple(islice(_excerpts(root, sorted(own, key=lambda c: (not c.transcript, c.path))), MAX_EXCERPTS))
        if excerpts:
            sex = sexes.get(name) or _sex_by_pitch(excerpts[0])
            speakers.setdefault(KINDS[kind], []).append(Speaker(name, sex, excerpts))
    return speakers


def _sexes(root: Path) -> Iterator[tuple[str, str]]:
    """Speaker and F or M, where the human manifest tells."""
    manifest = root / "human" / "manifest.csv"
    if not manifest.exists():
        return
    with manifest.open(newline="", encoding="utf8") as file:
        for row in csv.DictReader(file):
            if row.get("sex"):
                yield row["speaker"], row["sex"][0]


def _sex_by_pitch(excerpt: Excerpt) -> str:
    pitch = Heard(excerpt.samples, RATE).pitch
    return "F" if (pitch > 0).any() and float(np.median(pitch[pitch > 0])) > HIGH_VOICE_HZ else "M"


def _excerpts(root: Path, clips: Iterable[Clip]) -> Iterator[Excerpt]:
    """A speaker's clips as excerpts of 4 to 6 s: long ones cut where they are quietest, short ones joined."""
    held: Excerpt | None = None
    for piece in (piece for clip in clips for piece in _pieces(root, clip)):
        joined = join(held, piece) if held else piece
        if held and len(joined.samples) > LONGEST_S * RATE:
            if len(held.samples) >= LEAST_S * RATE:
                yield held
            joined = piece
        held = joined
        if len(held.samples) >= SHORTEST_S * RATE:
            yield held
            held = None
    if held and len(held.samples) >= LEAST_S * RATE:
        yield held


def _pieces(root: Path, clip: Clip) -> Iterator[Excerpt]:
    name, wave = clip.path, read_wave(root / clip.path, RATE)
    if len(wave) <= WHOLE_S * RATE:
        yield Excerpt(name, wave, clip.transcript)
        return
    for number, part in enumerate(cut(wave)):
        yield Excerpt(f"{name}#{number}", part)


def cut(wave: Floats) -> Iterator[Floats]:
    """Parts of at most 6 s at 22.05 kHz, cut at the quietest 50 ms between 4 s and 6 s."""
    quiet = round(QUIET_S * RATE)
    first, last = round(SHORTEST_S * RATE), round(LONGEST_S * RATE) - quiet
    while len(wave) > LONGEST_S * RATE:
        energy = np.convolve(np.square(wave[first : last + quiet], dtype=np.float64), np.ones(quiet), mode="valid")
        at = first + int(energy.argmin()) + quiet // 2
        yield wave[:at]
        wave = wave[at:]
    yield wave


def join(first: Excerpt, second: Excerpt) -> Excerpt:
    """Two excerpts of one speaker with a short pause between them."""
    pause = np.zeros(round(JOIN_S * RATE), np.float32)
    transcript = f"{first.transcript} {second.transcript}" if first.transcript and second.transcript else ""
    name = f"{first.name}+{second.name}"
    return Excerpt(name, np.concatenate([first.samples, pause, second.samples]), transcript)


def choose_pairs(speakers: list[Speaker], n_pairs: int, seed: int) -> list[Pair]:
    """`n_pairs` pairs in turn woman to man, man to woman, woman to woman, man to man; no speaker wears out.

    Each pick is the speaker used least so far in that place, in orders that the seed shuffles; no pair comes twice.
    """
    generator = np.random.default_rng(seed)
    sources, targets = ([speakers[i] for i in generator.permutation(len(speakers))] for _ in range(2))
    n_spoken, n_worn, pairs = Counter[str](), Counter[str](), list[Pair]()
    taken = set[tuple[str, str]]()
    for number in range(min(n_pairs, len(speakers) * (len(speakers) - 1))):
        from_sex, to_sex = SEXES[number % len(SEXES)]
        free = [(a, b) for a in sources for b in targets if a is not b and (a.name, b.name) not in taken]
        fitting = [(a, b) for a, b in free if (a.sex, b.sex) == (from_sex, to_sex)] or free
        source, target = min(fitting, key=lambda pair: (n_spoken[pair[0].name], n_worn[pair[1].name]))
        said = source.excerpts[n_spoken[source.name] % len(source.excerpts)]
        unheard = target.excerpts[1] if len(target.excerpts) > 1 else None
        pairs.append(Pair(said, source.name, target.excerpts[0], target.name, unheard))
        taken.add((source.name, target.name))
        n_spoken[source.name] += 1
        n_worn[target.name] += 1
    return pairs


def sample_pairs() -> tuple[list[Pair], list[Speaker]]:
    """The pairs of samples/pairs.yaml, and the voices of samples/ for comparison."""

    def excerpt(path: Path) -> Excerpt:
        samples, rate = decode_file(path)
        if rate != RATE:
            raise DataMissing(f"{path.name} has a rate of {rate} Hz; the recordings of samples/ have {RATE} Hz")
        return Excerpt(path.stem, samples, TRANSCRIPTS.get(path.stem, ""))

    sources = {path.stem: excerpt(path) for path in sorted((SAMPLES / "sources").glob("*.flac"))}
    voices = {path.stem: excerpt(path) for path in sorted((SAMPLES / "voices").glob("*.flac"))}
    listed = yaml.safe_load((SAMPLES / "pairs.yaml").read_text(encoding="utf-8"))
    pairs = [
        Pair(sources[entry["source"]], entry["source"], voices[entry["voice"]], entry["voice"], None)
        for entry in listed
    ]
    return pairs, [Speaker(name, "", tuple(_halves(voice))) for name, voice in voices.items()]


def _halves(excerpt: Excerpt) -> Iterator[Excerpt]:
    """One recording as the sound of one speaker twice."""
    for number, half in enumerate(np.array_split(excerpt.samples, 2)):
        yield Excerpt(f"{excerpt.name}#{number}", half)
