"""The voices that come with the service: recordings in a folder, and what `voices.yaml` beside it says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from serve_app.voices.store import VoiceRecord, checked_id

PREMADE_FOLDER = Path(__file__).resolve().parents[2] / "samples" / "voices"


def premade_records(folder: Path = PREMADE_FOLDER) -> Iterator[VoiceRecord]:
    """The voices that `voices.yaml` beside the folder lists; none where there is no such file."""
    index = folder.with_suffix(".yaml")
    if not index.exists():
        return
    for entry in yaml.safe_load(index.read_text(encoding="utf-8")):
        premade_recording(checked_id(entry["id"]), folder)
        yield VoiceRecord(
            voice_id=entry["id"],
            name=entry["name"],
            category="premade",
            description=entry.get("description"),
            labels=entry.get("labels", {}),
        )


def premade_recording(voice_id: str, folder: Path = PREMADE_FOLDER) -> Path:
    """The one recording of a premade voice, whatever its format."""
    found = sorted(folder.glob(f"{voice_id}.*"))
    if len(found) != 1:
        raise ValueError(f"{folder} must hold one recording of {voice_id!r}; it holds {len(found)}")
    return found[0]
