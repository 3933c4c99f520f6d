"""One geometry: what does not divide is refused, and all sizes follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import load_preset, preset_names
from configs.schema import ConfigError, FileSettings, LiveSettings
from stages.geometry import Geometry, prompt_samples


def test_sizes_of_the_default() -> None:
    geometry = Geometry.from_settings(LiveSettings())
    assert geometry.window_ticks == 138
    assert geometry.window_samples_16k == 44160
    assert geometry.block_samples_16k == 2880
    assert geometry.block_samples == 3969
    assert geometry.return_samples == 5292
    assert geometry.content_frames == 39
    assert geometry.target_frames == 65
    assert prompt_samples(LiveSettings().prompt_ms) == 66150


@pytest.mark.parametrize("name", preset_names())
def test_presets_divide(name: str) -> None:
    geometry = Geometry.from_settings(load_preset(name).live)
    assert geometry.target_frames * 256 >= geometry.return_samples + geometry.tail_samples


def test_the_vocoder_renders_what_is_returned_and_some_of_the_past() -> None:
    geometry = Geometry.from_settings(LiveSettings())
    assert [geometry.vocoder_frames(past) for past in (0, 6, None)] == [23, 29, geometry.target_frames]
    assert geometry.vocoder_frames(1000) == geometry.target_frames
    assert geometry.with_block(6).vocoder_frames(6) == 24


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"block_ms": 190}, "block_ms is 190 ms; it must be a multiple of 20 ms"),
        ({"crossfade_ms": 45}, "crossfade_ms is 45 ms; it must be a multiple of 20 ms"),
        ({"context_ms": 2501}, "context_ms is 2501 ms; it must be a multiple of 20 ms"),
        ({"diffusion_context_ms": 510}, "diffusion_context_ms is 510 ms; it must be a multiple of 20 ms"),
        ({"right_ms": 5}, "right_ms is 5 ms; it must be a multiple of 20 ms"),
        ({"context_ms": 400, "diffusion_context_ms": 500}, "diffusion_context_ms is 500; it must not exceed .* 400"),
        ({"lowest": {"block_ms": 20, "deadline_ms": 240}}, "lowest.block_ms is 20; this preset allows 40 to 680"),
        ({"constant": {"block_ms": 690, "deadline_ms": 1}}, "constant.block_ms is 690; this preset allows 40 to 680"),
        ({"constant": {"block_ms": 190, "deadline_ms": 1}}, "constant.block_ms is 190 ms; it must be a multiple of 20"),
    ],
)
def test_what_does_not_divide_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LiveSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"stream_segment_ms": 30020}, "stream_segment_ms is 30020; Whisper's window holds at most 30000"),
        ({"prompt_ms": 31000}, "prompt_ms is 31000; Whisper's window holds at most 30000"),
        ({"segment_overlap_ms": 180}, "segment_overlap_ms is 180; the cross-fade of 16 mel frames must fit in"),
        ({"context_frames": 2180}, "context_frames is 2180; a prompt of 25000 ms leaves no room"),
    ],
)
def test_impossible_segments_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FileSettings(**settings)


@pytest.mark.parametrize(
    ("ticks", "complaint"),
    [
        ((125, 2, 0, 1, 100), "block_ticks is 0; it must be at least 1"),
        ((125, 0, 9, 1, 100), "crossfade_ticks is 0; it must be at least 1"),
        ((125, 2, 9, 0, 100), "right_ticks is 0; it must be at least 1"),
        ((125, 2, 9, 1, 126), "drop_ticks is 126; it must lie between 0 and the context of 125 ticks"),
        ((125, 2, 9, 1, -1), "drop_ticks is -1"),
    ],
)
def test_impossible_ticks_are_refused(ticks: tuple[int, int, int, int, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Geometry(*ticks)


def test_a_prompt_must_divide() -> None:
    with pytest.raises(ConfigError, match="prompt_ms is 3010 ms"):
        prompt_samples(3010)


@pytest.mark.parametrize("block_ticks", [1, 5, 9, 18, 30])
def test_block_sizes_share_a_window(block_ticks: int) -> None:
    geometry = Geometry.from_settings(LiveSettings())
    other = geometry.with_block(block_ticks)
    assert other.block_ticks == block_ticks
    assert other.window_ticks == geometry.window_ticks
    assert other.target_frames == geometry.target_frames
    assert other.content_frames == geometry.content_frames


def test_a_block_too_large_for_the_window_is_refused() -> None:
    geometry = Geometry.from_settings(LiveSettings())
    with pytest.raises(ConfigError, match="must lie between 0 and the context"):
        geometry.with_block(40)


def test_a_long_cross_fade_is_capped_at_80_ms() -> None:
    geometry = Geometry.from_settings(LiveSettings(crossfade_ms=200))
    assert geometry.sola_ticks == 4
    assert geometry.return_ticks == 9 + 4 + 1


def test_a_preset_whose_sizes_do_not_fit_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    preset = load_preset("tiny").model_dump(mode="json", exclude_unset=True)
    preset["live"]["lowest"] = {"block_ms": 130, "deadline_ms": 240}
    path.write_text(yaml.safe_dump(preset))
    with pytest.raises(ConfigError, match="lowest.block_ms is 130 ms; it must be a multiple of 20 ms"):
        load_preset(path)
