"""A server starts only with the key that its user has set, or where nobody else reaches it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from configs.schema import ConfigError, read_yaml
from configs.serve import AccessArgs, ServeArgs
from serve_app import keys
from serve_app.keys import KeyMark, checked_access, checked_mark
from tests.serve_app.deploy import CONFIGS

KEY = "SEEDVC_API_KEY"


@dataclass
class Cluster:
    """What Ray and Serve would say."""

    host: str | None = "127.0.0.1"
    serving: bool = True
    drivers: tuple[dict[str, Any], ...] = ()

    def client(self, *, raise_if_no_controller_running: bool = True) -> Any:
        return SimpleNamespace(http_config=SimpleNamespace(host=self.host)) if self.serving else None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(keys, "_get_global_client", cluster.client)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.1")
    monkeypatch.setattr(ray._private.state, "jobs", lambda: list(cluster.drivers))
    return cluster


@pytest.fixture
def driver() -> Iterator[int]:
    """A process with a key in its environment, as `SEEDVC_API_KEY=sesame serve run` is one."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | {KEY: "sesame"}, stdin=-1) as process:
        yield process.pid
        process.stdin.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", None])
def test_a_server_on_loopback_needs_no_key(cluster: Cluster, host: str | None) -> None:
    cluster.host = host
    assert checked_mark(AccessArgs()) is None
    access = checked_access(AccessArgs(), None)
    assert access.key == "" and access.on_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "voice.example"])
def test_a_server_that_others_reach_needs_one(cluster: Cluster, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.host = host
    for check in (lambda: checked_mark(AccessArgs()), lambda: checked_access(AccessArgs(), None)):
        with pytest.raises(ConfigError, match=f"{host}.*no key.*{KEY}.*open: true"):
            check()
    monkeypatch.setenv(KEY, "  ")
    with pytest.raises(ConfigError, match="no key"):
        checked_mark(AccessArgs())
    assert not checked_access(AccessArgs(open=True), None).on_loopback
    monkeypatch.setenv(KEY, "sesame\n")
    access = checked_access(AccessArgs(hosts=("a.example",)), checked_mark(AccessArgs()))
    assert (access.key, access.on_loopback, access.hosts) == ("sesame", False, ("a.example",))


def test_any_page_on_the_web_needs_a_key(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="any page on the web"):
        checked_access(AccessArgs(origins=("*",)), None)
    monkeypatch.setenv(KEY, "sesame")
    assert checked_access(AccessArgs(origins=("*",)), None).origins == ("*",)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere another process's environment is not read")
def test_a_key_that_ray_did_not_get_stops_the_start(
    cluster: Cluster, driver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"DriverPid": driver, "DriverIPAddress": "192.0.2.1", "IsDead": False}
    cluster.drivers = (job,)
    for own, words in ((None, "with none"), ("other", "with another one")):
        if own is not None:
            monkeypatch.setenv(KEY, own)
        with pytest.raises(ConfigError, match=f"{KEY} is set.*{driver}.*{words}") as refused:
            checked_mark(AccessArgs())
        assert "sesame" not in str(refused.value)
    monkeypatch.setenv(KEY, "sesame")
    assert checked_mark(AccessArgs()) is not None
    monkeypatch.delenv(KEY)
    for other in ({"IsDead": True}, {"DriverIPAddress": "192.0.2.9"}, {"DriverPid": 2**22 + 1}):
        cluster.drivers = ({**job, **other},)
        assert checked_mark(AccessArgs()) is None, "over, elsewhere, or gone"


def test_a_replica_has_the_key_that_the_application_was_built_with(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sesame")
    mark = checked_mark(AccessArgs())
    assert mark is not None and b"sesame" not in pickle.dumps(mark)
    assert checked_access(AccessArgs(), mark).key == "sesame"
    for own, words in ((None, "no value"), ("other", "another value")):
        monkeypatch.delenv(KEY) if own is None else monkeypatch.setenv(KEY, own)
        with pytest.raises(ConfigError, match=words):
            checked_access(AccessArgs(), mark)


def test_a_mark_tells_keys_apart_and_never_repeats() -> None:
    mark = KeyMark.of("sesame")
    assert mark.fits("sesame") and not mark.fits("Sesame") and not mark.fits("")
    assert mark != KeyMark.of("sesame")


def test_an_application_is_built_where_nothing_runs_yet(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.serving = False
    assert checked_mark(AccessArgs()) is None
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv(KEY, "sesame")
    assert checked_mark(AccessArgs()) is not None


@pytest.mark.parametrize("name", ["local", "cpu", "gpu"])
def test_the_shipped_configs_are_open_to_nobody_else(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = read_yaml(CONFIGS / f"{name}.yaml")
    cluster.host = tree["http_options"]["host"]
    args = ServeArgs.model_validate(tree["applications"][0]["args"]).access
    if name == "gpu":
        with pytest.raises(ConfigError, match="no key"):
            checked_access(args, None)
        monkeypatch.setenv(KEY, "sesame")
    assert checked_access(args, None)
