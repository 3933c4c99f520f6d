"""The sampler's start noise: a function of (stream seed, absolute mel frame), so any replica draws the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED_LIMIT = 2**64
_FRAME_LIMIT = 2**64


def frame_noise(seed: int, first_frame: int, n_frames: int, n_mels: int = 80) -> NDArray[np.float32]:
    """Standard normals [n_mels, n_frames]; column j belongs to frame `first_frame` + j (negative before a start).

    One Philox per frame. The frame number goes into the counter's second word: the first one counts up while numbers
    are drawn, so neighbouring frames would otherwise repeat each other's.
    """
    columns = np.empty((n_frames, n_mels), np.float32)
    for j in range(n_frames):
        counter = np.array([0, (first_frame + j) % _FRAME_LIMIT, 0, 0], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=seed % SEED_LIMIT, counter=counter))
        columns[j] = generator.standard_normal(n_mels, dtype=np.float32)
    return columns.T
