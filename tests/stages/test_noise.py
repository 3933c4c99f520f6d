"""The start noise is a function of seed and absolute frame, and noise it is."""

from __future__ import annotations

import numpy as np

from stages.noise import frame_noise


def test_a_frame_has_one_noise_in_every_window() -> None:
    early, late = frame_noise(5, -30, 60), frame_noise(5, -10, 60)
    assert early.shape == (80, 60)
    assert early.dtype == np.float32
    assert np.array_equal(early[:, 20:], late[:, :40])
    assert np.array_equal(frame_noise(5, 29, 1), early[:, 59:])
    far = 10**12  # 368 years of sound
    assert np.array_equal(frame_noise(5, far, 3)[:, 2], frame_noise(5, far + 2, 1)[:, 0])


def test_frames_are_independent_normals() -> None:
    columns = frame_noise(11, -200, 400).astype(np.float64)
    assert abs(columns.mean()) < 0.02
    assert abs(columns.std() - 1) < 0.02
    correlation = np.asarray(np.corrcoef(columns.T))[np.triu_indices(400, k=1)]
    assert np.abs(correlation).max() < 0.65  # of 80 values each: 5.8 standard deviations
    assert abs(correlation.std() - 80**-0.5) < 0.002
    # No frame repeats its neighbour's numbers, shifted by some places.
    for lag in range(1, 5):
        assert not np.isin(columns[:, 201 + lag], columns[:, 201]).any()


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    drawn = [frame_noise(seed, 0, 1).tobytes() for seed in seeds]
    assert len(set(drawn)) == len(seeds)
