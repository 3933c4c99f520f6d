"""A Ray instance with a Serve config's graph for as long as a benchmark needs it: own ports, own folder."""

import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

CONFIGS = Path(__file__).parent.parent / "configs"
APPLICATION = "seedvc"
CPU_CORES = 2  # what configs/local.yaml shares out, on a machine with more or fewer too
OBJECT_STORE_BYTES = 200 * 2**20
START_TIMEOUT_S = 180.0


class GraphFailed(RuntimeError):
    """The graph did not start; the message says which deployment and why."""


@contextmanager
def running_graph(config: str = "local", **args: object) -> Iterator[str]:
    """Starts the graph with changed application arguments, yields its address, and stops it and its Ray instance."""
    # Unix socket paths must stay under 108 bytes, and Ray appends about 70 of them.
    folder = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
    tree = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))
    application = tree["applications"][0]
    application["args"] |= {"voices": str(folder / "voices")} | {
        name: value for name, value in args.items() if value is not None
    }
    port = free_port()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        num_cpus=CPU_CORES,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        namespace="serve",
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
        _deploy({"applications": [application]})
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url)
        yield url
    finally:
        ray.shutdown()  # the instance is this process's own: all of it ends here, the graph included
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(url: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (answer := httpx.get(f"{url}/readyz", timeout=START_TIMEOUT_S)).status_code != 200:
        if time.monotonic() > deadline_s:
            answer.raise_for_status()
        time.sleep(0.2)


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _deploy(config: dict[str, object]) -> None:
    """What `serve run CONFIG` does once Ray is there: the public API takes no config."""
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (status := serve.status().applications.get(APPLICATION)) is None or status.status != "RUNNING":
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = " ".join(deployment.message for deployment in status.deployments.values() if deployment.message)
            raise GraphFailed(f"the graph did not start: {status.message} {reasons}")
        if time.monotonic() > deadline:
            raise GraphFailed(f"the graph was not ready within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
