"""Which store a URL means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.store import VoiceStore


def open_voice_store(url: str) -> VoiceStore:
    """The store at a folder path or file:// URL; ValueError for a kind of storage that is not supported."""
    if "://" not in url:
        return FolderVoiceStore(Path(url).expanduser())
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderVoiceStore(Path(unquote(parts.path)))
    raise ValueError(
        f"voices are kept in a folder (a path or file:///path); {parts.scheme}:// is not supported yet: {url}"
    )
