"""Deploys a Serve config the way `serve run` does, on the session's Ray instance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

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
            raise RuntimeError(f"{status.status}: {status.message} {[d.message for d in status.deployments.values()]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not running after {DEPLOY_TIMEOUT_S:.0f} s: {status}")
        time.sleep(0.2)
