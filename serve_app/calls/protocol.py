"""What clients and server say to each other about a call, on the socket and on the data channel: docs/protocol.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from configs.schema import MAX_STEPS, Mode
from serve_app.errors import Refused, refusal

MAX_MESSAGE_BYTES = 65536
MAX_CANDIDATE = 1024
MAX_BLOCK_MS = 1000
DEFAULT_MODE: Mode = "lowest"

BlockMs = Annotated[int, Field(ge=40, le=MAX_BLOCK_MS, multiple_of=20)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
VoiceId = Annotated[str, Field(min_length=1, max_length=64)]
Sdp = Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE_BYTES)]
Told = dict[str, Any]
"""A message of the server, as it goes into JSON."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a session is over."""

    reason: Literal[
        "stopped",
        "idle",
        "replaced",
        "shutting_down",
        "media_failed",
        "time_limit",
        "quota_exceeded",
        "key_revoked",
        "conversion_failed",
        "internal_error",
    ]
    message: str


class Message(BaseModel):
    """Base of the messages of a client. An unknown field is an error, so that typing mistakes are noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Message):
    """What a client asks for beside the voice; None takes the server's own choice."""

    mode: Mode | None = None
    block_ms: BlockMs | None = None
    steps: Steps | None = None
    bypass: bool = False
    adapt: bool | None = None
    """Whether blocks may get longer and steps fewer where the computer falls behind. None: all but what is named."""


class Wishes(Settings):
    """All that a call starts with."""

    voice: VoiceId


class Start(Settings):
    """The first message on a socket."""

    type: Literal["start"]
    sdp: Sdp
    voice: VoiceId | None = None
    replaces: Annotated[str, Field(max_length=128)] | None = None
    """An older session of the same client, whose lost connection the server may not have noticed. It ends first, and
    what this message does not name is as it was there."""

    @model_validator(mode="after")
    def _voice_known(self) -> Start:
        if self.voice is None and self.replaces is None:
            raise ValueError("a 'start' names a voice, or in 'replaces' the session whose voice it takes")
        return self

    def wishes(self, before: Wishes | None) -> Wishes:
        """What is named here, and else what the replaced session had, where that is known. None is the default.

        Raises:
            Refused: neither names a voice.
        """
        named = self.model_dump(include=set(Wishes.model_fields), exclude_unset=True)
        if self.voice is None:
            named.pop("voice", None)
        kept = Told() if before is None else before.model_dump()
        if "mode" in named and (named["mode"] or DEFAULT_MODE) != kept.get("mode"):
            kept.pop("block_ms", None)  # another mode brings its own block size along
        if "voice" not in kept | named:
            message = "nothing is known (any more) of the session that 'replaces' names; name a voice"
            raise Refused(404, "session_not_found", message)
        return Wishes.model_validate(kept | named)


class IceCandidate(BaseModel):
    """As browsers write one; they add fields of their own."""

    model_config = ConfigDict(frozen=True)

    candidate: Annotated[str, Field(max_length=MAX_CANDIDATE)]
    sdpMid: Annotated[str, Field(max_length=64)] | None = None  # noqa: N815 - W3C's name
    sdpMLineIndex: int | None = None  # noqa: N815 - W3C's name


class Candidate(Message):
    """One more way to reach the client; None ends the list."""

    type: Literal["candidate"]
    candidate: IceCandidate | None


class Change(Message):
    """Other settings from the next block on. Settings that are left out stay."""

    type: Literal["change"]
    voice: VoiceId | None = None
    mode: Mode | None = None
    block_ms: BlockMs | None = None
    steps: Steps | None = None
    bypass: bool | None = None
    adapt: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> Change:
        if not self.model_dump(exclude={"type"}, exclude_none=True):
            raise ValueError("a change names at least one of voice, mode, block_ms, steps, bypass, adapt")
        return self


class Stop(Message):
    """The client hangs up."""

    type: Literal["stop"]


_KINDS = {("start",), ("candidate",), ("change",), ("stop",)}
_MESSAGES: TypeAdapter[Start | Candidate | Change | Stop] = TypeAdapter(
    Annotated[Start | Candidate | Change | Stop, Field(discriminator="type")]
)


def parse(text: str) -> Start | Candidate | Change | Stop:
    """A client's message; Refused with one sentence where it is none."""
    if len(text) > MAX_MESSAGE_BYTES:
        raise Refused(413, "invalid_message", f"the message is longer than the limit of {MAX_MESSAGE_BYTES} characters")
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        raise Refused(422, "invalid_message", sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first problem, with where it is."""
    problem = error.errors(include_url=False, include_input=False)[0]
    loc = problem["loc"][1:] if problem["loc"][:1] in _KINDS else problem["loc"]  # a union names the kind first
    place = ".".join(map(str, loc))
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def write(message: Told) -> str:
    """A message of the server as text."""
    return json.dumps(message, separators=(",", ":"))


def problem(error: Exception) -> Told:
    """An error as a message; one of ours says nothing of its inside."""
    known = refusal(error)
    if known is None:
        return {"type": "error", "code": "internal_error", "message": "something failed on our side"}
    detail = known.detail
    told: Told = {"type": "error"}
    if isinstance(detail, dict):
        told |= {"code": detail["status"], "message": detail["message"]}
    else:
        first = known.detail[0]  # type: ignore[index]
        told |= {"code": first["type"], "message": first["msg"]}
    if (retry_after := known.headers.get("Retry-After")) is not None:
        told["retry_after_s"] = int(retry_after)
    return told
