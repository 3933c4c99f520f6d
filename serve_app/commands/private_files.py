"""Files that only this user can read, and the folder for those that outlast a run."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from serve_app.commands import UserMistake

FOLDER_MODE, FILE_MODE = 0o700, 0o600


def state_folder() -> Path:
    """`seedvc-serve` in XDG_STATE_HOME or in ~/.local/state; UserMistake where there is no place for it."""
    states = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not states.is_absolute():  # unset, or against its specification
        try:
            states = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise UserMistake(
                "there is no home folder to keep certificate and key in: HOME is not set, and this user has none; "
                "set XDG_STATE_HOME to a folder"
            ) from error
    return states / "seedvc-serve"


def read_private(file: Path) -> bytes:
    """What a file holds; UserMistake where others can read it, since then they may know it."""
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise UserMistake(f"others can read {file}: remove it, and a new one is made")
        return file.read_bytes()
    except OSError as error:
        raise UserMistake(f"cannot read {file}: {os.strerror(error.errno or 0)}") from error


def write_private(file: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all; UserMistake where its folder cannot be written to."""
    try:
        file.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=file.parent)  # 0600 from the start
        with os.fdopen(descriptor, "wb") as draft:
            draft.write(content)
        os.replace(path, file)
    except OSError as error:
        raise UserMistake(f"cannot write {file}: {os.strerror(error.errno or 0)}") from error
