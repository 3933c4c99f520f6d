"""What is refused and why, and the one place where an error becomes an answer: a status code, a detail, headers.

The shapes are those of the ElevenLabs API: `{"detail": [{"loc", "msg", "type"}]}` with 422, else
`{"detail": {"status", "message"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.types import BadAudio
from webrtc.files.errors import NotAudio

_RESTART_S = 5  # about what a replica takes to come back


class VoiceError(Exception):
    """A voice that cannot be read, made or changed; the message names it."""

    message = "{voice_id!r}"

    def __init__(self, voice_id: str) -> None:
        super().__init__(voice_id)  # the one argument, so that the error survives pickling between replicas
        self.voice_id = voice_id

    def __str__(self) -> str:
        return self.message.format(voice_id=self.voice_id[:80])


class VoiceNotFound(VoiceError, LookupError):
    """No voice of that id."""

    message = "there is no voice with the id {voice_id!r}"


class VoiceDamaged(VoiceNotFound):
    """The store has no whole voice under an id."""

    message = "the voice {voice_id!r} is damaged where it is kept, and cannot be used"


class NotStored(OSError):
    """The storage of voices refuses a change: it is full, read-only, or gone."""


class StoreAway(OSError):
    """The storage of voices cannot be reached, as where a disk is not mounted."""


class InvalidVoiceId(VoiceError, ValueError):
    """An id that no voice can have."""

    message = "a voice id is 1 to 64 letters, digits, '_' or '-'; got {voice_id!r}"


class VoiceIsReadOnly(VoiceError):
    """A premade voice cannot be changed."""

    message = "the voice {voice_id!r} is premade and cannot be changed or deleted"


class VoiceIsShared(VoiceError):
    """A voice of the operator, which others use and do not change."""

    message = "the voice {voice_id!r} is the operator's and cannot be changed or deleted with this key"


class VoiceExists(VoiceError, ValueError):
    """A second voice under an id that is taken."""

    message = "there is already a voice with the id {voice_id!r}"


class AtCapacity(RuntimeError):
    """No room for one more now; the caller may come back after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int, status: str = "system_busy") -> None:
        super().__init__(message, retry_after_s, status)
        self.message = message
        self.retry_after_s = retry_after_s
        self.status = status

    def __str__(self) -> str:
        return self.message


class Unavailable(RuntimeError):
    """Part of the service does not answer now; nothing is wrong with the request."""


class CallsFull(AtCapacity):
    """No room for one more call."""

    def __init__(self, message: str, retry_after_s: int, status: str = "at_capacity") -> None:
        super().__init__(message, retry_after_s, status)


class Refused(Exception):
    """A request that is answered with this status code, short code and sentence."""

    def __init__(self, status_code: int, status: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code, status, message, headers)  # all, so that the error survives pickling
        self.status_code, self.status, self.message = status_code, status, message
        self.headers = headers or {}

    def __str__(self) -> str:
        return self.message


class SourceTooLong(ValueError):
    """More sound than one conversion takes."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"the source is longer than the limit of {self.limit_s:g} s"


class UploadTooLarge(ValueError):
    """More bytes than one request may bring."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the request body is larger than the limit of {self.limit_bytes} bytes"


class UploadStalled(TimeoutError):
    """A client stopped sending half-way; it would keep its place for ever."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"nothing of the request body came for {self.limit_s:g} s"


class Displaced(RuntimeError):
    """A client that hardly sends lost its place to another when all were taken."""

    def __str__(self) -> str:
        return "too little came while others waited for a place; try again later, or send faster"


class BadUpload(ValueError):
    """A body that is not the form it should be."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One complaint: where it is, in words, and as a code."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class InvalidFields(ValueError):
    """Fields of a request that cannot be used as they are."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "; ".join(f"{'.'.join(map(str, problem.loc))}: {problem.msg}" for problem in self.problems)


class ClientGone(ConnectionError):
    """The client hung up; nobody is left to answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that failed."""

    status_code: int
    detail: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(error: Exception) -> Refusal | None:
    """The answer to an error that the caller caused or can wait out; None for a failure of ours."""
    match error:
        case InvalidFields():
            return _unprocessable(*error.problems)
        case BadAudio() | NotAudio():
            return _unprocessable(FieldProblem(("body", "audio"), str(error), error.reason))
        case InvalidVoiceId():
            return _unprocessable(FieldProblem(("path", "voice_id"), str(error), "invalid_voice_id"))
        case BadUpload():
            return _refused(400, "invalid_request", error)
        case VoiceIsReadOnly() | VoiceIsShared():
            return _refused(403, "voice_is_read_only", error)
        case VoiceDamaged():
            return _refused(404, "voice_damaged", error)
        case VoiceNotFound():
            return _refused(404, "voice_not_found", error)
        case UploadStalled():
            return _refused(408, "upload_stalled", error)
        case Displaced():
            return _refused(408, "displaced", error)
        case VoiceExists():
            return _refused(409, "voice_exists", error)
        case SourceTooLong():
            return _refused(413, "source_too_long", error)
        case UploadTooLarge():
            return _refused(413, "upload_too_large", error)
        case Refused():
            return _refused(error.status_code, error.status, error, error.headers)
        case CallsFull():
            return _refused(503, error.status, error, {"Retry-After": str(error.retry_after_s)})
        case AtCapacity():
            return _refused(429, error.status, error, {"Retry-After": str(error.retry_after_s)})
        case NotStored():
            return _refused(507, "not_stored", error)
        case Unavailable() | StoreAway():
            return _refused(503, "system_busy", error, {"Retry-After": str(_RESTART_S)})
        case _:
            return None


def internal_error(request_id: str) -> Refusal:
    """The answer to a failure of ours. It names the request, so that the log can be searched, and nothing else."""
    message = f"something failed on our side; the log has it under request {request_id}"
    return Refusal(500, {"status": "internal_error", "message": message, "request_id": request_id})


def first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups: the others are consequences of the cancelling that it caused."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _refused(status_code: int, status: str, error: Exception, headers: Mapping[str, str] | None = None) -> Refusal:
    return Refusal(status_code, {"status": status, "message": str(error)}, headers or {})


def _unprocessable(*problems: FieldProblem) -> Refusal:
    return Refusal(422, [{"loc": list(p.loc), "msg": p.msg, "type": p.type} for p in problems])
