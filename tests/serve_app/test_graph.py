"""The graph on Ray Serve gives what the stages give in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray import serve

from configs import load_preset
from stages.local import LocalStages, load
from tests.serve_app.conftest import RayInstance
from tests.serve_app.deploy import deploy

pytestmark = pytest.mark.ray

WEIGHTS = Path(__file__).parents[1] / "golden" / "tiny_model"
RATE = 22050


@pytest.fixture(scope="module")
def local() -> LocalStages:
    return load("seed-vc-small", WEIGHTS)


@pytest.fixture(scope="module")
def graph(ray_instance: RayInstance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayInstance]:
    deploy("local", preset="seed-vc-small", weights=str(WEIGHTS), voices=str(tmp_path_factory.mktemp("voices")))
    yield ray_instance
    serve.delete("seedvc")


def speechlike(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (120 + 20 * np.sin(2 * np.pi * 2 * t)) * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return (0.3 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def test_equals_in_process(graph: RayInstance, local: LocalStages) -> None:
    handle = serve.get_app_handle("seedvc")
    source, reference = speechlike(2.0, 0), speechlike(3.0, 1)
    voice_id = handle.make_voice.remote(reference, RATE, "reference").result()
    got = handle.convert.remote(source, RATE, voice_id, seed=7, steps=2).result()
    stored = np.rint(np.clip(reference, -1, 1) * 32767).astype(np.float32) / np.float32(32767)
    expected = local.convert(source, RATE, local.voice(stored, RATE), seed=7, steps=2)
    assert np.array_equal(got, expected)
