"""What lies below every voice is taken out of a source, at once and without a trace of how it is cut into pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from configs import load_preset
from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, Geometry
from stages.high_pass import HighPass
from stages.line import BlockLine
from stages.recording import FileSampling, LiveRecordingStream, RecordingStream
from stages.settings import CallSettings
from stages.types import EncodeRequest, Samples
from tests.stages.sounds import PROMPT_FRAMES, EchoStages, converted, noise, packets, quick_preset, speech

GEOMETRY = Geometry.from_settings(LiveSettings())


def sine(hz: float, seconds: float = 2.0) -> Samples:
    return np.asarray(np.sin(2 * np.pi * hz / CONTENT_RATE * np.arange(round(seconds * CONTENT_RATE))), np.float32)


def level_db(wave: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-20))


@pytest.mark.parametrize(
    ("hz", "least_db", "most_db"), [(5, -300, -60), (15, -300, -30), (60, -0.5, 0), (1000, -0.1, 0.1)]
)
def test_rumble_goes_and_a_bass_stays(hz: float, least_db: float, most_db: float) -> None:
    source = sine(hz)
    change_db = level_db(HighPass().push(source)[CONTENT_RATE:]) - level_db(source[CONTENT_RATE:])
    assert least_db <= change_db <= most_db


def test_an_offset_goes_from_the_first_sample_on() -> None:
    """No thump at the beginning: what a recording begins with has always been there."""
    voice = 0.03 * sine(200.0)
    clean, offset = HighPass().push(voice), HighPass().push(voice + np.float32(0.2))
    assert np.abs(clean - offset).max() < 1e-5
    assert not HighPass().push(np.full(999, 0.7, np.float32)).round(6).any()


def test_pieces_equal_the_whole() -> None:
    source = noise(1.0, CONTENT_RATE) + np.float32(0.1)
    whole, filtered = HighPass().push(source), HighPass()
    assert np.array_equal(np.concatenate([filtered.push(piece) for piece in np.split(source, 50)]), whole)
    assert len(HighPass().push(source[:333])) == 333


def test_a_call_hears_its_source_without_offset_however_it_is_cut() -> None:
    source = noise(2.0, CONTENT_RATE, peak=0.05) + np.float32(0.2)
    windows = [
        np.stack([w.samples for piece in pieces for w in maker.push(piece)])
        for maker, pieces in (
            (BlockMaker(GEOMETRY, high_pass=True), [source]),
            (BlockMaker(GEOMETRY, high_pass=True), packets(source, 1, 700)),
        )
    ]
    assert np.array_equal(windows[0], windows[1])
    assert abs(windows[0][-1].mean()) < 1e-3


@dataclass
class Listening(EchoStages):
    """Stages that note the mean of what the encoder gets."""

    means: list[float] = field(default_factory=list)

    def encode(self, request: EncodeRequest) -> Samples:
        self.means.append(float(abs(request.samples[-CONTENT_RATE // 2 :].mean())))
        return super().encode(request)


@pytest.mark.parametrize("preset", ["tiny", "seed-vc-small"])
@pytest.mark.parametrize("path", ["file", "live"])
def test_a_conversion_hears_no_offset(path: str, preset: str) -> None:
    chosen, stages = load_preset(preset), Listening()
    stream: RecordingStream | LiveRecordingStream
    if path == "file":
        file = quick_preset().file.model_copy(update={"high_pass": chosen.file.high_pass})
        stream = RecordingStream(stages, "anyone", PROMPT_FRAMES, file, FileSampling(0, 1, 0.0), CONTENT_RATE)
    else:
        line = BlockLine(chosen.live, CallSettings.of(chosen.live, "anyone"))
        stream = LiveRecordingStream(stages, line, CONTENT_RATE)
    converted(stream, 0.1 * speech()[: 4 * CONTENT_RATE] + np.float32(0.2))
    assert stages.means and max(stages.means) < 5e-3
