"""All keys of a server as one of its replicas knows them, and the callers who hold them."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from time import monotonic, time

from starlette.types import Scope

from serve_app.callers.counts import DAY_S, Counts, MemoryCounts, seconds_left_today, today
from serve_app.callers.key import Key, digest_of, id_in
from serve_app.callers.store import KeysAway, KeyStore
from serve_app.errors import AtCapacity, Refused
from serve_app.metrics import KeyMetrics

log = logging.getLogger("seedvc.access")

LOOK_EVERY_S = 2.0
"""How old the keys in memory may be: so long a revoked key may still begin something."""
LOOK_AGAIN_S = 0.25
"""How often an unknown key may make a replica look for new ones."""
AWAY_S = 1.0
"""How long a store that did not answer is not asked again, so that requests do not queue up for it."""
LEASE_S = 15.0
"""How long the place of a call outlives a replica that dies with it."""
ADDING_S = 120.0
TOKEN_S = 900
_OPERATOR = "operator"
Count = Callable[[], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a caller has used today, in UTC."""

    call_s: float = 0.0
    upload_bytes: int = 0


class Caller:
    """Who a request comes from: the operator, who may do everything, or the holder of a key within its limits."""

    def __init__(self, key: Key | None = None, ring: KeyRing | None = None) -> None:
        self._key, self._ring = key, ring

    @property
    def key_id(self) -> str | None:
        """Names the holder of a key; None for the operator."""
        return None if self._key is None else self._key.key_id

    @property
    def name(self) -> str:
        """As metrics name it."""
        return _OPERATOR if self._key is None else self._key.name

    def sees(self, owner: str | None) -> bool:
        """Whether a voice of that owner is there for this caller; one without an owner is shared."""
        return self._key is None or owner in (None, self._key.key_id)

    def owns(self, owner: str | None) -> bool:
        """Whether this caller may change a voice of that owner."""
        return self._key is None or owner == self._key.key_id

    @property
    def most_voices(self) -> int | None:
        """How many voices this caller may own; None: any number."""
        return None if self._key is None else self._key.limits.voices

    @property
    def most_minutes(self) -> int | None:
        """How many minutes of calls this caller may have a day; None: any number."""
        return None if self._key is None else self._key.limits.minutes_a_day

    async def usage(self) -> Usage:
        """What this caller has used today; nothing is counted for the operator."""
        if self._key is None or self._ring is None:
            return Usage()
        return Usage(
            await self._ring.add_ms(self._key, 0) / 1000,
            await self._ring.add_bytes(self._key, 0),
        )

    async def ask(self) -> None:
        """Counts one request; AtCapacity where there are too many."""
        if self._ring is not None:
            await self._ring.count_request(self._key)

    async def upload(self, n_bytes: int, announced: int = 0) -> None:
        """Counts bytes of a body, of which `announced` more are to come; Refused where the day's are used up."""
        if self._key is None or self._ring is None:
            return
        most = self._key.limits.upload_mb_a_day
        used = await self._ring.add_bytes(self._key, n_bytes)
        if most is not None and used + announced > most * 10**6:
            raise self._ring.used_up(self._key, f"{most} MB of uploads a day")

    @asynccontextmanager
    async def adding_voice(self, count_own: Count) -> AsyncIterator[None]:
        """Holds room for one more voice; Refused where the caller has all that it may have."""
        most = self.most_voices
        if most is None or self._key is None or self._ring is None:
            yield
            return
        counts, name, member = self._ring.counts, f"adding:{self._key.key_id}", secrets.token_hex(8)
        # The place comes first: whoever counts then sees all voices of those whose place is gone.
        place = await counts.take(name, member, max(most, 1), ADDING_S)
        try:
            if not place or await count_own() + place > most:
                self._ring.metrics.refused(self.name)
                message = f"this key may have {most} voices, which is its limit; remove one first"
                raise Refused(400, "voice_limit_reached", message)
            yield
        finally:
            with suppress(KeysAway):
                await counts.give_back(name, member)

    async def begin_call(self, session_id: str, retry_after_s: int, replaces: str | None = None) -> Lease | None:
        """A place for a call, where it replaces another of this caller's that one's; None where nothing limits or
        counts it. Raises AtCapacity or Refused.
        """
        if self._key is None or self._ring is None:
            return None
        lease = Lease(self._key, self._ring, session_id)
        await lease.begin(retry_after_s, replaces)
        return lease

    def token(self) -> str:
        """A fresh token for one call of this caller."""
        assert self._ring is not None
        return self._ring.new_token(self._key)


OPERATOR = Caller()
"""Who calls from within: the handle API, and the service itself."""


def caller_of(scope: Scope) -> Caller:
    """Who sends a request, as serve_app.access has found."""
    caller: Caller = scope["state"]["caller"]
    return caller


class Lease:
    """The place of a running call, which has to be renewed, and its minutes."""

    def __init__(self, key: Key, ring: KeyRing, session_id: str) -> None:
        self._key, self._ring = key, ring
        self._member = _member(session_id)
        self._uncounted_ms = 0

    @property
    def _name(self) -> str:
        return f"calls:{self._key.key_id}"

    @property
    def _most(self) -> int:
        calls = self._key.limits.calls
        return 2**31 if calls is None else calls

    async def begin(self, retry_after_s: int, replaces: str | None = None) -> None:
        """Takes a place, or that of the session it replaces; AtCapacity or Refused where the key's limits say no."""
        minutes = self._key.limits.minutes_a_day
        if minutes is not None and await self._ring.add_ms(self._key, 0) >= minutes * 60_000:
            raise self._ring.used_up(self._key, f"{minutes} minutes of calls a day")
        old = None if replaces is None else _member(replaces)
        if not await self._ring.counts.take(self._name, self._member, self._most, LEASE_S, old):
            self._ring.metrics.refused(self._key.name)
            message = f"this key may have {self._most} calls at once, which is its limit; end one, or try again soon"
            raise AtCapacity(message, retry_after_s, "too_many_concurrent_requests")

    async def renew(self, elapsed_s: float) -> str | None:
        """Counts time and keeps the place; a sentence where the call has to end, as the day's minutes are used up.

        Raises:
            KeysAway: the time is counted later.
        """
        self._uncounted_ms += round(elapsed_s * 1000)
        self._ring.metrics.called(self._key.name, elapsed_s)
        total_ms = await self._ring.add_ms(self._key, self._uncounted_ms)
        self._uncounted_ms = 0
        await self._ring.counts.take(self._name, self._member, 2**31, LEASE_S)  # a call that runs is not refused
        minutes = self._key.limits.minutes_a_day
        if minutes is not None and total_ms >= minutes * 60_000:
            return f"the {minutes} minutes of calls that this key has a day are used up"
        return None

    async def is_revoked(self) -> bool:
        """Whether the key is gone."""
        return not await self._ring.knows(self._key)

    async def end(self) -> None:
        """Gives the place back."""
        await self._ring.counts.give_back(self._name, self._member)


def _member(session_id: str) -> str:
    """Names a call's place. Who reads the store cannot end the call, as its id is not in it."""
    return digest_of(session_id).hex()[:32]


class KeyRing:
    """Finds who calls. Keys are in memory, and compared with the store every LOOK_EVERY_S."""

    def __init__(self, operator_key: str = "", store: KeyStore | None = None) -> None:
        self._operator_digest = digest_of(os.fsencode(operator_key).decode("utf-8", "surrogateescape"))
        self._has_operator_key = bool(operator_key)
        self._store = store
        self._keys: dict[str, Key] = {}
        self._looked_s = self._failed_s = -inf
        self._looking = asyncio.Lock()
        self._told = False
        self._own_counts = MemoryCounts()
        self.metrics = KeyMetrics()

    @property
    def asks(self) -> bool:
        """Whether a key is needed at all."""
        return self._has_operator_key or self._store is not None

    @property
    def counts(self) -> Counts:
        """What holders of keys use."""
        return self._own_counts if self._store is None else self._store.counts

    async def caller(self, given: Iterable[bytes], tokens: bool) -> Caller | None:
        """Who carries one of these keys, or single-use tokens where they count; None: nobody known.

        Raises:
            KeysAway: it cannot be told now.
        """
        if not self.asks:
            return Caller(None, self)
        texts = [each.decode("utf-8", "surrogateescape") for each in given]
        for text in texts:
            if self._has_operator_key and hmac.compare_digest(self._operator_digest, digest_of(text)):
                return Caller(None, self)
        for text in texts:
            key_id = id_in(text)
            key = None if key_id is None else await self._find(key_id)
            if key is not None and hmac.compare_digest(bytes.fromhex(key.sha256), digest_of(text)):
                return Caller(key, self)
        for text in texts if tokens else ():
            if (caller := await self._caller_of_token(text)) is not None:
                return caller
        return None

    async def knows(self, key: Key) -> bool:
        """Whether this very key is still there."""
        await self._look(LOOK_EVERY_S)
        return key.key_id in self._keys

    def new_token(self, key: Key | None) -> str:
        """A token that is good for one call within TOKEN_S. Nothing is kept of it until it is used."""
        body = f"{_OPERATOR if key is None else key.key_id}_{int(time()) + TOKEN_S}_{secrets.token_hex(12)}"
        return f"sutkn_{body}_{self._signature(key, body)}"

    async def _caller_of_token(self, text: str) -> Caller | None:
        match text.split("_"):
            case ["sutkn", holder, expires, nonce, signature] if expires.isdecimal() and len(expires) <= 12:
                key = None if holder == _OPERATOR else await self._find(holder)
                if key is None and (holder != _OPERATOR or not self._has_operator_key):
                    return None
                expected = self._signature(key, f"{holder}_{expires}_{nonce}")
                if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogateescape")):
                    return None
                if int(expires) < time() or not await self._first_use(nonce):
                    return None
                return Caller(key, self)
        return None

    async def _first_use(self, nonce: str) -> bool:
        return await self.counts.sum(f"token:{nonce}", 1, TOKEN_S + 60) == 1

    def _signature(self, key: Key | None, body: str) -> str:
        """What only a server that knows the key's hash can make: all replicas, and nobody else."""
        secret = self._operator_digest if key is None else bytes.fromhex(key.sha256)
        return hmac.digest(secret, b"token:" + body.encode(), "sha256").hex()

    async def _find(self, key_id: str) -> Key | None:
        await self._look(LOOK_EVERY_S)
        if key_id not in self._keys:
            await self._look(LOOK_AGAIN_S)
        return self._keys.get(key_id)

    async def _look(self, at_most_s: float) -> None:
        """Compares with the store, where that was longer ago."""
        if self._store is None:
            return
        async with self._looking:
            if monotonic() - self._looked_s < at_most_s:
                return
            if monotonic() - self._failed_s < AWAY_S:
                raise KeysAway("it was away a moment ago")
            try:
                self._keys = {key.key_id: key for key in await self._store.keys()}
            except KeysAway as error:
                if not self._told:
                    log.warning("keys cannot be checked: %s", error.reason)
                self._told, self._failed_s = True, monotonic()
                raise
            self._looked_s, self._told = monotonic(), False

    async def count_request(self, key: Key | None) -> None:
        """One more request; AtCapacity where the key has had all of this second."""
        name = _OPERATOR if key is None else key.name
        self.metrics.asked(name)
        most = None if key is None else key.limits.requests_a_second
        if key is None or most is None:
            return
        if await self.counts.sum(f"requests:{key.key_id}:{int(time())}", 1, 5) > most:
            self.metrics.refused(name)
            raise AtCapacity(f"this key may send {most} requests a second, which is its limit", 1, "rate_limited")

    async def add_ms(self, key: Key, milliseconds: int) -> int:
        """Counts time of calls; the day's sum."""
        return await self.counts.sum(f"call_ms:{key.key_id}:{today()}", milliseconds, 2 * DAY_S)

    async def add_bytes(self, key: Key, n_bytes: int) -> int:
        """Counts bytes of bodies; the day's sum."""
        if n_bytes:
            self.metrics.uploaded(key.name, n_bytes)
        return await self.counts.sum(f"upload_bytes:{key.key_id}:{today()}", n_bytes, 2 * DAY_S)

    def used_up(self, key: Key, what: str) -> Refused:
        """The refusal of what a key has no more of today, as ElevenLabs has it."""
        self.metrics.refused(key.name)
        message = f"this key may use {what}, which is its limit; it begins anew at midnight UTC"
        return Refused(401, "quota_exceeded", message, {"Retry-After": str(seconds_left_today())})
