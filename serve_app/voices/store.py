"""What a voice store keeps: the record of each voice, its reference recording, and the features made of it."""

from __future__ import annotations

import io
import json
import re
import secrets
import wave
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from serve_app.errors import InvalidVoiceId, VoiceDamaged
from webrtc.files.errors import check_rate

if TYPE_CHECKING:
    from stages.types import Voice

VOICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
INT16_STEPS = 32767


Stored = Annotated[int, Field(ge=0, le=2**53)]
"""A number that every reader of JSON can hold; we write no larger ones."""


@dataclass(frozen=True, slots=True)
class VoiceRecord:
    """What is known about a voice, without its sound."""

    voice_id: str
    name: str
    category: Literal["premade", "cloned"] = "cloned"
    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at_unix: Stored = 0
    duration_s: float | None = None
    sample_rate: Stored | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that another version wrote: not read, and kept when the record is written again."""
    expires_s: Stored | None = None
    """How long after its last use the voice is forgotten; None: never."""
    reference: Mapping[str, Any] | None = None
    """How good the reference is (stages.reference.ReferenceReport); unknown for premade and for older voices."""
    owner: str | None = None
    """The id of the key that made it; None: it is the operator's, and shared with all."""
    consent: Mapping[str, Any] | None = None
    """What was stated of the speaker's agreement, and when."""


@dataclass(frozen=True, slots=True)
class Original:
    """The recording that a voice was made of, as a client gets it: its bytes, or a URL that has them for a while."""

    media_type: str
    data: bytes = b""
    url: str | None = None


class VoiceStore(Protocol):
    """Keeps voices. Methods block on storage, so coroutines call them through a thread; all raise VoiceNotFound.

    Methods that change something raise NotStored where the storage refuses; all raise StoreAway where it is missing.
    """

    def check(self) -> None:
        """StoreAway unless the storage answers; cheaper than a list."""

    def ids(self) -> list[str]:
        """All but the premade voices, those with a damaged record too."""

    def list(self) -> list[VoiceRecord]:
        """All voices: the premade ones, then the others, oldest first."""

    def get(self, voice_id: str) -> VoiceRecord:
        """One voice."""

    def add(self, record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        """Keeps a new voice with its reference recording (float32 mono in [-1, 1]); VoiceExists if the id is taken."""

    def update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        """Changes fields of a voice's record, and gives the new one; VoiceIsReadOnly for a premade one."""

    def delete(self, voice_id: str) -> None:
        """Forgets a voice, its recording and features; VoiceIsReadOnly for a premade one."""

    def renew(self, voice_id: str) -> None:
        """Counts the voice as used now."""

    def sweep(self) -> None:
        """Forgets the voices whose time is over."""

    def reference(self, voice_id: str) -> tuple[np.ndarray, int]:
        """The reference recording, float32 mono in [-1, 1], and its sample rate."""

    def original(self, voice_id: str) -> Original:
        """The recording, for a client."""

    def digest(self, voice_id: str) -> str:
        """Names the content of the reference recording, in whatever store it is."""

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        """The features that the weights of that fingerprint made, or None where they are still to be made.

        Unreadable features count as still to be made.
        """

    def stamps(self, voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        """For each voice what changes where it, or those features, are replaced; without the voices that are gone."""

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """Keeps the features that the weights of that fingerprint made."""


_RECORD: TypeAdapter[VoiceRecord] = TypeAdapter(VoiceRecord)
_RECORD_FIELDS = {known.name for known in fields(VoiceRecord)} - {"unknown"}


def read_record(data: bytes, voice_id: str) -> VoiceRecord:
    """A stored record, under the id that it is stored by; VoiceDamaged where it is none."""
    try:
        stored = from_json(data)
        json.dumps(stored, allow_nan=False)  # a value that no answer can hold would break the list of all voices
        unknown = {name: value for name, value in stored.items() if name not in _RECORD_FIELDS}
        known = {name: value for name, value in stored.items() if name in _RECORD_FIELDS}
        record = _RECORD.validate_python(known)
    except (ValidationError, ValueError, AttributeError) as error:
        raise VoiceDamaged(voice_id) from error
    return replace(record, voice_id=voice_id, unknown=unknown)


def write_record(record: VoiceRecord) -> bytes:
    """A record as it is stored."""
    known = asdict(record)
    return json.dumps({**known.pop("unknown"), **known}).encode()


def new_voice_id() -> str:
    """A random id, 20 hexadecimal digits."""
    return secrets.token_hex(10)


def checked_id(voice_id: str) -> str:
    """The id itself; InvalidVoiceId unless it is safe as a file name and in a URL."""
    if not VOICE_ID.fullmatch(voice_id):
        raise InvalidVoiceId(voice_id)
    return voice_id


def as_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit integers, clipped."""
    scaled: np.ndarray = np.rint(np.clip(samples, -1.0, 1.0) * INT16_STEPS)
    return scaled.astype("<i2")


def as_stored(samples: np.ndarray) -> np.ndarray:
    """Float32 samples as the store returns them, so that the same features can be made again."""
    return as_int16(samples).astype(np.float32) / np.float32(INT16_STEPS)


def wav_of(samples: np.ndarray, sample_rate: int) -> bytes:
    """The reference recording as it is stored, a 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as recording:
        recording.setparams((1, 2, sample_rate, 0, "NONE", ""))
        recording.writeframes(as_int16(samples).tobytes())
    return buffer.getvalue()


def samples_of(wav: bytes, voice_id: str) -> tuple[np.ndarray, int]:
    """The samples and rate of a file that `wav_of` made; VoiceDamaged where the file is another, or incomplete."""
    try:
        with wave.open(io.BytesIO(wav), "rb") as recording:
            about, frames = recording.getparams(), recording.readframes(recording.getnframes())
        if about[:2] != (1, 2) or not about.nframes or len(frames) != 2 * about.nframes:
            raise ValueError("not a whole recording of 16 bit, mono")
        check_rate(about.framerate)
    except (wave.Error, EOFError, ValueError) as error:
        raise VoiceDamaged(voice_id) from error
    return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(INT16_STEPS), about.framerate
