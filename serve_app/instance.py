"""A private Ray instance on one machine, which `seedvc serve`, the benchmarks and the tests start.

All its sockets listen on loopback, each of its calls needs a token that only this user can read, and what it writes
lies in a private folder that goes with it.
"""

from __future__ import annotations

import ipaddress
import math
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without stubs
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

START_TIMEOUT_S = 180.0
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    # Ray's switch for machines without a cluster; with it Ray binds loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own 15 lets a browser, or any other program, keep the replicas of a call from running.
    "RAY_worker_niceness": "0",
}
"""Environment of the driver and of all that it starts."""
REPLICA_SETTINGS = {
    # Replicas do nothing that blocks their loop, so one loop each spares two thread changes per hop. Set here and not
    # in a runtime_env: with one, Ray starts workers by a shell line that breaks at a space in the path of Python.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Serve looks after its replicas, and hands on what it counted, ten times a second: on two cores that is felt, and
    # Prometheus reads once in ten seconds.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
}
"""Environment of replicas and of Serve's controller; not of the driver, whose handles are called without a loop.

Serve reads it when imported."""
_SOCKET_PATH_BYTES = 107
_RAYS_PART_BYTES = 74  # /ray/session_2026-11-28_16-26-17_397112_13919/sockets/plasma_store


class GraphFailed(RuntimeError):
    """The graph did not start; the message says which deployment and why."""


@contextmanager
def running_ray(**options: Any) -> Iterator[Path]:
    """An instance for as long as the context is open, and its folder; `options` go to `ray.init`.

    The graph ends with it.
    """
    folder = _private_folder()
    token = folder / "token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        with environment(SETTINGS | threads | {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}):
            _start(folder / "ray", options)  # not the folder itself: Ray opens its own to everybody
            yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(temp_folder: Path, options: Mapping[str, Any]) -> None:
    # This process has read its settings when it imported Ray, and may have met another instance's token.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    with environment(REPLICA_SETTINGS):
        ray.init(
            address="local",  # never a cluster that happens to run on this machine
            namespace="serve",
            include_dashboard=False,
            _temp_dir=str(temp_folder),
            **options,
        )
    node_ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves its signature open
    if not ipaddress.ip_address(node_ip).is_loopback:
        raise RuntimeError(f"Ray {ray.__version__} listens on {node_ip}; only loopback is meant to be")


@contextmanager
def environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for as long as the context is open; None: not set."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _private_folder() -> Path:
    """A new folder that only this user can enter, with a path short enough for the sockets that Ray makes below it."""
    parent = tempfile.gettempdir()
    fits = len(os.fsencode(parent)) + len("/sv12345678") + _RAYS_PART_BYTES <= _SOCKET_PATH_BYTES
    return Path(tempfile.mkdtemp(prefix="sv", dir=parent if fits and " " not in parent else "/tmp"))


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def needed_cpus(config: Mapping[str, Any]) -> int:
    """Cores that the fewest replicas of a Serve config ask for. Ray places no replica beyond the cores it knows of."""
    deployments = [each for application in config["applications"] for each in application.get("deployments", ())]
    shares = (
        each.get("ray_actor_options", {}).get("num_cpus", 1)
        * each.get("autoscaling_config", {}).get("min_replicas", each.get("num_replicas", 1))
        for each in deployments
    )
    return math.ceil(round(math.fsum(shares), 6))


def start_serve(config: ServeDeploySchema, **options: Any) -> None:
    """Start Serve as a config says; `options` go to `serve.start`."""
    serve.start(proxy_location=config.proxy_location, http_options=config.http_options.model_dump(), **options)


def deploy(config: ServeDeploySchema) -> None:
    """Deploy a config's applications, as `serve run` does once Ray is there, and wait until they run.

    Raises:
        GraphFailed: one of them does not start.
    """
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(config, _blocking=False)  # the public API takes no config
    deadline = time.monotonic() + START_TIMEOUT_S
    for name in [application.name for application in config.applications]:
        while (status := serve.status().applications.get(name)) is None or status.status != "RUNNING":
            if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                reasons = " ".join(each.message for each in status.deployments.values() if each.message)
                raise GraphFailed(f"the graph did not start: {status.message} {reasons}")
            if time.monotonic() > deadline:
                raise GraphFailed(f"the graph was not ready within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
