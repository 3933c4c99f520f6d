"""Voices in a folder that several processes may share."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve_app.errors import NotStored, StoreAway, VoiceDamaged, VoiceError, VoiceExists, VoiceNotFound
from serve_app.voices.base import MAX_FILE_BYTES, MAX_RECORD_BYTES, REFERENCE, BaseVoiceStore, Entry
from serve_app.voices.premade import PREMADE_FOLDER
from serve_app.voices.store import VOICE_ID, VoiceRecord, read_record, write_record

log = logging.getLogger("seedvc.voices")

_LEFTOVER_AGE_S = 3600.0
_DOOMED = "delete-"


class FolderVoiceStore(BaseVoiceStore):
    """Voices in a folder that several processes may share.

    `voices/<id>/` holds `record.json`, `reference.wav` (16 bit mono) and `features-<fingerprint>.safetensors`;
    `premade/<id>/` holds only features, since the recordings of premade voices lie read-only elsewhere; their files'
    names hold a digest of the recording too, as an update may bring another one under the same id. A voice
    appears and vanishes by one rename of its folder, and files appear by rename, so a reader or a crash never meets
    half a voice.
    """

    def __init__(self, root: Path, premade: Path = PREMADE_FOLDER) -> None:
        super().__init__(premade)
        self._root = root
        self._voices = root / "voices"
        self._scratch = root / "scratch"
        for folder in (self._voices, root / "premade", self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        _sweep(self._scratch)

    def check(self) -> None:
        """As VoiceStore."""
        self._entries()

    def ids(self) -> list[str]:
        """As VoiceStore."""
        names = [entry.name for entry in self._entries()]
        return [name for name in names if VOICE_ID.fullmatch(name) and name not in self._premade]

    def stamps(self, voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        """As VoiceStore."""
        found: dict[str, object] = {}
        for voice_id in voice_ids:
            with suppress(VoiceNotFound):
                home, name = self._features_place(voice_id, fingerprint)
                with suppress(FileNotFoundError):
                    about = (self._root / home / name).stat()
                    found[voice_id] = about.st_ino, about.st_mtime_ns, about.st_size
        return found

    def _read(self, voice_id: str) -> Entry:
        with self._reading(voice_id):
            data, changed_s = _read(self._voices / voice_id / "record.json", MAX_RECORD_BYTES)
        return Entry(read_record(data, voice_id), f"voices/{voice_id}", changed_s)

    def _add(self, record: VoiceRecord, wav: bytes) -> None:
        with _changing(), self._workplace("add-") as folder:
            _write(folder / REFERENCE, wav)
            _write(folder / "record.json", write_record(record))
            _flush_folder(folder)
            try:
                folder.rename(self._voices / record.voice_id)
            except OSError as error:  # the folder of a voice is never empty
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise VoiceExists(record.voice_id) from error
                raise
            _flush_folder(self._voices)

    def _update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        changed = replace(self.get(voice_id), **changes)
        home = self._voices / voice_id
        with _changing(), self._workplace("update-") as folder:
            _write(folder / "record.json", write_record(changed))
            try:
                os.replace(folder / "record.json", home / "record.json")
                _flush_folder(home)
            except FileNotFoundError as error:
                raise VoiceNotFound(voice_id) from error
        return changed

    def _delete(self, voice_id: str) -> None:
        with _changing():
            try:
                doomed = self._move_away(self._voices / voice_id)
            except FileNotFoundError as error:
                self._entries()
                raise VoiceNotFound(voice_id) from error
            _flush_folder(self._voices)
        _discard(doomed)

    def _renew(self, entry: Entry) -> None:
        with _changing(), self._reading(entry.record.voice_id):
            os.utime(self._root / entry.home / "record.json")

    def _used_s(self, entry: Entry) -> float:
        return entry.changed_s

    def _read_file(self, home: str, name: str) -> bytes:
        return _read(self._root / home / name, MAX_FILE_BYTES)[0]

    def _write_file(self, home: str, name: str, data: bytes) -> None:
        path = self._root / home / name
        if path.parent.parent != self._voices:
            path.parent.mkdir(exist_ok=True)
        with _changing(), self._workplace("features-") as folder:
            _write(folder / name, data)
            if path.is_dir() and not path.is_symlink():  # a rename does not replace a folder
                _discard(self._move_away(path))
            try:
                os.replace(folder / name, path)
                _flush_folder(path.parent)
            except FileNotFoundError as error:
                raise VoiceNotFound(path.parent.name) from error

    def _entries(self) -> Iterable[Path]:
        """What is there beside the premade voices."""
        try:
            return sorted(self._voices.iterdir())
        except OSError as error:
            log.error("the storage of voices cannot be reached: %s", error.strerror or error)
            raise StoreAway("the storage of voices does not answer now; try again soon") from error

    @contextmanager
    def _workplace(self, prefix: str) -> Iterator[Path]:
        """A folder to put something together in, which is gone afterwards."""
        self._scratch.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._scratch))
        try:
            yield folder
        finally:
            if folder.exists():
                _discard(folder)

    def _move_away(self, path: Path) -> Path:
        """Moves something out of the way in one step, and returns where it is, so that it can be removed."""
        self._scratch.mkdir(exist_ok=True)
        doomed = self._scratch / f"{_DOOMED}{secrets.token_hex(8)}"
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.chmod(0o700)  # a folder that may not be written does not move either
        path.rename(doomed)
        return doomed

    @contextmanager
    def _reading(self, voice_id: str) -> Iterator[None]:
        """VoiceDamaged where a file of a voice cannot be read, VoiceNotFound where its whole folder is missing."""
        try:
            yield
        except OSError as error:
            if not os.path.lexists(self._voices / voice_id):
                self._entries()
                raise VoiceNotFound(voice_id) from error
            raise VoiceDamaged(voice_id) from error


@contextmanager
def _changing() -> Iterator[None]:
    """NotStored, in words, where the storage refuses a change."""
    try:
        yield
    except (VoiceError, StoreAway):
        raise
    except OSError as error:
        log.error("voices cannot be changed: %s", error.strerror or error)
        raise NotStored(f"voices cannot be changed now: {error.strerror or error}") from error


def _read(path: Path, max_bytes: int) -> tuple[bytes, float]:
    """A whole file and when it was changed; OSError where it is no plain file, or a longer one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        if about.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")
        return file.read(), about.st_mtime


def _write(path: Path, data: bytes) -> None:
    """A new file, on the disk before the rename that makes it visible."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Brings a rename in the folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(scratch: Path) -> None:
    """Removes leftovers of a crash: deleted voices at once, other files after an hour.

    Younger files may belong to a process at work.
    """
    newest_s = datetime.now(UTC).timestamp() - _LEFTOVER_AGE_S
    for leftover in scratch.iterdir():
        with suppress(FileNotFoundError):
            if leftover.name.startswith(_DOOMED) or leftover.lstat().st_mtime < newest_s:
                _discard(leftover)


def _discard(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
    if os.path.lexists(path):
        log.warning("something in %s could not be removed; the next start tries again", path)
