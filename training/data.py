"""The corpus: two manifests, one packed file of samples, and the split by speaker.

A data folder holds `human/`, `synth/` and `pairs/` (of training.pairs), or some of them, each with a `manifest.csv`
(path, speaker, duration_s, transcript; human and pairs also lang, src_rate; pairs also group) and, for synthesised
speech, `phones.jsonl`: `{"path": ..., "phones": [[start_s, end_s, "AH"], ...]}`.
`python -m training.data --data ./data` decodes every clip once into `packed/`, from which the trainings read at random.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from configs.schema import MODEL_RATE as MODEL_RATE

# fmt: off
PHONES = (
    "SIL", "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH",
    "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)
# fmt: on
CONTENT_RATE = 16000
TICK = 320  # samples of a content frame at 16 kHz
SYNTH_CLIPS_PER_VOICE = 15
FOLDERS = {"human": "human", "synth": "synth", "pairs": "synth"}
"""The folders of a data folder, and the kind of their clips."""
DEFAULT_DATA = os.environ.get("SEEDVC_DATA", "./data")
HELD_OUT_PER_1000 = 60
HELD_OUT_FROM = ("lv", "vctk_", "esp_", "flite_")  # corpora of many speakers, so that no single one is lost whole

Floats = npt.NDArray[np.float32]

log = logging.getLogger("training")


@dataclass(frozen=True)
class Clip:
    """One recording: who speaks, and where its samples lie in the packed files."""

    path: str  # relative to the data folder
    speaker: str
    kind: str  # "human" or "synth"
    lang: str
    transcript: str
    src_rate: int  # of the original file: 16000 means nothing above 8 kHz
    duration_s: float
    group: str = ""  # clips of one group say the same at the same time, in other voices
    start_22k: int = 0
    n_22k: int = 0
    start_16k: int = 0
    n_16k: int = 0


def held_out(clip: Clip) -> bool:
    """Whether a speaker is kept out of every training; decided by the name alone, so that it never changes."""
    digest = hashlib.sha256(clip.speaker.encode()).digest()
    return clip.speaker.startswith(HELD_OUT_FROM) and int.from_bytes(digest[:4]) % 1000 < HELD_OUT_PER_1000


def chosen(clips: list[Clip]) -> list[Clip]:
    """All human clips of a second or more and all in groups, and a few others of each synthetic voice."""
    taken: dict[str, int] = {}
    kept = []
    for clip in clips:
        taken[clip.speaker] = taken.get(clip.speaker, 0) + 1
        all_of_them = clip.kind == "human" or clip.group
        if clip.duration_s >= 1.0 and (all_of_them or taken[clip.speaker] <= SYNTH_CLIPS_PER_VOICE):
            kept.append(clip)
    return kept


def read_manifests(root: Path) -> Iterator[Clip]:
    """Clips of all manifests, unpacked."""
    for folder, kind in FOLDERS.items():
        manifest = root / folder / "manifest.csv"
        if not manifest.exists():
            continue
        with manifest.open(newline="", encoding="utf8") as file:
            for row in csv.DictReader(file):
                yield Clip(
                    path=f"{folder}/{row['path']}",
                    speaker=row["speaker"],
                    kind=kind,
                    lang=row.get("lang") or "en",
                    transcript=row["transcript"],
                    src_rate=int(row.get("src_rate") or MODEL_RATE),
                    duration_s=float(row["duration_s"]),
                    group=row.get("group") or "",
                )


def read_wave(path: Path, rate: int) -> Floats:
    """Mono float32 in [-1, 1] at the given rate."""
    samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if file_rate == rate else np.asarray(soxr.resample(mono, file_rate, rate), dtype=np.float32)


def pack(root: Path) -> None:
    """Decode every clip to int16 at both rates: packed/22k.i16, packed/16k.i16, packed/index.jsonl."""
    packed = root / "packed"
    packed.mkdir(exist_ok=True)
    start_22k = start_16k = 0
    with (
        (packed / "22k.i16").open("wb") as file_22k,
        (packed / "16k.i16").open("wb") as file_16k,
        (packed / "index.jsonl.part").open("w", encoding="utf8") as index,
    ):
        for count, clip in enumerate(read_manifests(root)):
            wave_22k = read_wave(root / clip.path, MODEL_RATE)
            wave_16k = np.asarray(soxr.resample(wave_22k, MODEL_RATE, CONTENT_RATE), dtype=np.float32)
            for wave, file in ((wave_22k, file_22k), (wave_16k, file_16k)):
                file.write((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())
            place = {
                "start_22k": start_22k, "n_22k": len(wave_22k), "start_16k": start_16k, "n_16k": len(wave_16k)
            }  # fmt: skip
            index.write(json.dumps({**asdict(clip), **place}) + "\n")
            start_22k += len(wave_22k)
            start_16k += len(wave_16k)
            if count % 500 == 0:
                log.info("packed %d clips, %.1f min", count, start_22k / MODEL_RATE / 60)
    (packed / "index.jsonl.part").rename(packed / "index.jsonl")


class Corpus:
    """The packed clips: `wave_22k(clip)` and `wave_16k(clip)` read without decoding."""

    def __init__(self, root: Path) -> None:
        packed = root / "packed"
        with (packed / "index.jsonl").open(encoding="utf8") as index:
            self.clips = [Clip(**json.loads(line)) for line in index]
        self._22k = np.memmap(packed / "22k.i16", dtype="<i2", mode="r")
        self._16k = np.memmap(packed / "16k.i16", dtype="<i2", mode="r")

    def train(self) -> list[Clip]:
        """Clips of the speakers that may be trained on."""
        return [clip for clip in self.clips if not held_out(clip)]

    def dev(self) -> list[Clip]:
        """Clips of the held-out speakers."""
        return [clip for clip in self.clips if held_out(clip)]

    def wave_22k(self, clip: Clip, start: int = 0, n: int | None = None) -> Floats:
        """Samples [start, start + n) of a clip at 22.05 kHz, fewer at its end."""
        return _floats(self._22k, clip.start_22k, clip.n_22k, start, n)

    def wave_16k(self, clip: Clip, start: int = 0, n: int | None = None) -> Floats:
        """Samples [start, start + n) of a clip at 16 kHz, fewer at its end."""
        return _floats(self._16k, clip.start_16k, clip.n_16k, start, n)


def _floats(packed: npt.NDArray[np.int16], base: int, total: int, start: int, n: int | None) -> Floats:
    stop = total if n is None else min(total, start + n)
    return (packed[base + start : base + stop] / 32767).astype(np.float32)


def main() -> None:
    """Pack the data folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pack(parser.parse_args().data)


if __name__ == "__main__":
    main()
