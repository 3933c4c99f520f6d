"""What all voice stores do alike: checks, premade voices, lists, damage. A store adds where the files are."""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from serve_app.errors import StoreAway, VoiceDamaged, VoiceError, VoiceExists, VoiceIsReadOnly, VoiceNotFound
from serve_app.voices.premade import PREMADE_FOLDER, premade_recording, premade_records
from serve_app.voices.store import Original, VoiceRecord, checked_id, samples_of, wav_of

if TYPE_CHECKING:
    from stages.types import Voice

log = logging.getLogger("seedvc.voices")

REFERENCE = "reference.wav"
MAX_RECORD_BYTES = 2**20
MAX_FILE_BYTES = 2**26
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PREMADE_TYPES = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A voice's record as it is kept, and where its other files are."""

    record: VoiceRecord
    home: str
    changed_s: float
    """When the record was written, in the storage's clock."""


class BaseVoiceStore(ABC):
    """A voice store but for its storage. Methods are those of `VoiceStore`."""

    def __init__(self, premade: Path = PREMADE_FOLDER) -> None:
        self._premade_folder = premade
        self._premade = {record.voice_id: record for record in premade_records(premade)}
        self._told: set[str] = set()
        self._told_features: set[str] = set()
        self._digests: dict[tuple[Path, int, int], str] = {}

    # What a store adds. All raise StoreAway where the storage cannot be reached, changes NotStored where it refuses.

    @abstractmethod
    def check(self) -> None:
        """As VoiceStore."""

    @abstractmethod
    def ids(self) -> list[str]:
        """As VoiceStore."""

    @abstractmethod
    def stamps(self, voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        """As VoiceStore."""

    @abstractmethod
    def _read(self, voice_id: str) -> Entry:
        """The record; VoiceDamaged where there is something else."""

    @abstractmethod
    def _add(self, record: VoiceRecord, wav: bytes) -> None:
        """Makes a voice appear, record and recording at once; VoiceExists where the id is taken."""

    @abstractmethod
    def _update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        """Changes the record in one step."""

    @abstractmethod
    def _delete(self, voice_id: str) -> None:
        """Makes a voice vanish in one step, readable or not, and then removes its files."""

    @abstractmethod
    def _renew(self, entry: Entry) -> None:
        """Makes now the time of the last use."""

    @abstractmethod
    def _used_s(self, entry: Entry) -> float:
        """When the voice was renewed last, or its record written."""

    @abstractmethod
    def _read_file(self, home: str, name: str) -> bytes:
        """A file of a voice; FileNotFoundError where there is none, another OSError where it cannot be read."""

    @abstractmethod
    def _write_file(self, home: str, name: str, data: bytes) -> None:
        """Replaces a file of a voice in one step; VoiceNotFound where the voice is gone."""

    def _read_all(self) -> Iterator[tuple[str, Entry | VoiceError]]:
        """All voices but the premade ones, or why one cannot be read."""
        for voice_id in self.ids():
            yield voice_id, _outcome(self._read, voice_id)

    def _url_of(self, entry: Entry, name: str) -> str | None:
        """Where a client gets a file from the storage itself, if it can."""
        return None

    # What follows from it.

    def list(self) -> list[VoiceRecord]:
        """As VoiceStore. A damaged voice is left out, and logged when it is met first."""
        own, damaged = [], set()
        for voice_id, found in self._read_all():
            if isinstance(found, Entry):
                if not self._is_over(found):
                    own.append(found.record)
            elif isinstance(found, VoiceDamaged):
                damaged.add(voice_id)
                if voice_id not in self._told:
                    log.warning("the voice %s is left out: %s", voice_id, _reason(found))
        self._told = damaged  # a voice that is mended and breaks again is logged again
        return [*self._premade.values(), *sorted(own, key=lambda record: (record.created_at_unix, record.voice_id))]

    def get(self, voice_id: str) -> VoiceRecord:
        """As VoiceStore."""
        return self._premade.get(checked_id(voice_id)) or self._current(voice_id).record

    def add(self, record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        """As VoiceStore."""
        if checked_id(record.voice_id) in self._premade:
            raise VoiceExists(record.voice_id)
        self._add(record, wav_of(samples, sample_rate))

    def update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        """As VoiceStore; of two changes at once the later one counts."""
        self._refuse_premade(voice_id)
        return self._update(voice_id, changes)

    def delete(self, voice_id: str) -> None:
        """As VoiceStore."""
        self._refuse_premade(voice_id)
        self._delete(voice_id)

    def renew(self, voice_id: str) -> None:
        """As VoiceStore."""
        if checked_id(voice_id) not in self._premade:
            entry = self._current(voice_id)
            if entry.record.expires_s is not None:
                self._renew(entry)

    def sweep(self) -> None:
        """As VoiceStore."""
        for voice_id, found in self._read_all():
            with suppress(VoiceError):  # another process may forget it now
                if isinstance(found, Entry) and self._is_over(found):
                    self.delete(voice_id)

    def reference(self, voice_id: str) -> tuple[np.ndarray, int]:
        """As VoiceStore."""
        if checked_id(voice_id) in self._premade:
            from webrtc.files import NotAudio, decode_file

            try:
                return decode_file(self._premade_recording(voice_id))
            except (NotAudio, OSError) as error:
                raise VoiceDamaged(voice_id) from error
        return samples_of(self._recording(self._current(voice_id)), voice_id)

    def original(self, voice_id: str) -> Original:
        """As VoiceStore."""
        if checked_id(voice_id) in self._premade:
            path = self._premade_recording(voice_id)
            try:
                return Original(_PREMADE_TYPES.get(path.suffix, "application/octet-stream"), path.read_bytes())
            except OSError as error:
                raise VoiceDamaged(voice_id) from error
        entry = self._current(voice_id)
        url = self._url_of(entry, REFERENCE)
        return Original("audio/wav", b"" if url else self._recording(entry), url)

    def digest(self, voice_id: str) -> str:
        """As VoiceStore: 64 hex digits over the recording as it is stored."""
        return hashlib.sha256(wav_of(*self.reference(voice_id))).hexdigest()

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        """As VoiceStore."""
        from stages.types import Voice

        home, name = self._features_place(voice_id, fingerprint)
        try:
            voice = Voice.from_bytes(self._read_file(home, name))
            if voice.fingerprint != fingerprint:
                raise ValueError("they are of other weights")
        except FileNotFoundError:
            return None
        except StoreAway:
            raise
        except (OSError, ValueError):
            if voice_id not in self._told_features:
                log.warning("the features of the voice %s are damaged; they are made again when needed", voice_id)
            self._told_features.add(voice_id)
            return None
        self._told_features.discard(voice_id)
        return voice

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """As VoiceStore."""
        self._write_file(*self._features_place(voice_id, fingerprint), voice.to_bytes())

    def _current(self, voice_id: str) -> Entry:
        """An own voice whose time is not over."""
        entry = self._read(voice_id)
        if self._is_over(entry):
            raise VoiceNotFound(voice_id)
        return entry

    def _is_over(self, entry: Entry) -> bool:
        expires_s = entry.record.expires_s
        return expires_s is not None and self._used_s(entry) + expires_s < datetime.now(UTC).timestamp()

    def _recording(self, entry: Entry) -> bytes:
        try:
            return self._read_file(entry.home, REFERENCE)
        except StoreAway:
            raise
        except OSError as error:
            self._read(entry.record.voice_id)  # VoiceNotFound where it was deleted just now
            raise VoiceDamaged(entry.record.voice_id) from error

    def _refuse_premade(self, voice_id: str) -> None:
        if checked_id(voice_id) in self._premade:
            raise VoiceIsReadOnly(voice_id)

    def _features_place(self, voice_id: str, fingerprint: str) -> tuple[str, str]:
        assert _FINGERPRINT.fullmatch(fingerprint), fingerprint
        if checked_id(voice_id) in self._premade:
            return f"premade/{voice_id}", f"features-{fingerprint}-{self._premade_digest(voice_id)}.safetensors"
        return self._current(voice_id).home, f"features-{fingerprint}.safetensors"

    def _premade_recording(self, voice_id: str) -> Path:
        try:
            return premade_recording(voice_id, self._premade_folder)
        except ValueError as error:
            raise VoiceDamaged(voice_id) from error

    def _premade_digest(self, voice_id: str) -> str:
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


def _outcome(read: Callable[[str], Entry], voice_id: str) -> Entry | VoiceError:
    try:
        return read(voice_id)
    except VoiceError as error:
        return error


def _reason(error: VoiceDamaged) -> str:
    """The reason of an error, without content of the voice's files."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return f"{cause.strerror or cause}"
    if isinstance(cause, ValidationError):
        return "its record: " + "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in cause.errors())
    return "its record is no JSON object" if cause is not None else str(error)
