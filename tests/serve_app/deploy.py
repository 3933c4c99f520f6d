"""Deploys a Serve config the way `serve run` does, on the session's Ray instance."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from configs import Preset
from stages.geometry import MODEL_RATE
from stages.local import LocalStages
from stages.types import Samples, Voice

CONFIGS = Path(__file__).parents[2] / "configs"
DEPLOY_TIMEOUT_S = 180.0


def deploy(config: str, deployments: dict[str, dict[str, Any]] | None = None, **args: Any) -> None:
    """Deploy configs/<config>.yaml with changed application arguments and deployment options; wait until it runs."""
    tree = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    application = tree["applications"][0]
    application["args"] |= args
    for options in application["deployments"]:
        options |= (deployments or {}).get(options["name"], {})
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=False)
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while (status := serve.status().applications.get("seedvc")) is None or status.status != "RUNNING":
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            messages = [deployment.message[-500:] for deployment in status.deployments.values()]
            raise RuntimeError(f"{status.status}: {status.message} {messages}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not running after {DEPLOY_TIMEOUT_S:.0f} s: {status}")
        time.sleep(0.2)


def speechlike(seconds: float, seed: int) -> Samples:
    """A voiced, modulated sound at 22.05 kHz with some noise: nothing in it is silent."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * MODEL_RATE)) / MODEL_RATE
    tone = np.sin(2 * np.pi * 120 * t + 20 * np.sin(2 * np.pi * 2 * t)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return np.asarray(0.3 * tone + 0.02 * rng.standard_normal(len(t)), np.float32)


@dataclass(frozen=True)
class Deployed:
    """The running application, the same networks in this process, and a voice that both know."""

    http_url: str
    metrics_url: str
    local: LocalStages
    voice_id: str
    voice: Voice
    max_conversions: int
    weights: Path

    @property
    def preset(self) -> Preset:
        return self.local.preset
