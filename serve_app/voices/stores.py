"""Which store a URL means."""

from __future__ import annotations

from pathlib import Path

from configs.places import place_of
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.store import VoiceStore


def open_voice_store(url: str) -> VoiceStore:
    """The store at a folder's path, file:///path or s3://bucket/prefix; ConfigError for what is none of these."""
    place = place_of(url)
    if isinstance(place, Path):
        return FolderVoiceStore(place)
    from serve_app.voices.s3 import S3VoiceStore  # boto3 loads only where it is used

    return S3VoiceStore(place)
