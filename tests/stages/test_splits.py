"""However incoming sound is cut into packets, the output is the same to the bit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest

from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, MODEL_RATE, Geometry
from stages.local import LocalStages, drain
from stages.recording import LiveRecordingStream, RecordingStream
from stages.resample import ContentRateStream, ModelRateStream, to_content_rate, to_model_rate
from stages.types import Samples, Voice
from tests.stages.sounds import (
    EchoStages,
    call,
    converted,
    live_recording,
    noise,
    packets,
    quick_preset,
    recording,
    run_through,
)

RATES = (8000, 16000, 22050, 44100, 48000, 96000)
LARGEST = (1, 37, 1000, 20000)


def windows_of(pieces: Iterable[Samples]) -> tuple[Samples, list[int]]:
    maker = BlockMaker(Geometry.from_settings(quick_preset().live))
    windows = [window for piece in pieces for window in maker.push(piece)]
    return np.stack([window.samples for window in windows]), [window.end_tick for window in windows]


@pytest.mark.parametrize("largest", LARGEST)
def test_blocks(largest: int) -> None:
    source = noise(1.0, CONTENT_RATE)
    windows, ends = windows_of([source])
    again, ends_again = windows_of(packets(source, 1, largest))
    assert ends == ends_again == [9, 18, 27, 36, 45]
    assert np.array_equal(windows, again)
    assert np.array_equal(windows[-1][-2880:], source[4 * 2880 : 5 * 2880])


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("largest", LARGEST)
def test_resampling_to_the_model(sample_rate: int, largest: int) -> None:
    source = noise(0.2 if largest == 1 else 1.5, sample_rate)
    whole = run_through(ModelRateStream(sample_rate), iter([source]))
    assert np.array_equal(run_through(ModelRateStream(sample_rate), packets(source, 2, largest)), whole)
    assert len(whole) == pytest.approx(len(source) * MODEL_RATE / sample_rate, abs=1)
    assert np.allclose(whole, to_model_rate(source, sample_rate), atol=1e-6)


@pytest.mark.parametrize("n_samples", [1, 2, 440, 441, 442, 4410, 4851, 5292, 5293, 9999, 30001])
def test_resampling_to_the_encoder(n_samples: int) -> None:
    source = noise(n_samples / MODEL_RATE, MODEL_RATE)
    whole = run_through(ContentRateStream(), iter([source]))
    expected = to_content_rate(source)
    assert len(whole) == len(expected)
    assert np.allclose(whole, expected, atol=1e-6)
    for seed, largest in enumerate(LARGEST):
        assert np.array_equal(run_through(ContentRateStream(), packets(source, seed, largest)), whole)


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("path", ["file", "stream", "live"])
def test_recording(sample_rate: int, path: str) -> None:
    def fresh() -> RecordingStream | LiveRecordingStream:
        if path == "live":
            return live_recording(EchoStages(), sample_rate)
        return recording(EchoStages(), sample_rate, streaming=path == "stream")

    source = noise(5.3, sample_rate)
    whole = converted(fresh(), source)
    assert np.abs(whole).max() > 0.1
    for seed, largest in enumerate((sample_rate // 50, sample_rate // 3, sample_rate * 4)):
        assert np.array_equal(converted(fresh(), *packets(source, seed, largest)), whole)
    short = source[: sample_rate // 10]
    assert np.array_equal(converted(fresh(), *packets(short, 0, 1)), converted(fresh(), short))


@pytest.mark.parametrize("live", [False, True])
def test_recording_through_networks(quick_stages: LocalStages, quick_voice: Voice, live: bool) -> None:
    source = noise(0.9 if live else 2.1, 44100)
    outputs = []
    for pieces in ([source], packets(source, 1, 900), packets(source, 2, 20000)):
        open_stream = quick_stages.streams.live_recording if live else quick_stages.streams.recording
        outputs.append(converted(open_stream(quick_voice, sample_rate=44100, seed=5), *pieces))
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("largest", LARGEST)
def test_call(largest: int) -> None:
    source = noise(1.0, CONTENT_RATE)
    outputs = []
    for pieces in ([source], packets(source, 6, largest)):
        stream = call(EchoStages())
        outputs.append([wave for piece in pieces for wave in drain(partial(stream.push, piece))])
    assert len(outputs[0]) == len(outputs[1]) == 5
    assert np.array_equal(np.stack(outputs[0]), np.stack(outputs[1]))
