"""Presets for tests on machines that have more to do."""

from pathlib import Path

import yaml

from configs.schema import PRESET_FOLDER


def unhurried_preset(folder: Path) -> Path:
    """The tiny preset with longer blocks and later deadlines: what is tested is not how fast this machine is."""
    path = folder / "unhurried.yaml"
    tree = yaml.safe_load((PRESET_FOLDER / "tiny.yaml").read_text())
    mode = {"block_ms": 360, "deadline_ms": 1000}
    live = tree["live"] | {"lowest": mode, "constant": mode}
    path.write_text(yaml.safe_dump(tree | {"live": live, "weights": str(PRESET_FOLDER / tree["weights"])}))
    return path
