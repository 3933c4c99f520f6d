"""A key as the server keeps it: never the key itself, only its hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_FORM = re.compile(r"seedvc_([0-9a-f]{12})_[0-9a-f]{48}")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Limit = Annotated[int, Field(ge=0, le=10**9)]


class KeyLimits(BaseModel):
    """What the holder of a key may do; None: as much as they like."""

    model_config = ConfigDict(frozen=True)

    calls: Limit | None = None
    """At once."""
    minutes_a_day: Limit | None = None
    """Of calls, all together."""
    voices: Limit | None = None
    requests_a_second: Annotated[int, Field(ge=1, le=10**6)] | None = None
    upload_mb_a_day: Limit | None = None
    """Of request bodies, in millions of bytes."""


class Key(BaseModel):
    """One key: its holder's name, its hash, its limits."""

    model_config = ConfigDict(frozen=True)

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """Part of the key, and no secret: voices keep it as their owner."""
    name: Annotated[str, Field(pattern=NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created_at_unix: int = 0
    limits: KeyLimits = KeyLimits()


def new_key(name: str, limits: KeyLimits, now_unix: int) -> tuple[str, Key]:
    """A fresh key as its holder gets it, and as the server keeps it.

    The key has 192 random bits, so nobody finds it by trying: a slow hash, as passwords need, would protect nothing
    more and cost each request its time.
    """
    key_id = secrets.token_hex(6)
    secret = f"seedvc_{key_id}_{secrets.token_hex(24)}"
    return secret, Key(
        key_id=key_id, name=name, sha256=digest_of(secret).hex(), created_at_unix=now_unix, limits=limits
    )


def id_in(given: str) -> str | None:
    """The id that a key names; None where it is no key of this form."""
    found = _FORM.fullmatch(given)
    return None if found is None else found[1]


def digest_of(secret: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
