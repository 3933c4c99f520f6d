"""The output is as loud as the source, never louder than it was made, and without a jump where pieces meet."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, HOP, MODEL_RATE, TICK_16K, Geometry
from stages.level import LevelFollower
from stages.quiet import powers
from stages.types import Samples
from tests.stages.sounds import noise

GEOMETRY = Geometry.from_settings(LiveSettings())


def followed_call(source: Samples, made_peak: float) -> list[Samples]:
    """The final part of each block of noise of one loudness, under that source at 16 kHz."""
    follower, made = LevelFollower(), noise(10.0, MODEL_RATE, seed=1, peak=made_peak)
    blocks: list[Samples] = []
    for window in BlockMaker(GEOMETRY).push(source):
        start = len(blocks) * GEOMETRY.block_samples
        wave = follower.block(made[start : start + GEOMETRY.return_samples], window)
        blocks.append(wave[: GEOMETRY.block_samples])
    return blocks


def level_db(wave: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


@pytest.mark.parametrize("peak", [0.3, 0.03, 0.003])
def test_a_call_takes_the_level_of_a_quieter_source(peak: float) -> None:
    source = noise(4.0, CONTENT_RATE, peak=peak)
    made = np.concatenate(followed_call(source, made_peak=0.5)[8:])
    assert level_db(made) == pytest.approx(level_db(source), abs=0.5)


def test_nothing_becomes_louder_than_by_6_db_nor_than_full_scale() -> None:
    source = noise(3.0, CONTENT_RATE, peak=0.9)
    made = noise(10.0, MODEL_RATE, seed=1, peak=0.1)
    quiet = np.concatenate(followed_call(source, made_peak=0.1))[GEOMETRY.block_samples :]
    assert np.allclose(quiet, 2 * made[GEOMETRY.block_samples :][: len(quiet)], atol=1e-6)
    assert np.abs(np.concatenate(followed_call(source, made_peak=0.9))).max() < 1.0


def test_the_gain_does_not_jump_between_blocks() -> None:
    source = np.concatenate([noise(2.0, CONTENT_RATE, peak=0.4), noise(2.0, CONTENT_RATE, peak=0.04)])
    follower, made = LevelFollower(), np.ones(GEOMETRY.return_samples, np.float32)
    gains = [follower.block(made, window) for window in BlockMaker(GEOMETRY).push(source)]
    for one, following in zip(gains, gains[1:], strict=False):
        shared = GEOMETRY.return_samples - GEOMETRY.block_samples
        assert np.abs(20 * np.log10(one[-shared:] / following[:shared])).max() < 1.0


def test_chunks_of_a_recording_equal_the_whole() -> None:
    source, made = noise(6.0, CONTENT_RATE, peak=0.1), noise(6.0, MODEL_RATE, seed=1)[: 500 * HOP]
    power, cut = powers(source, TICK_16K), 250 * HOP
    whole = LevelFollower().chunk(made, power, 0.0, 1.0, len(made))
    follower = LevelFollower()
    first = follower.chunk(made[: cut + 16 * HOP], power, 0.0, 1.0, cut)
    second = follower.chunk(made[cut:], power, cut / (MODEL_RATE / 50), 1.0, len(made) - cut)
    assert np.allclose(first[: cut - HOP], whole[: cut - HOP])
    assert np.allclose(second[HOP:], whole[cut + HOP :])
    assert level_db(whole[MODEL_RATE:]) == pytest.approx(level_db(source), abs=0.5)
