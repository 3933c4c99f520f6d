"""One Ray instance for all tests that deploy something: small, private, on free ports, gone at the end."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.serve import Limits
from tests.serve_app.deploy import Deployed, deploy, speechlike


@dataclass(frozen=True)
class RayInstance:
    """Where the session's Ray Serve listens."""

    http_url: str
    metrics_url: str


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[RayInstance]:
    """Ray with two CPUs and the Serve proxy, shared by the session; tests deploy and delete their own applications."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token file is written to the home folder
    import ray
    from ray import serve

    http_port, metrics_port = free_port(), free_port()
    # Unix socket paths must stay under 108 bytes, and Ray appends about 70 of them.
    folder = tempfile.mkdtemp(prefix="sv", dir="/tmp")
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 1024 * 1024,
        namespace="serve",
        log_to_driver=False,
        _temp_dir=folder,
        _metrics_export_port=metrics_port,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": http_port})
        yield RayInstance(f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{metrics_port}")
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves its signature open
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def graph(ray_instance: RayInstance, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """configs/cpu.yaml with the fixtures' reduced networks, deployed once for the session."""
    from ray import serve

    from stages.geometry import MODEL_RATE
    from stages.local import load

    weights = Path(__file__).parents[1] / "golden" / "tiny_model"
    voices = str(tmp_path_factory.mktemp("voices"))
    # a call that was broken off keeps its place for a moment, in which others are begun
    deploy("cpu", preset="seed-vc-small", weights=str(weights), voices=voices, rtc={"max_calls": 8})
    local, reference = load("seed-vc-small", weights), speechlike(3.0, 1)
    voice_id = serve.get_app_handle("seedvc").make_voice.remote(reference, MODEL_RATE, "reference").result()
    stored = np.rint(np.clip(reference, -1, 1) * 32767).astype(np.float32) / np.float32(32767)
    voice = local.voice(stored, MODEL_RATE)
    max_conversions = Limits().max_conversions
    return Deployed(ray_instance.http_url, ray_instance.metrics_url, local, voice_id, voice, max_conversions, weights)
