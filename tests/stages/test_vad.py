"""The speech gate: no word loses its begin or end, silence and background noise spare the networks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, TICK_16K, Geometry
from stages.types import Samples
from stages.vad import AHEAD_TICKS, HOLD_TICKS, SpeechGate
from tests.stages.sounds import noise, speech, with_pauses

AUDIBLE_DB = -45.0


def level_db(samples: Samples) -> NDArray[np.float64]:
    """RMS of each tick."""
    power = (samples.astype(np.float64).reshape(-1, TICK_16K) ** 2).mean(axis=1)
    return np.asarray(10 * np.log10(power + 1e-12))


def gated(sound: Samples, block_ms: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which ticks of a call are let through, as its blocks have it, and which blocks go to the networks."""
    geometry = Geometry.from_settings(LiveSettings(), block_ms)
    gate, opened, sent = SpeechGate(), [], []
    for window in BlockMaker(geometry).push(sound):
        gains = window.returned_ticks(gate(window.samples, geometry.block_ticks))
        opened.append(gains[: geometry.block_ticks] > 0)
        sent.append(gains.any())
    # A block's output ends `lag` ticks before its newest sample.
    return np.concatenate(opened)[geometry.lag_ticks :], np.array(sent)


@pytest.mark.parametrize("block_ms", [60, 120, 180])
@pytest.mark.parametrize(
    ("speech_db", "noise_db", "may_miss"),
    [
        *[(0, None, 0.0), (0, -50, 0.001), (0, -40, 0.002), (-15, None, 0.002), (-15, -50, 0.005)],
        *[(-25, None, 0.002), (-25, -60, 0.005), (-40, None, 0.002), (-40, -75, 0.005)],  # -45 and -60 dB of full scale
    ],
)
def test_words_are_whole_and_pauses_are_skipped(
    block_ms: int, speech_db: float, noise_db: float | None, may_miss: float
) -> None:
    clean = with_pauses(speech())
    sound = clean * np.float32(10 ** (speech_db / 20))
    if noise_db is not None:
        sound = sound + noise(len(sound) / CONTENT_RATE, CONTENT_RATE, peak=10 ** (noise_db / 20) * 3**0.5)
    opened, sent = gated(sound, block_ms)
    audible = np.asarray(level_db(clean) > AUDIBLE_DB)[: len(opened)]
    assert audible.sum() > 1000
    assert (audible & ~opened).sum() <= may_miss * audible.sum()
    n = block_ms // 20
    pauses = np.asarray(~audible[: len(audible) // n * n].reshape(-1, n).any(axis=1))
    assert sent[: len(pauses)][pauses].mean() <= 0.25  # with all hang-overs, in pauses of 2.5 s


@pytest.mark.parametrize("peak", [0.0, 1e-4, 3e-4, 1e-3, 1e-2])
def test_lasting_background_noise_is_skipped(peak: float) -> None:
    _, sent = gated(noise(20.0, CONTENT_RATE, peak=peak), 180)
    assert sent.mean() <= 0.05


def test_hiss_after_a_muted_microphone_is_no_quiet_speaker() -> None:
    _, sent = gated(
        np.concatenate([np.zeros(10 * CONTENT_RATE, np.float32), noise(10.0, CONTENT_RATE, peak=1e-3)]), 120
    )
    assert sent.mean() <= 0.05


def test_a_slammed_door_does_not_deafen_the_gate() -> None:
    quiet = with_pauses(speech()[: 6 * CONTENT_RATE]) * np.float32(10 ** (-40 / 20))
    slammed = quiet.copy()
    slammed[:1600] += noise(0.1, CONTENT_RATE, peak=0.9)
    usual, after = gated(quiet, 120)[0], gated(slammed, 120)[0]
    assert np.mean(usual[100:] == after[100:]) > 0.97


def test_the_gate_is_open_no_longer_than_it_says() -> None:
    tone = np.sin(2 * np.pi * 150 * np.arange(CONTENT_RATE) / CONTENT_RATE)
    burst = (0.3 * tone * np.sign(tone)).astype(np.float32)
    pause = np.zeros(2 * CONTENT_RATE, np.float32)
    opened, _ = gated(np.concatenate([pause, burst, pause]), 180)
    first, last = np.flatnonzero(opened)[[0, -1]]
    assert 100 - AHEAD_TICKS <= first <= 100
    assert 150 + HOLD_TICKS - 1 <= last <= 150 + HOLD_TICKS + 10  # the detector has a little hang-over of its own


def test_how_the_sound_is_cut_into_blocks_does_not_matter() -> None:
    sound = with_pauses(speech()[: 8 * CONTENT_RATE])
    small, large = gated(sound, 60)[0], gated(sound, 180)[0]
    n = min(len(small), len(large))
    # A larger block knows a little more of what comes: it may open earlier, never later.
    assert not (small[:n] & ~large[:n]).any()
