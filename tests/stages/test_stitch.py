"""Seams: blocks and chunks of one steady sound come out as one steady sound."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import LiveSettings
from stages.geometry import MODEL_RATE, TICK_MODEL, Geometry
from stages.stitch import ChunkJoiner, Stitcher
from stages.types import Samples
from tests.stages.sounds import noise, sine

STEEPEST = 2 * np.pi * 220 / MODEL_RATE
"""Largest step between two samples of the sine."""


def largest_step(wave: Samples) -> float:
    return float(np.abs(np.diff(wave)).max())


@pytest.fixture
def geometry() -> Geometry:
    return Geometry.from_settings(LiveSettings())


def test_blocks_of_a_sine_are_continuous(geometry: Geometry) -> None:
    stitcher, whole = Stitcher(geometry), sine(20 * MODEL_RATE)
    shifts = np.random.default_rng(0).integers(0, TICK_MODEL, 30)  # a block is up to a tick off, as mel frames are
    starts = np.arange(30) * geometry.block_samples + shifts
    out = np.concatenate([stitcher.push(whole[s : s + geometry.return_samples]) for s in starts])
    assert len(out) == 30 * geometry.block_samples
    assert largest_step(out) <= 1.05 * STEEPEST
    steady = out[geometry.block_samples :]
    assert np.abs(steady).reshape(-1, TICK_MODEL).max(axis=1).min() > 0.97  # no dip either: the seams are in phase


def test_a_lost_block_leaves_no_click(geometry: Geometry) -> None:
    stitcher, whole = Stitcher(geometry), sine(20 * MODEL_RATE)
    blocks = np.stack(
        [
            stitcher.conceal(geometry.block_samples)
            if k in (5, 6)
            else stitcher.push(whole[k * geometry.block_samples :][: geometry.return_samples])
            for k in range(16)
        ]
    )
    fade = geometry.sola_ticks * TICK_MODEL
    assert np.abs(blocks[5][:fade]).max() > 0.5  # the tail of the block before
    assert not blocks[5][fade:].any()
    assert not blocks[6].any()
    assert np.abs(blocks[7][fade:]).max() > 0.97
    # The fade of 40 ms adds its own slope, (pi / 2) / 882 at most, to the sine's.
    assert largest_step(blocks.ravel()) <= 1.05 * STEEPEST + np.pi / 2 / fade


@pytest.mark.parametrize("n_samples", [1, 100, 881, 882, 883, 2000])
def test_concealment_of_any_length_fades_the_same_tail(geometry: Geometry, n_samples: int) -> None:
    whole, wave = Stitcher(geometry), sine(geometry.return_samples)
    parts = Stitcher(geometry)
    whole.push(wave), parts.push(wave)
    expected = whole.conceal(4000)
    got = np.concatenate([parts.conceal(n_samples) for _ in range(-(-4000 // n_samples))])[:4000]
    assert np.allclose(got[:n_samples], expected[:n_samples], atol=1e-6)
    assert largest_step(got) <= 1.05 * STEEPEST + np.pi / 2 / 882


def test_conceal_before_any_block_is_silence(geometry: Geometry) -> None:
    assert not Stitcher(geometry).conceal(geometry.block_samples).any()


def test_offset_is_where_the_tail_fits(geometry: Geometry) -> None:
    whole, start = noise(2.0, MODEL_RATE), 0
    stitcher = Stitcher(geometry)
    stitcher.push(whole[: geometry.return_samples])
    for early in (0, 1, 137, 441):
        start += stitcher.offset + geometry.block_samples - early
        stitcher.push(whole[start : start + geometry.return_samples])
        assert stitcher.offset == early


@pytest.mark.parametrize("lengths", [(500, 400, 300), (200, 101, 101), (900, 100), (1000,)])
def test_chunks_of_one_sound_join_to_it(lengths: tuple[int, ...]) -> None:
    overlap, start, parts = 100, 0, []
    whole, joiner = sine(sum(lengths)), ChunkJoiner(overlap)
    for i, length in enumerate(lengths):
        parts.append(joiner.push(whole[start : start + length], last=i == len(lengths) - 1))
        start += length - overlap
    joined = np.concatenate(parts)
    assert len(joined) == start + overlap
    assert np.allclose(joined, whole[: len(joined)], atol=1e-6)
