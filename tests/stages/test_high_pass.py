"""What lies below every voice is taken out of source and result, at once, without a trace of how they are cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from configs import load_preset
from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import CONTENT_RATE, MODEL_RATE, TICK_MODEL, Geometry
from stages.high_pass import RESULT_BLOCKS, RESULT_CHUNKS, Design, HighPass
from stages.line import BlockLine
from stages.recording import FileSampling, LiveRecordingStream, RecordingStream
from stages.settings import CallSettings
from stages.types import EncodeRequest, Mel, Samples, VocodeRequest
from tests.stages.sounds import (
    PROMPT_FRAMES,
    EchoStages,
    SineStages,
    converted,
    noise,
    packets,
    quick_preset,
    silence_only,
    speech,
)

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


# --- the result ---

RESULT = pytest.mark.parametrize("design", [RESULT_BLOCKS, RESULT_CHUNKS], ids=["blocks", "chunks"])
OFFSET = 0.1
SINE_STEP = 2 * np.pi * 220 / MODEL_RATE


def result_sine(hz: float, seconds: float = 2.0) -> Samples:
    return np.asarray(np.sin(2 * np.pi * hz / MODEL_RATE * np.arange(round(seconds * MODEL_RATE))), np.float32)


@RESULT
def test_a_result_keeps_its_bass(design: Design) -> None:
    voice = result_sine(70.0)
    heard = HighPass(design).push(voice + np.float32(OFFSET))
    assert level_db(heard[MODEL_RATE:]) == pytest.approx(level_db(voice[MODEL_RATE:]), abs=0.5)
    assert abs(heard.mean()) < 1e-3


@RESULT
def test_silence_behind_an_offset_is_silent_within_two_steps_and_without_a_click(design: Design) -> None:
    fade = np.linspace(1, 0, TICK_MODEL, dtype=np.float32)
    word = np.concatenate([np.full(100 * design.step, OFFSET, np.float32), OFFSET * fade])
    silence = np.zeros(50 * design.step, np.float32)
    source = np.concatenate([silence, word[::-1], word, silence])
    heard = HighPass(design).push(source)
    end = np.flatnonzero(source)[-1]
    assert not heard[: len(silence)].any() and not heard[end + 2 * design.step :].any()
    assert np.abs(np.diff(heard)).max() < OFFSET / 100


@RESULT
def test_pieces_of_a_result_equal_the_whole(design: Design) -> None:
    source = noise(1.0, MODEL_RATE)[: 120 * design.step] + np.float32(OFFSET)
    source[40 * design.step : 60 * design.step] = 0
    cuts = np.array([9, 11, 40, 41, 55, 90]) * design.step
    filtered = HighPass(design)
    pieces = [filtered.push(piece) for piece in np.split(source, cuts)]
    assert np.array_equal(np.concatenate(pieces), HighPass(design).push(source))


class OffsetStages(SineStages):
    """A vocoder with an offset."""

    def vocode(self, mel: Mel, request: VocodeRequest) -> Samples:
        return np.float32(0.3) * super().vocode(mel, request) + np.float32(OFFSET)


def converting(path: str, *, high_pass: bool = True) -> RecordingStream | LiveRecordingStream:
    """Conversions through a vocoder with an offset, closed only where the source is silent."""
    if path == "file":
        file = quick_preset().file.model_copy(update={"high_pass": high_pass})
        return RecordingStream(OffsetStages(), "anyone", PROMPT_FRAMES, file, FileSampling(0, 1, 0.0), CONTENT_RATE)
    live = LiveSettings(high_pass=high_pass)
    line = BlockLine(live, CallSettings.of(live, "anyone"), gate=silence_only)
    return LiveRecordingStream(OffsetStages(), line, CONTENT_RATE)


@pytest.mark.parametrize("path", ["file", "live"])
def test_a_result_has_no_offset_however_the_source_is_cut(path: str) -> None:
    source = noise(5.0, CONTENT_RATE)
    source[2 * CONTENT_RATE : 3 * CONTENT_RATE] = 0
    made = converted(converting(path), source)
    assert np.array_equal(converted(converting(path), *packets(source, 1, 700)), made)
    assert abs(made.mean()) < 1e-3
    assert not made[round(2.35 * MODEL_RATE) : round(2.9 * MODEL_RATE)].any()
    as_made = converted(converting(path, high_pass=False), source)
    assert len(made) == len(as_made) and as_made.mean() > 0.05
    assert np.abs(np.diff(made)).max() <= np.abs(np.diff(as_made)).max() + 1e-3
    voiced = slice(round(0.5 * MODEL_RATE), round(1.9 * MODEL_RATE))
    assert np.abs(made[voiced] - (as_made[voiced] - OFFSET)).max() < 0.3 * 0.1  # 20 Hz shifts 220 Hz by 5 degrees


def test_lost_skipped_and_passed_on_blocks_of_a_call_do_not_click() -> None:
    live = LiveSettings(high_pass=True)
    line, stages = BlockLine(live, CallSettings.of(live, "anyone"), gate=silence_only), OffsetStages()
    source = sine(200.0, 6.0) * np.float32(0.3)
    heard = []
    for i, block in enumerate(line.push(source, 0.0)):
        if 10 <= i < 13:
            heard.append(line.conceal(block))
        elif 20 <= i < 23:
            heard.append(line.skip(block))
        elif 30 <= i < 33:
            heard.append(line.bypass(block))
        else:
            heard.append(
                line.finish(block, stages.block(block.requests.encode, block.requests.diffuse, VocodeRequest()))
            )
    fade_step = np.pi / 2 / (2 * TICK_MODEL)
    assert np.abs(np.diff(np.concatenate(heard))).max() <= 0.3 * 1.05 * SINE_STEP + fade_step
    for lost in (11, 12, 21, 22):
        assert not heard[lost].any()
    assert abs(np.mean(heard[5:10])) < 2e-3 and abs(np.mean(heard[34:])) < 2e-3
