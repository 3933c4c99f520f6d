"""Sessions on several replicas of a real Serve: who holds one, who reaches it, who counts it, what a stop does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from serve_app.calls.registry import owner_of
from tests.serve_app.calls.fakes import audio_offer
from tests.serve_app.calls.owned import SilentIngress
from tests.serve_app.calls.test_rtc import FRAGMENT, SDP, START, TRICKLE
from tests.serve_app.conftest import RayInstance
from tests.serve_app.fakes import wait_until

pytestmark = pytest.mark.ray

APP = "owned"
REPLICAS = 2
PUBLISH = "/owned/v1/rtc/whip?voice=martin"


@pytest.fixture
def client(ray_instance: RayInstance) -> Iterator[httpx.Client]:
    """Two replicas behind Serve's proxy, each with places for two calls."""
    run(REPLICAS)
    with httpx.Client(base_url=ray_instance.http_url, timeout=30) as client:
        yield client
    if APP in serve.status().applications:
        serve.delete(APP)


def run(replicas: int) -> None:
    """Starts the application, or brings it to another number of replicas."""
    to_owners = RequestRouterConfig(request_router_class="serve_app.calls.owners:OwnerRouter")  # type: ignore[arg-type]
    ingress = serve.deployment(
        name="Silent",
        num_replicas=replicas,
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0},  # the graph may have taken all there are
        request_router_config=to_owners,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
    )(serve.ingress()(SilentIngress))
    serve.run(ingress.bind(), name=APP, route_prefix="/owned")


def published(client: httpx.Client, places: int) -> dict[str, httpx.Response]:
    """So many sessions, by their id."""
    held: dict[str, httpx.Response] = {}
    # A replica that is full refuses and the proxy does not ask another, so it may take a few more tries.
    while len(held) < places:
        created = client.post(PUBLISH, content=audio_offer("sendonly"), headers=SDP)
        if created.status_code == 201:
            held[session(created)] = created
        else:
            assert (created.status_code, created.json()["detail"]["status"]) == (503, "at_capacity")
    return held


def ongoing() -> dict[str, int]:
    """How many requests each replica counts, by the replica's name."""
    counts = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if f"{APP}#Silent#" in actor["name"]:
            replica: Any = ray.get_actor(actor["name"], namespace=actor["namespace"])
            counts[actor["name"].rpartition("#")[2]] = ray.get(replica.get_num_ongoing_requests.remote())
    return counts


def session(created: httpx.Response) -> str:
    assert created.status_code == 201, created.text
    return created.headers["location"].rpartition("/")[2]


def test_sessions_are_reached_counted_and_waited_for(ray_instance: RayInstance, client: httpx.Client) -> None:
    held = published(client, 2 * REPLICAS)
    owners = [owner_of(session_id) for session_id in held]
    assert {owners.count(owner) for owner in owners} == {2}
    wait_until(lambda: ongoing() == {owner: 2 for owner in owners}, "each session is its owner's ongoing request")

    # Whichever replica the proxy picks, the owner gets it.
    for created in held.values():
        for _ in range(4):
            headers = TRICKLE | {"If-Match": created.headers["etag"]}
            patched = client.patch(created.headers["location"], content=FRAGMENT, headers=headers)
            assert patched.status_code == 204, patched.text
            wrong = client.patch(created.headers["location"], content=FRAGMENT, headers=TRICKLE | {"If-Match": '"x"'})
            assert (wrong.status_code, wrong.json()["detail"]["status"]) == (412, "precondition_failed")
    ear = client.post(f"/owned/v1/rtc/whep/{next(iter(held))}", content=audio_offer("recvonly"), headers=SDP)
    assert owner_of(session(ear)) == owners[0]
    gone = client.delete("/owned/v1/rtc/sessions/nobody~secret")
    assert (gone.status_code, gone.json()["detail"]["status"]) == (404, "session_not_found")

    for created in list(held.values())[1:]:
        assert client.delete(created.headers["location"]).status_code == 200
    wait_until(lambda: sorted(ongoing().values()) == [0, 1], "what has ended is no longer counted")

    # A socket is told when its replica goes away; a session without one is waited for.
    last = next(iter(held.values()))
    with connect(f"{ray_instance.http_url.replace('http', 'ws')}/owned/v1/rtc/ws") as socket:
        assert '"hello"' in socket.recv()
        socket.send(json.dumps(START))
        while '"ready"' not in socket.recv(10):
            pass
        deleting = threading.Thread(target=serve.delete, args=(APP,))
        deleting.start()
        with pytest.raises(ConnectionClosed) as closed:
            while '"shutting_down"' not in (told := socket.recv(20)):
                pass
            assert '"end"' in told
            socket.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    assert deleting.is_alive()
    assert ongoing()[owner_of(session(last))] == 1
    deleting.join(60)  # Serve waits for that session as long as it was told to, and no longer
    assert not deleting.is_alive()


def test_a_replica_that_is_asked_to_stop_still_answers_for_its_sessions(client: httpx.Client) -> None:
    held = published(client, 2 * REPLICAS)
    scaling = threading.Thread(target=run, args=(1,))  # it waits for what is to stop
    scaling.start()

    def stopping() -> list[str]:
        replicas = serve.status().applications[APP].deployments["Silent"].replica_states
        return [state for state, count in replicas.items() if state == "STOPPING" and count]

    wait_until(lambda: bool(stopping()), "one replica was asked to stop")
    for created in held.values():
        headers = TRICKLE | {"If-Match": created.headers["etag"]}
        patched = client.patch(created.headers["location"], content=FRAGMENT, headers=headers)
        assert patched.status_code == 204, patched.text
    for created in held.values():
        assert client.delete(created.headers["location"]).status_code == 200
    wait_until(lambda: not stopping() and sorted(ongoing().values()) == [0], "the replica had nothing to wait for")
    scaling.join(60)
    gone = client.delete(next(iter(held.values())).headers["location"])
    assert (gone.status_code, gone.json()["detail"]["status"]) == (404, "session_not_found")
