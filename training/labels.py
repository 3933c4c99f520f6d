"""Frame labels: which phone sounds at each 20 ms of a clip.

Synthesised speech comes with the times of its phones; human speech is labelled by training.align.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import PHONES

FRAME_S = 0.02
UNKNOWN = -100  # the index that cross-entropy ignores
ESPEAK_LAG_S = 0.010  # its events come late against forced alignment (measured on four voices)
PHONE_INDEX = {phone: i for i, phone in enumerate(PHONES)}

Phones = list[tuple[float, float, str]]
Labels = npt.NDArray[np.int64]


def frame_labels(phones: Phones, n_frames: int) -> Labels:
    """Phone index at j * 20 ms for each content frame j; UNKNOWN where no phone is known."""
    labels = np.full(n_frames, UNKNOWN, dtype=np.int64)
    for start_s, end_s, phone in phones:
        first, last = (int(np.ceil(t / FRAME_S)) for t in (start_s, end_s))
        labels[max(first, 0) : max(min(last, n_frames), 0)] = PHONE_INDEX[phone]
    return labels


def read_phones(root: Path) -> dict[str, Phones]:
    """Timed phones of every labelled clip, by path relative to the data folder; espeak's lag removed."""
    found: dict[str, Phones] = {}
    files = [("human", file) for file in sorted((root / "labels").glob("*.jsonl"))]
    for kind, file in [*files, ("synth", root / "synth" / "phones.jsonl")]:
        for line in file.read_text(encoding="utf8").splitlines() if file.exists() else []:
            row = json.loads(line)
            lag_s = ESPEAK_LAG_S if row["path"].startswith("esp_") else 0.0
            found[f"{kind}/{row['path']}"] = [(a - lag_s, b - lag_s, phone) for a, b, phone in row["phones"]]
    return found
