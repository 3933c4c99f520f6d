"""A quiet speaker is raised to what the networks are used to; usual speech, silence and noise stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, TICK_16K, Geometry
from stages.line import BlockRequests, Sampling
from stages.quiet import LOUDEST_DB, NOISE_DB, lift, powers
from stages.types import Samples
from tests.stages.sounds import noise, speech


def level_db(wave: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


def lift_db(wave: Samples) -> float:
    return float(20 * np.log10(lift(powers(wave, TICK_16K))))


def test_usual_speech_is_not_touched() -> None:
    for quieter_db in (0, 6):  # down to -26 dB of full scale
        assert lift_db(speech() * np.float32(10 ** (-quieter_db / 20))) == 0


@pytest.mark.parametrize("quieter_db", [20, 25, 40])
def test_quiet_speech_is_raised_to_one_level(quieter_db: float) -> None:
    quiet = speech() * np.float32(10 ** (-quieter_db / 20))
    raised = powers(quiet * np.float32(lift(powers(quiet, TICK_16K))), TICK_16K)
    assert 10 * np.log10(raised.max()) == pytest.approx(LOUDEST_DB, abs=0.1)


@pytest.mark.parametrize("peak", [1e-4, 1e-3])
def test_noise_does_not_become_loud(peak: float) -> None:
    hiss = noise(3.0, CONTENT_RATE, peak=peak)
    assert level_db(hiss) + lift_db(hiss) <= NOISE_DB + 1


def test_silence_has_nothing_to_raise() -> None:
    assert lift_db(np.zeros(CONTENT_RATE, np.float32)) == 0
    assert lift(np.zeros(0)) == 1


def test_what_the_encoder_hears_of_a_call_does_not_depend_on_the_level() -> None:
    geometry = Geometry.from_settings(LiveSettings())
    sound, sampling = speech()[: 4 * CONTENT_RATE], Sampling(seed=0, steps=1, cfg_rate=0.0)
    heard = [
        [BlockRequests.of(window, "anyone", sampling).encode for window in BlockMaker(geometry).push(sound * gain)]
        for gain in (np.float32(10 ** (-25 / 20)), np.float32(10 ** (-40 / 20)))
    ]
    for one, other in zip(*heard, strict=True):
        if one.samples.any():
            assert level_db(one.samples) == pytest.approx(level_db(other.samples), abs=2.0)
    pitches = [[request.usual_hz or 0.0 for request in requests] for requests in heard]
    assert pitches[0][-1] > 0 and pitches[0] == pytest.approx(pitches[1], rel=0.01)
