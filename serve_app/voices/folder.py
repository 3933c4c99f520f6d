"""Voices in a folder that several processes may share."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import wave
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from serve_app.errors import (
    NotStored,
    StoreAway,
    VoiceDamaged,
    VoiceError,
    VoiceExists,
    VoiceIsReadOnly,
    VoiceNotFound,
)
from serve_app.voices.premade import PREMADE_FOLDER, premade_recording, premade_records
from serve_app.voices.store import (
    INT16_STEPS,
    VOICE_ID,
    VoiceRecord,
    as_int16,
    checked_id,
    read_record,
    write_record,
)
from webrtc.files.errors import check_rate

if TYPE_CHECKING:
    from stages.types import Voice

log = logging.getLogger("seedvc.voices")

_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LEFTOVER_AGE_S = 3600.0
_MAX_RECORD_BYTES = 2**20
_MAX_REFERENCE_BYTES = 2**26
_DOOMED = "delete-"


class FolderVoiceStore:
    """Voices in a folder that several processes may share.

    `voices/<id>/` holds `record.json`, `reference.wav` (16 bit mono) and `features-<fingerprint>.safetensors`;
    `premade/<id>/` holds only features, since the recordings of premade voices lie read-only elsewhere; their files'
    names hold a digest of the recording too, as an update may bring another one under the same id. A voice
    appears and vanishes by one rename of its folder, and files appear by rename, so a reader or a crash never meets
    half a voice.
    """

    def __init__(self, root: Path, premade: Path = PREMADE_FOLDER) -> None:
        self._voices = root / "voices"
        self._premade_features = root / "premade"
        self._scratch = root / "scratch"
        for folder in (self._voices, self._premade_features, self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        _sweep(self._scratch)
        self._premade_folder = premade
        self._told: set[str] = set()
        self._told_features: set[str] = set()
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._premade = {record.voice_id: record for record in premade_records(premade)}

    def list(self) -> list[VoiceRecord]:
        """All voices: the premade ones, then the others, oldest first."""
        own, damaged = [], set()
        for folder in self._entries():
            if folder.name in self._premade or not VOICE_ID.fullmatch(folder.name):
                continue  # not ours
            try:
                own.append(self.get(folder.name))
            except VoiceDamaged as error:
                damaged.add(folder.name)
                if folder.name not in self._told:
                    log.warning("the voice %s is left out: %s", folder.name, _reason(error))
            except VoiceNotFound:
                pass  # deleted since the folder was listed
        self._told = damaged  # a voice that is mended and breaks again is logged again
        return [*self._premade.values(), *sorted(own, key=lambda record: (record.created_at_unix, record.voice_id))]

    def get(self, voice_id: str) -> VoiceRecord:
        """One voice."""
        premade = self._premade.get(checked_id(voice_id))
        if premade is not None:
            return premade
        record = self._read(voice_id)
        if self._is_over(record):
            raise VoiceNotFound(voice_id)
        return record

    def add(self, record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        """Keeps a new voice with its reference recording; VoiceExists where the id is taken."""
        voice_id = checked_id(record.voice_id)
        if voice_id in self._premade:
            raise VoiceExists(voice_id)
        with _changing(), self._workplace("add-") as folder:
            _write(folder / "reference.wav", _wav(samples, sample_rate))
            _write(folder / "record.json", write_record(record))
            _flush_folder(folder)
            try:
                folder.rename(self._voices / voice_id)
            except OSError as error:  # the folder of a voice is never empty
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise VoiceExists(voice_id) from error
                raise
            _flush_folder(self._voices)

    def update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        """Changes fields of a voice's record by one rename; of two changes at once the later one counts."""
        if checked_id(voice_id) in self._premade:
            raise VoiceIsReadOnly(voice_id)
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

    def delete(self, voice_id: str) -> None:
        """Forgets a voice, its recording and features; VoiceIsReadOnly for a premade one."""
        if checked_id(voice_id) in self._premade:
            raise VoiceIsReadOnly(voice_id)
        with _changing():
            try:
                doomed = self._move_away(self._voices / voice_id)
            except FileNotFoundError as error:
                self._entries()
                raise VoiceNotFound(voice_id) from error
            _flush_folder(self._voices)
        _discard(doomed)

    def renew(self, voice_id: str) -> None:
        """Counts the voice as used now: its record's time of change is the time of its last use."""
        if self.get(voice_id).expires_s is not None:
            with _changing(), self._reading(voice_id):
                os.utime(self._voices / voice_id / "record.json")

    def sweep(self) -> None:
        """Forgets the voices whose time is over."""
        for folder in self._entries():
            # Another process may forget it now, and an unreadable record has no time that could be over.
            with suppress(VoiceError):
                if self._is_over(self._read(checked_id(folder.name))):
                    self.delete(folder.name)

    def _read(self, voice_id: str) -> VoiceRecord:
        with self._reading(voice_id):
            data = _read(self._voices / voice_id / "record.json", _MAX_RECORD_BYTES)
        return read_record(data, voice_id)

    def _is_over(self, record: VoiceRecord) -> bool:
        if record.expires_s is None:
            return False
        with self._reading(record.voice_id):
            used_s = (self._voices / record.voice_id / "record.json").stat().st_mtime
        return used_s + record.expires_s < datetime.now(UTC).timestamp()

    def reference(self, voice_id: str) -> tuple[np.ndarray, int]:
        """The reference recording, float32 mono in [-1, 1], and its sample rate."""
        if checked_id(voice_id) in self._premade:
            from webrtc.files import NotAudio, decode_file

            try:
                return decode_file(self._premade_recording(voice_id))
            except (NotAudio, OSError) as error:
                raise VoiceDamaged(voice_id) from error
        with self._reading(voice_id):
            data = _read(self._voices / voice_id / "reference.wav", _MAX_REFERENCE_BYTES)
        try:
            return _samples_of(data)
        except (wave.Error, EOFError, ValueError) as error:
            raise VoiceDamaged(voice_id) from error

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        """The features that the weights of that fingerprint made, or None where they are still to be made."""
        from stages.types import Voice

        self.get(voice_id)
        path = self._features_path(voice_id, fingerprint)
        try:
            _require_plain(path.stat())
            voice = Voice.load(path)
            if voice.fingerprint != fingerprint:
                raise ValueError("they are of other weights")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            if voice_id not in self._told_features:
                log.warning("the features of the voice %s are damaged; they are made again when needed", voice_id)
            self._told_features.add(voice_id)
            return None
        self._told_features.discard(voice_id)
        return voice

    def stamp(self, voice_id: str, fingerprint: str) -> object:
        """What changes whenever those features do; VoiceNotFound where there are none."""
        try:
            about = self._features_path(checked_id(voice_id), fingerprint).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            self._entries()
            raise VoiceNotFound(voice_id) from error
        return about.st_ino, about.st_mtime_ns, about.st_size

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """Keeps the features that the weights of that fingerprint made."""
        self.get(voice_id)
        path = self._features_path(voice_id, fingerprint)
        with _changing():
            if voice_id in self._premade:
                path.parent.mkdir(exist_ok=True)
            with self._workplace("features-") as folder:
                made = folder / path.name
                voice.save(made)
                _flush(made)
                if path.is_dir() and not path.is_symlink():  # a rename does not replace a folder
                    _discard(self._move_away(path))
                try:
                    os.replace(made, path)
                    _flush_folder(path.parent)
                except FileNotFoundError as error:
                    raise VoiceNotFound(voice_id) from error

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

    def _premade_recording(self, voice_id: str) -> Path:
        try:
            return premade_recording(voice_id, self._premade_folder)
        except ValueError as error:
            raise VoiceDamaged(voice_id) from error

    def _digest(self, voice_id: str) -> str:
        """16 hex digits over a premade voice's recording, which is read again only where it has changed."""
        path = self._premade_recording(voice_id)
        try:
            about = path.stat()
            key = (path, about.st_mtime_ns, about.st_size)
            if key not in self._digests:
                self._digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise VoiceDamaged(voice_id) from error
        return self._digests[key]

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

    def _features_path(self, voice_id: str, fingerprint: str) -> Path:
        assert _FINGERPRINT.fullmatch(fingerprint), fingerprint
        if voice_id in self._premade:
            made_of = f"{fingerprint}-{self._digest(voice_id)}"
            return self._premade_features / voice_id / f"features-{made_of}.safetensors"
        return self._voices / voice_id / f"features-{fingerprint}.safetensors"


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


def _reason(error: VoiceDamaged) -> str:
    """The reason of an error, without content of the voice's files."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return f"{cause.strerror or cause}"
    if isinstance(cause, ValidationError):
        return "its record: " + "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in cause.errors())
    return "its record is no JSON object" if cause is not None else str(error)


def _read(path: Path, max_bytes: int) -> bytes:
    """A whole file; OSError where it is no plain file, or a longer one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        _require_plain(about)
        if about.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")
        return file.read()


def _require_plain(about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "not a plain file")


def _samples_of(wav: bytes) -> tuple[np.ndarray, int]:
    """The samples and rate of a file that `_wav` made; raises where the file is another, or incomplete."""
    with wave.open(io.BytesIO(wav), "rb") as recording:
        about, frames = recording.getparams(), recording.readframes(recording.getnframes())
    if about[:2] != (1, 2) or not about.nframes or len(frames) != 2 * about.nframes:
        raise ValueError("not a whole recording of 16 bit, mono")
    check_rate(about.framerate)
    return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(INT16_STEPS), about.framerate


def _wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as recording:
        recording.setparams((1, 2, sample_rate, 0, "NONE", ""))
        recording.writeframes(as_int16(samples).tobytes())
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """A new file, on the disk before the rename that makes it visible."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Brings a file's content to the disk."""
    with open(path, "rb") as file:
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
