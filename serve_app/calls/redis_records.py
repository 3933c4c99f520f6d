"""Records of calls in Redis, which all replicas read. Nothing that holds a call waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from configs.places import RedisPlace
from serve_app.calls.records import KEPT_S, Record
from serve_app.errors import Unavailable
from serve_app.metrics import SessionStoreMetrics

log = logging.getLogger("seedvc.calls")

PREFIX = "seedvc:session:"
ANSWER_S = 1.0
"""How long a connection and an answer may take, each."""
RENEW_EVERY_S = 5.0
LOST_AFTER_S = 15.0
"""An owner that has not renewed a record for so long is gone."""
AGAIN_S = 1.0
"""The pause after a failure."""
MAX_UNWRITTEN = 1024
"""Changes that wait for the store; the oldest gives way. Those of calls that run come again with the next renewal."""
MAX_CONNECTIONS = 4


class RedisRecords:
    """Writes changes at once and all records of running calls now and then, by one task (`run`).

    So a store that comes back empty is whole again soon, and records of a replica that died expire by themselves.
    """

    def __init__(
        self,
        redis: Redis,
        metrics: SessionStoreMetrics,
        *,
        kept_s: float = KEPT_S,
        renew_every_s: float = RENEW_EVERY_S,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        self._redis, self._metrics = redis, metrics
        self._kept_ms, self._lost_after_ms = round(1000 * kept_s), round(1000 * lost_after_s)
        self._renew_every_s = renew_every_s
        self._live: dict[str, Record] = {}
        self._unwritten: dict[str, Record | None] = {}
        """None: to be deleted. The newest are last."""
        self._changed = asyncio.Event()
        self.is_away = False

    @classmethod
    def at(
        cls,
        place: RedisPlace,
        metrics: SessionStoreMetrics,
        *,
        username: str | None = None,
        password: str | None = None,
        **options: float,
    ) -> RedisRecords:
        """Records at that place; `options` are those of the constructor."""
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_S,
            host=place.host,
            port=place.port,
            db=place.database,
            username=username,
            password=password,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            connection_class=SSLConnection if place.tls else Connection,
        )
        return cls(Redis.from_pool(pool), metrics, **options)

    def keep(self, session_id: str, record: Record) -> None:
        """Keeps the record, and renews it until the call is over."""
        self._live[session_id] = record
        self._change(session_id, record)

    def leave(self, session_id: str) -> None:
        """Renews it no more, so that it expires."""
        self._live.pop(session_id, None)

    def drop(self, session_id: str) -> None:
        """Forgets it."""
        self._live.pop(session_id, None)
        self._change(session_id, None)

    async def find(self, session_id: str) -> Record | None:
        """The record, as far as all replicas have written."""
        if (own := self._live.get(session_id)) is not None:
            return own
        if session_id in self._unwritten:
            return self._unwritten[session_id]
        text = await self._asked(self._redis.get(_key(session_id)))
        try:
            return None if text is None else Record.model_validate_json(text)
        except ValidationError:
            log.warning("a record of a session cannot be read; another version may have written it")
            return None

    async def is_gone(self, session_id: str) -> bool:
        """Whether no replica has renewed it lately."""
        left_ms = await self._asked(self._redis.pttl(_key(session_id)))
        return bool(left_ms < self._kept_ms - self._lost_after_ms)

    async def run(self) -> None:
        """Writes what changes, and renews the rest, for ever."""
        now = asyncio.get_running_loop().time
        renewed_s = -self._renew_every_s
        try:
            while True:
                self._changed.clear()
                if now() - renewed_s >= self._renew_every_s:
                    self._unwritten = {**self._live, **self._unwritten}
                    renewed_s = now()
                try:
                    await self._write()
                except Unavailable as error:
                    self._turn(error)
                    await asyncio.sleep(AGAIN_S)
                else:
                    self._turn(None)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, renewed_s + self._renew_every_s - now())):
                            await self._changed.wait()
        finally:
            await self._redis.aclose()

    def _change(self, session_id: str, record: Record | None) -> None:
        self._unwritten.pop(session_id, None)
        self._unwritten[session_id] = record
        self._bound()
        self._changed.set()

    def _bound(self) -> None:
        while len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]
            self._metrics.dropped.inc()

    async def _write(self) -> None:
        """All that waits in one request, or a sign of life where nothing does."""
        batch, self._unwritten = self._unwritten, {}
        pipeline = self._redis.pipeline(transaction=False)
        for session_id, record in batch.items():
            if record is None:
                pipeline.delete(_key(session_id))
            else:
                pipeline.set(_key(session_id), record.model_dump_json(), px=self._kept_ms)
        try:
            await self._asked(pipeline.execute() if batch else self._redis.ping())
        except BaseException:
            self._unwritten = batch | self._unwritten
            self._bound()
            raise

    async def _asked(self, answer: Awaitable[Any]) -> Any:
        """An answer of the store; Unavailable where none comes in time."""
        now = asyncio.get_running_loop().time
        asked_s = now()
        try:
            async with asyncio.timeout(3 * ANSWER_S):  # for a place in the pool, a connection, an answer
                given = await answer
        except (RedisError, OSError) as error:
            self._metrics.errors.inc()
            raise Unavailable("the session store does not answer; name a voice, or try again soon") from error
        finally:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # which redis may lose while it opens a connection
        self._metrics.answer.observe(1000 * (now() - asked_s))
        return given

    def _turn(self, failure: Unavailable | None) -> None:
        """Tells when the store goes, and when it is back."""
        if failure is not None and not self.is_away:
            why = type(failure.__cause__).__name__
            log.warning("the session store does not answer (%s): calls begin without a record", why)
        elif failure is None and self.is_away:
            log.warning("the session store answers again")
        self.is_away = failure is not None
        self._metrics.away.set(self.is_away)


def _key(session_id: str) -> str:
    """Who reads the store cannot end the calls, as their ids are not in it."""
    return PREFIX + hashlib.sha256(session_id.encode()).hexdigest()[:32]
