"""Keys and counts in Redis, for replicas on several machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from configs.places import REDIS_PASSWORD_ENV, REDIS_USERNAME_ENV, RedisPlace
from serve_app.callers.counts import Counts
from serve_app.callers.key import Key
from serve_app.callers.store import KeysAway

_PREFIX = "seedvc:"
_KEYS = f"{_PREFIX}keys"
_ANSWER_S = 2.0
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1]) or redis.call('ZREM', KEYS[1], ARGV[4]) == 1
if not held and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3])))
return redis.call('ZCARD', KEYS[1])
"""
"""One step, by Redis' own clock: replicas' clocks differ."""
_ADD = """
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return sum
"""


class RedisKeys:
    """A KeyStore, and the Counts of all who share it. Connects when it is asked, and again after a loss."""

    def __init__(self, place: RedisPlace) -> None:
        self.counts: Counts = self
        self._redis: Redis = Redis(
            host=place.host,
            port=place.port,
            db=place.database,
            ssl=place.tls,
            username=os.environ.get(REDIS_USERNAME_ENV) or None,
            password=os.environ.get(REDIS_PASSWORD_ENV) or None,
            decode_responses=True,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 1),  # a connection from before a restart is dead, the next one is not
        )
        self._take = self._redis.register_script(_TAKE)
        self._add = self._redis.register_script(_ADD)

    async def keys(self) -> list[Key]:
        """As KeyStore. A record that is no key lets nobody in."""
        with _answering():
            records = await _of(self._redis.hvals(_KEYS))
        return list(_readable(records))

    async def add(self, key: Key) -> bool:
        """As KeyStore."""
        with _answering():
            return bool(await _of(self._redis.hsetnx(_KEYS, key.name, key.model_dump_json())))

    async def remove(self, name: str) -> bool:
        """As KeyStore."""
        with _answering():
            return bool(await _of(self._redis.hdel(_KEYS, name)))

    async def close(self) -> None:
        """Hangs up."""
        await self._redis.aclose()

    async def take(self, name: str, member: str, most: int, for_s: float, old: str | None = None) -> int:
        """As Counts."""
        with _answering():
            return int(await _of(self._take(keys=[_PREFIX + name], args=[member, most, for_s, old or ""])))

    async def give_back(self, name: str, member: str) -> None:
        """As Counts."""
        with _answering():
            await _of(self._redis.zrem(_PREFIX + name, member))

    async def sum(self, name: str, amount: int, for_s: int) -> int:
        """As Counts."""
        with _answering():
            return int(await _of(self._add(keys=[_PREFIX + name], args=[amount, for_s])))


async def _of(answer: Any) -> Any:
    """What Redis answers. The library declares its methods for both of its clients."""
    return await answer


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise KeysAway(f"Redis does not answer ({type(error).__name__})") from None


def _readable(records: list[str]) -> Iterator[Key]:
    for record in records:
        try:
            yield Key.model_validate_json(record)
        except ValidationError:
            continue
