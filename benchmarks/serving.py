"""A Ray instance with a Serve config's graph for as long as a benchmark needs it: own ports, own folder."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app import instance
from serve_app.instance import GraphFailed, free_port

__all__ = ["APPLICATION", "GraphFailed", "free_port", "running_graph"]

APPLICATION = "seedvc"
CONFIGS = Path(__file__).parent.parent / "configs"
CPU_CORES = 2  # what configs/local.yaml shares out, on a machine with more or fewer too
OBJECT_STORE_BYTES = 200 * 2**20


@contextmanager
def running_graph(config: str = "local", **args: object) -> Iterator[str]:
    """Starts the graph with changed application arguments, yields its address, and stops it and its Ray instance."""
    tree = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with instance.running_ray(
        num_cpus=CPU_CORES,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    ) as folder:
        application = tree["applications"][0]
        application["args"] |= {"voices": str(folder / "voices")} | {
            name: value for name, value in args.items() if value is not None
        }
        tree["http_options"]["port"] = free_port()
        schema = ServeDeploySchema.model_validate(tree)
        instance.start_serve(schema, logging_config={"enable_access_log": False, "log_level": "ERROR"})
        instance.deploy(schema)
        url = f"http://127.0.0.1:{schema.http_options.port}"
        _wait_ready(url)
        yield url


def _wait_ready(url: str) -> None:
    deadline_s = time.monotonic() + instance.START_TIMEOUT_S
    while (answer := httpx.get(f"{url}/readyz", timeout=instance.START_TIMEOUT_S)).status_code != 200:
        if time.monotonic() > deadline_s:
            answer.raise_for_status()
        time.sleep(0.2)
