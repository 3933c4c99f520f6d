"""`seedvc plan`: the sizes and delays that follow from a preset."""

from __future__ import annotations

import argparse

from configs import ConfigError, load_preset
from serve_app.commands import UserMistake, say


def run(args: argparse.Namespace) -> None:
    """Prints the geometry of live blocks and of the chunks of recordings."""
    from stages.geometry import HOP, MODEL_RATE, TICK_MS, Geometry

    try:
        preset = load_preset(args.preset)
        geometry = Geometry.from_settings(preset.live)
    except ConfigError as error:
        raise UserMistake(str(error)) from error
    live, file = preset.live, preset.file
    frame_ms = HOP * 1000 / MODEL_RATE
    rows = [
        ("preset", preset.name),
        ("live: new sound per block", f"{geometry.block_ticks * TICK_MS} ms"),
        ("live: window", f"{geometry.window_ticks * TICK_MS} ms, {geometry.window_samples_16k} samples at 16 kHz"),
        ("live: rendered", f"{geometry.target_frames} mel frames, {geometry.target_frames * frame_ms:.0f} ms"),
        ("live: prompt", f"{live.prompt_ms} ms"),
        ("live: cross-fade", f"{geometry.crossfade_ticks * TICK_MS} ms"),
        ("live: look-ahead", f"{geometry.right_ticks * TICK_MS} ms"),
        ("live: sampling", f"{live.steps} steps, guidance {live.cfg_rate:g}"),
        ("files: window", f"{file.segment_ms} ms, {file.segment_overlap_ms} ms of it shared with the next"),
        (
            "files: window while streaming",
            f"{file.stream_segment_ms} ms, {file.stream_segment_overlap_ms} ms of it shared with the next",
        ),
        ("files: prompt", f"up to {file.prompt_ms} ms"),
        ("files: chunk with its prompt", f"{file.context_frames} mel frames, {file.context_frames * frame_ms:.0f} ms"),
        ("files: sampling", f"{file.steps} steps, guidance {file.cfg_rate:g}"),
    ]
    for name, value in rows:
        say(f"{name:<32}{value}")
