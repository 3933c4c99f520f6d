"""One Ray instance for all tests that deploy something: small, private, on free ports, gone at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.serve import Limits
from tests.serve_app.buckets import ENVIRONMENT, BucketServer, url_of
from tests.serve_app.deploy import Deployed, deploy, speechlike


@dataclass(frozen=True)
class RayInstance:
    """Where the session's Ray Serve listens."""

    http_url: str
    metrics_url: str


@pytest.fixture(scope="session")
def buckets() -> Iterator[BucketServer]:
    """S3 for all tests that want it, with its credentials in the environment."""
    server = BucketServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def ray_instance(buckets: BucketServer) -> Iterator[RayInstance]:
    """Ray with two CPUs and the Serve proxy, shared by the session; tests deploy and delete their own applications."""
    from ray import serve

    from serve_app.instance import free_port, running_ray

    http_port, metrics_port = free_port(), free_port()
    with running_ray(
        num_cpus=2, object_store_memory=200 * 1024 * 1024, log_to_driver=False, _metrics_export_port=metrics_port
    ):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": http_port})
        yield RayInstance(f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{metrics_port}")
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves its signature open


@pytest.fixture(scope="session")
def graph(ray_instance: RayInstance, buckets: BucketServer) -> Deployed:
    """configs/cpu.yaml with the fixtures' reduced networks and voices in S3, deployed once for the session."""
    from ray import serve

    from stages.geometry import MODEL_RATE
    from stages.local import load

    weights = Path(__file__).parents[1] / "golden" / "tiny_model"
    voices = url_of(buckets.new_bucket())
    # a call that was broken off keeps its place for a moment, in which others are begun
    deploy("cpu", preset="seed-vc-small", weights=str(weights), voices=voices, rtc={"max_calls": 8})
    local, reference = load("seed-vc-small", weights), speechlike(3.0, 1)
    voice_id = serve.get_app_handle("seedvc").make_voice.remote(reference, MODEL_RATE, "reference").result()
    stored = np.rint(np.clip(reference, -1, 1) * 32767).astype(np.float32) / np.float32(32767)
    voice = local.voice(stored, MODEL_RATE)
    max_conversions = Limits().max_conversions
    return Deployed(ray_instance.http_url, ray_instance.metrics_url, local, voice_id, voice, max_conversions, weights)
