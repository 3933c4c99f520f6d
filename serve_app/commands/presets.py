"""`seedvc presets`: what there is to choose from."""

from __future__ import annotations

import argparse

from configs import load_preset, preset_names
from serve_app.commands import say


def run(args: argparse.Namespace) -> None:
    """Prints name, description and licence of each preset."""
    for name in preset_names():
        preset = load_preset(name)
        say(f"{name:<16}{preset.description}")
        say(f"{'':<16}licence: {preset.licence}")
