"""Voices: the reference recording of each, what is known about it, and the features made from it."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import yaml

if TYPE_CHECKING:
    from stages.types import Voice

PREMADE_FOLDER = Path(__file__).resolve().parents[2] / "samples" / "voices"

_VOICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_INT16_STEPS = 32767
_LEFTOVER_AGE_S = 3600.0


class VoiceError(Exception):
    """A voice that cannot be had, made or changed; the message names it."""

    message = "{voice_id!r}"

    def __init__(self, voice_id: str) -> None:
        super().__init__(voice_id)  # the one argument, so that the error survives pickling between replicas
        self.voice_id = voice_id

    def __str__(self) -> str:
        return self.message.format(voice_id=self.voice_id[:80])


class VoiceNotFound(VoiceError, LookupError):
    """No voice of that id."""

    message = "there is no voice with the id {voice_id!r}"


class InvalidVoiceId(VoiceError, ValueError):
    """An id that no voice can have."""

    message = "a voice id is 1 to 64 letters, digits, '_' or '-'; got {voice_id!r}"


class VoiceIsReadOnly(VoiceError):
    """A premade voice was to be changed."""

    message = "the voice {voice_id!r} is premade and cannot be changed or deleted"


class VoiceExists(VoiceError, ValueError):
    """A second voice under an id that is taken."""

    message = "there is already a voice with the id {voice_id!r}"


@dataclass(frozen=True, slots=True)
class VoiceRecord:
    """What is known about a voice, without its sound."""

    voice_id: str
    name: str
    category: Literal["premade", "cloned"] = "cloned"
    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at_unix: int = 0
    duration_s: float | None = None
    sample_rate: int | None = None
    reference: Mapping[str, Any] | None = None
    """How good the reference is (stages.reference.ReferenceReport); unknown for premade and for older voices."""


class VoiceStore(Protocol):
    """Keeps voices. Methods block on storage, so coroutines call them through a thread; all raise VoiceNotFound."""

    def list(self) -> list[VoiceRecord]:
        """All voices: the premade ones, then the others, oldest first."""

    def get(self, voice_id: str) -> VoiceRecord:
        """One voice."""

    def add(self, record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        """Keeps a new voice with its reference recording (float32 mono in [-1, 1]); VoiceExists if the id is taken."""

    def delete(self, voice_id: str) -> None:
        """Forgets a voice, its recording and features; VoiceIsReadOnly for a premade one."""

    def reference(self, voice_id: str) -> tuple[np.ndarray, int]:
        """The reference recording, float32 mono in [-1, 1], and its sample rate."""

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        """The features that the weights of that fingerprint made, or None where they are still to be made."""

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """Keeps the features that the weights of that fingerprint made."""


def new_voice_id() -> str:
    """A random id, 20 hexadecimal digits."""
    return secrets.token_hex(10)


def checked_id(voice_id: str) -> str:
    """The id itself; InvalidVoiceId unless it is safe as a file name and in a URL."""
    if not _VOICE_ID.fullmatch(voice_id):
        raise InvalidVoiceId(voice_id)
    return voice_id


def as_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit integers, clipped."""
    scaled: np.ndarray = np.rint(np.clip(samples, -1.0, 1.0) * _INT16_STEPS)
    return scaled.astype("<i2")


def as_stored(samples: np.ndarray) -> np.ndarray:
    """Float32 samples as they come back from the store: features made from these can be made again."""
    return as_int16(samples).astype(np.float32) / np.float32(_INT16_STEPS)


class FolderVoiceStore:
    """Voices in a folder that several processes may share.

    `voices/<id>/` holds `record.json`, `reference.wav` (16 bit mono) and `features-<fingerprint>.safetensors`;
    `premade/<id>/` holds only features, since the recordings of premade voices lie read-only elsewhere. A voice
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
        self._premade = {record.voice_id: record for record in premade_records(premade)}

    def list(self) -> list[VoiceRecord]:
        """All voices: the premade ones, then the others, oldest first."""
        own = []
        for folder in self._voices.iterdir():
            with suppress(VoiceNotFound, InvalidVoiceId):  # deleted since the folder was listed, or not ours
                own.append(self.get(folder.name))
        return [*self._premade.values(), *sorted(own, key=lambda record: (record.created_at_unix, record.voice_id))]

    def get(self, voice_id: str) -> VoiceRecord:
        """One voice."""
        premade = self._premade.get(checked_id(voice_id))
        if premade is not None:
            return premade
        with _absence_means_not_found(voice_id):
            text = (self._voices / voice_id / "record.json").read_text(encoding="utf-8")
        return VoiceRecord(**json.loads(text))

    def add(self, record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        """Keeps a new voice with its reference recording; VoiceExists where the id is taken."""
        voice_id = checked_id(record.voice_id)
        if voice_id in self._premade:
            raise VoiceExists(voice_id)
        folder = Path(tempfile.mkdtemp(prefix="add-", dir=self._scratch))
        try:
            _write(folder / "reference.wav", _wav(samples, sample_rate))
            _write(folder / "record.json", json.dumps(asdict(record)).encode())
            try:
                folder.rename(self._voices / voice_id)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # the folder of a voice is never empty
                    raise VoiceExists(voice_id) from error
                raise
            _flush_folder(self._voices)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def delete(self, voice_id: str) -> None:
        """Forgets a voice, its recording and features; VoiceIsReadOnly for a premade one."""
        if checked_id(voice_id) in self._premade:
            raise VoiceIsReadOnly(voice_id)
        doomed = Path(tempfile.mkdtemp(prefix="delete-", dir=self._scratch))
        try:
            with _absence_means_not_found(voice_id):
                (self._voices / voice_id).rename(doomed / voice_id)
            _flush_folder(self._voices)
        finally:
            shutil.rmtree(doomed, ignore_errors=True)

    def reference(self, voice_id: str) -> tuple[np.ndarray, int]:
        """The reference recording, float32 mono in [-1, 1], and its sample rate."""
        if checked_id(voice_id) in self._premade:
            from webrtc.files import decode_file

            return decode_file(premade_recording(voice_id, self._premade_folder))
        with (
            _absence_means_not_found(voice_id),
            wave.open(str(self._voices / voice_id / "reference.wav"), "rb") as recording,
        ):
            frames = recording.readframes(recording.getnframes())
            return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(_INT16_STEPS), recording.getframerate()

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        """The features that the weights of that fingerprint made, or None where they are still to be made."""
        from stages.types import Voice

        self.get(voice_id)
        path = self._features_path(voice_id, fingerprint)
        if not path.exists():
            return None
        try:
            return Voice.load(path)
        except FileNotFoundError as error:  # deleted between the two calls
            raise VoiceNotFound(voice_id) from error

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """Keeps the features that the weights of that fingerprint made."""
        self.get(voice_id)
        path = self._features_path(voice_id, fingerprint)
        if voice_id in self._premade:
            path.parent.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="features-", dir=self._scratch))
        try:
            voice.save(folder / path.name)
            with _absence_means_not_found(voice_id):
                os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _features_path(self, voice_id: str, fingerprint: str) -> Path:
        assert _FINGERPRINT.fullmatch(fingerprint), fingerprint
        home = self._premade_features if voice_id in self._premade else self._voices
        return home / voice_id / f"features-{fingerprint}.safetensors"


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


@contextmanager
def _absence_means_not_found(voice_id: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VoiceNotFound(voice_id) from error


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


def _sweep(scratch: Path) -> None:
    """Removes what a crashed process left; what is younger may belong to one at work."""
    newest_s = datetime.now(UTC).timestamp() - _LEFTOVER_AGE_S
    for leftover in scratch.iterdir():
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < newest_s:
                shutil.rmtree(leftover, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    """Brings a rename in the folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
