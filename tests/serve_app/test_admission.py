"""Who does not send keeps nobody waiting: idle bodies, slow ones, refusals and silent sockets give their places up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient

from configs.schema import ConfigError
from configs.serve import MAX_REFUSING, Limits, ServeArgs
from serve_app import places
from serve_app.admission import Admission, Drains
from serve_app.errors import AtCapacity, Displaced, UploadStalled
from serve_app.http import create_app
from serve_app.places import Place, Places
from serve_app.recordings.service import Recordings
from serve_app.voices.folder import FolderVoiceStore
from stages.line import MAX_IN_FLIGHT
from tests.serve_app.fakes import EchoBackend, RawUpload, recordings_over, serving, streamed, tone, wait_until, wav_file

CONVERT = "/v1/speech-to-speech/clara"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_GRACE_S", 0.0)


@contextmanager
def service_at(folder: Path, **limits: Any) -> Iterator[tuple[str, Recordings, ExitStack]]:
    """A server, what it serves, and where its raw clients are closed."""
    service = recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits(**limits))
    with serving(create_app(service)) as url, ExitStack() as clients:
        yield url, service, clients


def upload(url: str, clients: ExitStack, path: str = CONVERT) -> RawUpload:
    raw = RawUpload(url, path)
    clients.callback(raw.close)
    return raw


def convert(url: str) -> httpx.Response:
    return httpx.post(url + CONVERT, files={"audio": wav_file(tone(1.0), 22050)}, timeout=30)


@pytest.mark.parametrize("path", [CONVERT, CONVERT + "/stream", "/v1/voices/add"])
def test_uploads_that_send_nothing_cost_no_place(tmp_path: Path, no_grace: None, path: str) -> None:
    with service_at(tmp_path, max_uploads=3) as (url, service, clients):
        raws = [upload(url, clients, path) for _ in range(12)]
        assert httpx.get(url + "/healthz", timeout=10).status_code == 200
        assert convert(url).status_code == 200
        gone = raws[0].receive_all()
        assert raws[0].status == 408 and b"displaced" in gone
        assert service.running_conversions == 0


def test_uploads_that_come_keep_their_places(tmp_path: Path, no_grace: None) -> None:
    with service_at(tmp_path, max_uploads=2) as (url, _, clients):
        raws = [upload(url, clients) for _ in range(2)]
        for raw in raws:
            raw.begin_file()
            raw.send(wav_file(tone(0.5), 22050))
        assert httpx.get(url + "/healthz", timeout=10).status_code == 200

        def is_full() -> bool:
            answer = convert(url)
            if answer.status_code == 429:
                assert answer.json()["detail"]["status"] == "too_many_concurrent_requests"
                assert int(answer.headers["retry-after"]) >= 1
            return answer.status_code == 429

        wait_until(is_full, "both uploads have begun")
        for raw in raws:
            raw.end_file()
            raw.end()
            raw.receive_all()
            assert raw.status == 200
        wait_until(lambda: convert(url).status_code == 200, "the places are free again")


def test_a_stream_that_stalls_gives_its_conversion_up(
    tmp_path: Path, no_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_CREDIT_S", 0.0)
    with service_at(tmp_path, max_conversions=1) as (url, service, clients):
        raw = upload(url, clients, CONVERT + "/stream")
        raw.begin_file()
        raw.send(streamed(3.0, "mp3_44100_128"))
        raw.receive_body()
        assert service.running_conversions == 1
        assert httpx.get(url + "/readyz").status_code == 200
        assert convert(url).status_code == 200
        raw.receive_all()
        assert not raw.complete


def test_the_first_byte_of_a_body_has_a_deadline(tmp_path: Path) -> None:
    with service_at(tmp_path, max_upload_wait_s=0.05) as (url, _, clients):
        for path in (CONVERT, "/v1/voices/add"):
            raw = upload(url, clients, path)
            raw.receive_all()
            assert raw.status == 408


async def never() -> MutableMapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def drop() -> MutableMapping[str, Any]:
    await asyncio.sleep(0.002)
    return {"type": "http.request", "body": b"x", "more_body": True}


async def test_an_upload_may_not_drip_for_ever() -> None:
    place = Place(Limits(max_upload_s=0.1))
    with pytest.raises(UploadStalled):
        while True:
            await place.receive(drop)


async def test_the_slowest_gives_way_and_only_the_slow_do(no_grace: None) -> None:
    of_two = Places("uploads", 2, Limits(min_upload_bytes_per_s=100))
    slow, quick = of_two.take(), of_two.take()
    waiting = asyncio.create_task(slow.receive(never))

    async def piece() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": bytes(500), "more_body": True}

    await quick.receive(piece)
    await asyncio.sleep(0)
    newcomer = of_two.take()
    with pytest.raises(Displaced):
        await waiting
    with pytest.raises(Displaced):
        await slow.receive(never)
    assert len(of_two) == 2
    newcomer.safe_until_s = float("inf")
    with pytest.raises(AtCapacity, match="2 uploads"):
        of_two.take()


async def test_a_body_that_is_here_cannot_be_displaced(no_grace: None) -> None:
    async def last() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    of_one = Places("uploads", 1, Limits())
    await of_one.take().receive(last)
    with pytest.raises(AtCapacity):
        of_one.take()


async def test_refusals_wait_for_their_clients_in_bounds() -> None:
    drains = Drains(1)
    first = asyncio.create_task(drains.drain(never))
    await asyncio.sleep(0)
    async with asyncio.timeout(0.5):  # the first waits a second for more
        await drains.drain(never)
    assert not first.done()
    first.cancel()


def test_a_socket_whose_client_is_silent_gives_way_and_one_that_spoke_does_not() -> None:
    app = FastAPI()

    @app.websocket("/")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            try:
                await websocket.send_text(await websocket.receive_text())
            except WebSocketDisconnect:
                return
            except Displaced:
                await websocket.close(1008)
                return

    admission = Admission(app, Limits(), max_waiting=1)
    with TestClient(admission) as client, client.websocket_connect("/") as speaking:
        speaking.send_text("start")
        assert speaking.receive_text() == "start"
        with client.websocket_connect("/") as silent, client.websocket_connect("/"):
            assert silent.receive()["type"] == "websocket.close"
        speaking.send_text("still here")
        assert speaking.receive_text() == "still here"


@pytest.mark.parametrize("config", ["local", "cpu", "gpu"])
def test_health_finds_room_beside_all_that_may_come(config: str) -> None:
    application = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["applications"][0]
    args = ServeArgs.model_validate(application["args"])
    (ingress,) = (options for options in application["deployments"] if options["name"] == "Ingress")
    args.check_ongoing_requests(ingress["max_ongoing_requests"])
    assert args.limits.max_uploads > args.limits.max_conversions
    with pytest.raises(ConfigError, match=r"max_ongoing_requests of Ingress is 32; .* at least"):
        args.check_ongoing_requests(32)
    assert args.ongoing_requests > args.limits.max_uploads + MAX_REFUSING


@pytest.mark.parametrize("config", ["local", "cpu"])
def test_blocks_of_calls_find_room_beside_all_recordings(config: str) -> None:
    application = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["applications"][0]
    args = ServeArgs.model_validate(application["args"])
    # Of one recording there are at once: a window, and two chunks that are to become mel and sound.
    hops = 5 if args.together else 2
    asked = args.limits.max_conversions * hops + args.rtc.max_calls * MAX_IN_FLIGHT
    for options in application["deployments"]:
        if options["name"] not in ("Ingress", "VoiceMaker"):
            assert options["max_ongoing_requests"] * options["autoscaling_config"]["min_replicas"] >= asked


def test_a_body_on_any_route_has_a_place(tmp_path: Path, no_grace: None) -> None:
    """Routes that read no body leave it unread: it must not keep the request going."""
    with service_at(tmp_path, max_uploads=2) as (url, _, clients):
        for path in ("/v1/nothing", "/v1/models", "/v1/voices"):
            for _ in range(4):
                upload(url, clients, path)
        assert httpx.get(url + "/healthz", timeout=10).status_code == 200
        assert convert(url).status_code == 200
