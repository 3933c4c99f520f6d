"""Calls that come back as they were: by records in memory, and in a real Redis that dies, hangs, comes back empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, ClassVar

import httpx
import pytest

from configs.places import sessions_of
from configs.schema import ConfigError, read_yaml
from configs.serve import Limits, RtcArgs
from serve_app.callers.key import Key
from serve_app.callers.ring import OPERATOR, Caller
from serve_app.calls import redis_records, rtc
from serve_app.calls.protocol import Start, Wishes, parse
from serve_app.calls.records import MemoryRecords, Record, Records
from serve_app.calls.redis_records import MAX_UNWRITTEN, RedisRecords
from serve_app.calls.rtc import Find, HangUp, Rtc
from serve_app.calls.session import LEFT, Call
from serve_app.commands.serve_config import problems
from serve_app.errors import CallsFull, Refused, Unavailable
from serve_app.http import create_app
from serve_app.metrics import SessionStoreMetrics
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import CallRoom, audio_offer, until
from tests.serve_app.calls.test_rtc import NamedOwners
from tests.serve_app.deploy import CONFIGS
from tests.serve_app.fakes import EchoBackend, recordings_over
from tests.serve_app.redis_server import PASSWORD, RedisServer, requires_redis, running_redis

RECORD = Record(owner="there", wishes=Wishes(voice="clara", mode="constant", steps=3), key_id="1" * 12)
ANN, BOB = (Caller(Key(key_id=digit * 12, name=name, sha256="0" * 64)) for digit, name in (("1", "ann"), ("2", "bob")))
Open = Callable[..., Records]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One Redis for all tests here; one that has killed or hung it puts it right again."""
    with running_redis(PASSWORD) as server:
        yield server


@pytest.fixture(autouse=True)
async def no_calls_left() -> AsyncIterator[None]:
    """Ends what a test has begun."""
    Replica.opened.clear()
    yield
    for replica in Replica.opened:
        await replica.hang_up()


@pytest.fixture(params=["memory", pytest.param("redis", marks=requires_redis)])
async def replicas(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens the records of one replica after the other. In memory there is but one that knows a call: it stays."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            memory: dict[str, MemoryRecords] = {}
            yield lambda **options: memory.setdefault("one", MemoryRecords(**options))
        else:
            opened = await stack.enter_async_context(opening(request.getfixturevalue("server")))
            yield opened


@asynccontextmanager
async def opening(server: RedisServer, password: str = PASSWORD) -> AsyncIterator[Callable[..., RedisRecords]]:
    """Opens records in Redis, each with its task, as an ingress replica has them."""
    tasks: list[asyncio.Task[None]] = []

    def opened(**options: float) -> RedisRecords:
        place = sessions_of(server.url)
        assert place is not None
        options = {"renew_every_s": 0.05} | options
        records = RedisRecords.at(place, SessionStoreMetrics(), username=None, password=password, **options)
        tasks.append(asyncio.create_task(records.run()))
        return records

    yield opened
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def found(records: Records, session_id: str, expected: Record | None = RECORD) -> None:
    """Waits until a record is there, or gone."""
    async with asyncio.timeout(10):
        while await records.find(session_id) != expected:  # noqa: ASYNC110 - only the store knows
            await asyncio.sleep(0.01)


# --- what both must do


async def test_a_record_is_kept_while_its_call_is_held_and_for_a_while_after(replicas: Open) -> None:
    here, there = replicas(kept_s=0.4), replicas(kept_s=0.4)
    here.keep("here~1", RECORD)
    await found(there, "here~1")
    await asyncio.sleep(0.6)
    assert await there.find("here~1") == RECORD, "it is renewed"
    newer = RECORD.model_copy(update={"wishes": Wishes(voice="martin")})
    here.keep("here~1", newer)
    here.leave("here~1")
    await found(there, "here~1", newer)
    await found(there, "here~1", None)
    here.keep("here~2", RECORD)
    await found(there, "here~2")
    there.drop("here~2")
    here.leave("here~2")
    await found(here, "here~2", None)


class Replica:
    """One ingress replica, as far as calls go."""

    opened: ClassVar[list[Replica]] = []

    def __init__(self, records: Records, name: str = "here", others: dict[str, Rtc] | None = None) -> None:
        self.room = CallRoom(RtcArgs(max_calls=2), owner=name, records=records)
        replicas = {} if others is None else others
        self.rtc = replicas[name] = Rtc(self.room.calls, NamedOwners(name, replicas), list, self.room.args)

        self.opened.append(self)

    async def hang_up(self) -> None:
        for call in list(self.room.calls._calls.values()):
            call.stop(LEFT)
            await call.over.wait()

    async def start(self, caller: Caller = OPERATOR, **fields: Any) -> Call:
        """What a socket does with a client's `start`."""
        message = Start.model_validate({"type": "start", "sdp": audio_offer(), **fields})
        call = await self.rtc.start(message, lambda told: None, caller=caller)
        await call.answered()
        return call


async def test_a_client_comes_back_with_voice_and_settings(replicas: Open) -> None:
    others: dict[str, Rtc] = {}
    there, here = (Replica(replicas(), name, others) for name in ("there", "here"))
    lost = await there.start(voice="martin", steps=3)
    lost.hear('{"type": "change", "voice": "clara", "mode": "constant", "block_ms": 240}', lambda told: None)
    lost.hear('{"type": "change", "bypass": true, "adapt": false}', lambda told: None)
    await until(lambda: lost.settings["bypass"], "all changes were made")
    wanted = lost.wishes
    assert wanted == Wishes(voice="clara", mode="constant", block_ms=240, steps=3, bypass=True, adapt=False)
    lost.stop(LEFT)
    await lost.over.wait()

    await found(here.room.calls.records, lost.session_id, Record(owner="there", wishes=wanted))
    back = await here.start(replaces=lost.session_id)
    assert back.settings | {"adapted": None} == lost.settings | {"adapted": None}
    assert back.wishes == wanted
    # what is named wins, null is the default, and another mode brings its own block size along
    again = await here.start(replaces=back.session_id, voice="martin", mode=None, steps=None)
    assert again.wishes == Wishes(voice="martin", mode="lowest", bypass=True, adapt=False)
    assert (await back.end).reason == "replaced"
    # an old client names all; a stranger's name is no voice
    await found(here.room.calls.records, back.session_id, None)
    again.stop(LEFT)
    await again.over.wait()
    with pytest.raises(Refused) as refused:
        await here.start(replaces=back.session_id)
    assert refused.value.status == "session_not_found"
    assert (await here.start(replaces=back.session_id, voice="martin")).wishes.bypass is False


async def test_a_call_that_was_ended_on_purpose_does_not_come_back(replicas: Open) -> None:
    here = Replica(replicas())
    call = await here.start(ANN, voice="martin")
    for other in (BOB, OPERATOR):
        with pytest.raises(Refused, match="name a voice"):
            await here.start(other, replaces=call.session_id)
    assert not call.over.is_set()
    await here.rtc.ask(call.session_id, HangUp())
    await found(here.room.calls.records, call.session_id, None)


async def test_a_socket_takes_over_a_session_of_whip(replicas: Open) -> None:
    others: dict[str, Rtc] = {}
    there, here = (Replica(replicas(), name, others) for name in ("there", "here"))
    wishes = Wishes(voice="clara", mode="constant", bypass=True)
    whip = await there.rtc.publish(wishes, audio_offer("sendonly"), caller=ANN)
    await found(here.room.calls.records, whip.session_id, Record(owner="there", wishes=wishes, key_id=ANN.key_id))
    assert (await here.start(ANN, replaces=whip.session_id)).wishes == wishes
    await until(lambda: there.room.calls.live == 0, "the other one has ended")


async def test_a_client_that_comes_back_gets_its_own_place(replicas: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    others: dict[str, Rtc] = {}
    there, here = (Replica(replicas(), name, others) for name in ("there", "here"))
    first, second = await here.start(voice="martin"), await here.start(voice="martin")
    back = await here.start(replaces=first.session_id)
    with pytest.raises(CallsFull):
        await here.start(replaces=first.session_id, voice="martin")  # its place is given away
    moved = await there.start(voice="clara")
    await found(here.room.calls.records, moved.session_id, Record(owner="there", wishes=moved.wishes))
    second.stop(LEFT)
    await second.over.wait()
    # now the ladder takes no new calls
    calls = here.room.calls
    top = calls.ladder._rungs[-1]
    monkeypatch.setattr(calls.ladder, "rung", lambda now_s: top)
    with pytest.raises(CallsFull):
        await here.start(voice="martin")
    with pytest.raises(CallsFull):
        await here.start(voice="martin", replaces="there~nobody")
    assert (await here.start(replaces=moved.session_id)).voice == "clara"
    assert (await moved.end).reason == "replaced"
    assert (await here.start(replaces=back.session_id)).voice == "martin"


async def test_a_replica_that_hangs_keeps_no_call_from_coming_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung(NamedOwners):
        async def ask(self, owner: str, method: str, *args: Any) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr(rtc, "REPLACE_S", 0.05)
    here = Replica(MemoryRecords())
    here.rtc._owners = Hung("here", {})
    assert (await here.start(replaces="there~1", voice="clara")).voice == "clara"


def test_a_start_names_a_voice_or_the_call_that_had_it() -> None:
    with pytest.raises(Refused, match="names a voice, or in 'replaces'"):
        parse('{"type": "start", "sdp": "v=0"}')


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://anna:hunter2@redis:6379", "no credentials"),
        ("redis://:hunter2@redis", "SEEDVC_REDIS_PASSWORD"),
        ("redis://redis:port/0", "redis://host:port"),
        ("redis://redis/0?ssl=1", "redis://host:port"),
        ("redis://", "memory"),
        ("postgres://db", "postgres://"),
        ("none", "'none'"),
    ],
)
def test_a_place_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        sessions_of(url)
    assert "hunter2" not in str(refused.value)
    tree = read_yaml(CONFIGS / "local.yaml")
    tree["applications"][0]["args"]["sessions"] = url
    (told,) = problems(tree)
    assert told.startswith("applications.0.args.sessions: ") and "hunter2" not in told


def test_places_are_read() -> None:
    assert str(sessions_of("rediss://redis.example/3")) == "rediss://redis.example:6379/3"
    assert sessions_of("memory") is None


# --- what only Redis can do: fail


@requires_redis
async def test_calls_go_on_and_begin_without_redis_and_records_heal(
    server: RedisServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_records, "AGAIN_S", 0.05)
    async with opening(server) as opened:
        records = opened()
        here, reader = Replica(records), opened()
        app = create_app(recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits()), here.rtc)
        running = await here.start(voice="clara", mode="constant")
        await found(reader, running.session_id, Record(owner="here", wishes=running.wishes))
        server.kill()
        await until(lambda: records.is_away and reader.is_away, "both replicas miss it")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            told = await client.get("/readyz")
            assert (told.status_code, told.json()["away"]) == (200, ["the session store"])
        with pytest.raises(Unavailable, match="name a voice"):
            await here.start(replaces="there~unknown")
        new = await here.start(replaces="there~unknown", voice="martin")
        new.hear('{"type": "change", "voice": "clara"}', lambda told: None)
        await until(lambda: new.voice == "clara", "calls change as ever")
        new.stop(LEFT)
        await new.over.wait()
        assert not running.over.is_set()
        server.start()  # empty
        for call in (running, new):
            await found_again(reader, call)
        assert not records.is_away


async def found_again(records: Records, call: Call) -> None:
    """Waits for a record in a store that may still be away."""
    async with asyncio.timeout(10):
        while True:
            with suppress(Unavailable):
                if (record := await records.find(call.session_id)) is not None:
                    assert record.wishes == call.wishes
                    return
            await asyncio.sleep(0.02)


@requires_redis
async def test_nothing_waits_for_a_redis_that_hangs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_records, "ANSWER_S", 0.2)
    monkeypatch.setattr(redis_records, "AGAIN_S", 0.05)
    async with opening(server) as opened:
        records, reader = opened(), opened()
        here = Replica(records)
        await until(lambda: not records._unwritten, "it is connected")
        server.hang()
        try:
            call = await here.start(voice="clara")
            await until(lambda: records.is_away, "it is missed")
            with pytest.raises(Unavailable):
                await reader.find(call.session_id)
            for number in range(2 * MAX_UNWRITTEN):
                records.drop(f"there~{number}")
            assert len(records._unwritten) <= MAX_UNWRITTEN, "what waits is bounded"
        finally:
            server.go_on()
        await found_again(reader, call)


@requires_redis
async def test_a_wrong_password_is_told_but_not_shown(
    server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_records, "AGAIN_S", 0.05)
    async with opening(server, "hunter2") as opened:
        records = opened()
        await until(lambda: records.is_away, "it is refused")
    (warning,) = [each.getMessage() for each in caplog.records if each.name == "seedvc.calls"]
    assert "AuthenticationError" in warning
    assert "hunter2" not in caplog.text and PASSWORD not in caplog.text


@requires_redis
async def test_a_session_whose_owner_is_gone_is_not_found(server: RedisServer) -> None:
    class Silent(NamedOwners):
        async def ask(self, owner: str, method: str, *args: Any) -> Any:
            raise Unavailable("the server that holds this session does not answer; try again soon")

    async with opening(server) as opened:
        there, records = opened(), opened(lost_after_s=0.3)
        room = CallRoom(owner="here", records=records)
        silent = Rtc(room.calls, Silent("here", {}), list, room.args)
        there.keep("there~1", RECORD)
        await found(records, "there~1")
        with pytest.raises(Unavailable):
            await silent.ask("there~1", Find())
        there.leave("there~1")
        await asyncio.sleep(0.4)
        with pytest.raises(Refused) as refused:
            await silent.ask("there~1", Find())
        assert refused.value.status == "session_not_found"
        assert await records.find("there~1") == RECORD, "its client may still come back"
