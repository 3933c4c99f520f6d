"""The KubeRay RayService, generated from a Serve config: `python -m serve_app.manifest` writes cluster/rayservice.yaml.

The Serve config is written once, in configs/; pods, volumes and probes follow from it here.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from pathlib import Path
from typing import Any

import ray
import yaml

from configs.places import BucketPlace, RedisPlace, place_of, place_of_keys, sessions_of
from configs.schema import ConfigError
from configs.serve import AccessArgs
from serve_app.instance import REPLICA_SETTINGS

ROOT = Path(__file__).parents[1]
SERVE_CONFIG = ROOT / "configs" / "gpu.yaml"
MANIFEST = ROOT / "cluster" / "rayservice.yaml"
CLAIM = "seedvc-data"
DATA_FOLDER = "/data"
GPU = "nvidia.com/gpu"
BUCKET_SECRET = "seedvc-s3"
"""The Secret whose entries become environment variables (AWS_ACCESS_KEY_ID and the like), where voices are in S3. Pods
that have a role of their own do without it."""
REDIS_SECRET = "seedvc-redis"
"""The same where records of calls are in Redis: SEEDVC_REDIS_PASSWORD, and SEEDVC_REDIS_USERNAME where it has one."""
KEY_SECRET, KEY_ENTRY = "seedvc", "api-key"
"""The Secret, and what in it is the API key: other machines reach a cluster, so it starts with one only."""
DRAIN_S = 600
"""How long a replaced pod may finish what it serves; the ingress' own graceful shutdown lasts as long."""
RAY_CPUS = 1
"""Cores of a worker that Ray itself and the HTTP proxy take."""
LABEL = {"app": "seedvc"}
"""The label of every pod, by which cluster/network.yaml selects them."""
WGET = "wget --tries 1 -T 4 -q -O-"
TOKEN = ' --header "Authorization: Bearer $RAY_AUTH_TOKEN"'

Tree = dict[str, Any]


def ray_service(config: Tree, image: str) -> Tree:
    """The manifest that serves one application of `config` on GPU workers."""
    application = config["applications"][0]
    args = application["args"]
    folders = {"weights": f"{DATA_FOLDER}/weights/{args['preset']}"}
    if not _in_bucket(args):
        folders["voices"] = f"{DATA_FOLDER}/voices"
    served = config | {"applications": [application | {"args": args | folders}]}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "seedvc", "labels": {"app.kubernetes.io/name": "seedvc-serve"}},
        "spec": {
            "serveConfigV2": yaml.safe_dump(served, sort_keys=False, width=120),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": DRAIN_S,
            "rayClusterConfig": {
                "rayVersion": ray.__version__,
                # KubeRay makes the token and hands it to all pods; without it anybody who reaches a pod can run code
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": DRAIN_S},
                "headGroupSpec": _with_secrets(_head(image), args),
                "workerGroupSpecs": [_with_secrets(_workers(application["deployments"], image), args)],
            },
        },
    }


def _in_bucket(args: Tree) -> bool:
    return isinstance(place_of(args.get("voices", "")), BucketPlace)


def _in_redis(args: Tree) -> bool:
    """Whether records of sessions or keys are there."""
    keys = args.get("access", {}).get("keys")
    return sessions_of(args.get("sessions", "memory")) is not None or (
        keys is not None and isinstance(place_of_keys(keys), RedisPlace)
    )


def _with_secrets(group: Tree, args: Tree) -> Tree:
    """Gives the containers of a group of pods what they need of Secrets: the API key, what bucket and Redis ask for."""
    access = AccessArgs.model_validate(args.get("access", {}))
    for container in group["template"]["spec"]["containers"]:
        if not access.open:
            source = {"secretKeyRef": {"name": KEY_SECRET, "key": KEY_ENTRY}}
            container["env"] = [{"name": access.api_key_env, "valueFrom": source}]
        secrets = [BUCKET_SECRET] * _in_bucket(args)
        secrets += [REDIS_SECRET] * _in_redis(args)
        if secrets:
            container["envFrom"] = [{"secretRef": {"name": name, "optional": True}} for name in secrets]
    return group


def _head(image: str) -> Tree:
    """Control plane only: num-cpus 0 keeps replicas away."""
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000, "metrics": 8080}
    container = _container("ray-head", image, {"cpu": "2", "memory": "8Gi"}, ports)
    container |= _probes("localhost:52365/api/local_raylet_healthz", "localhost:8265/api/gcs_healthz")
    return {"rayStartParams": {"num-cpus": "0"}, "template": _template(_pod(container))}


def _workers(deployments: list[Tree], image: str) -> Tree:
    """Pods of one GPU each: as many as all replicas at their fewest need, and up to what they need at their most."""
    if not _sum(deployments, "num_gpus", "max_replicas"):
        raise ConfigError("no deployment of this config takes a GPU; the manifest is for one that does, as gpu.yaml")
    fewest = math.ceil(_sum(deployments, "num_gpus", "min_replicas"))
    most = math.ceil(_sum(deployments, "num_gpus", "max_replicas"))
    cpus_per_pod = max(
        _sum(deployments, "num_cpus", "min_replicas") / fewest, _sum(deployments, "num_cpus", "max_replicas") / most
    )
    resources = {"cpu": str(math.ceil(cpus_per_pod) + RAY_CPUS), "memory": "32Gi", GPU: "1"}
    container = _container("ray-worker", image, resources, {"serve": 8000, "metrics": 8080})
    container |= _probes("localhost:52365/api/local_raylet_healthz", ready="localhost:8000/-/healthz")
    pod = _pod(container) | {
        "terminationGracePeriodSeconds": DRAIN_S,
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
    }
    return {
        "groupName": "gpu",
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _template(pod),
    }


def _sum(deployments: list[Tree], resource: str, replicas: str) -> float:
    """What all deployments together take of a resource, at their fewest or most replicas."""
    return math.fsum(
        d["ray_actor_options"].get(resource, 0) * d["autoscaling_config"][replicas] for d in deployments
    )  # fsum, since 0.2 + 0.5 + 0.2 + 0.1 must need one GPU, not two


def _container(name: str, image: str, resources: Tree, ports: dict[str, int]) -> Tree:
    """One Ray container; requests equal limits, so that no neighbour takes its time."""
    return {
        "name": name,
        "image": image,
        "resources": {"requests": resources, "limits": dict(resources)},
        "env": [{"name": name, "value": value} for name, value in REPLICA_SETTINGS.items()],
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "volumeMounts": [{"name": "data", "mountPath": DATA_FOLDER}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _probes(*addresses: str, ready: str | None = None) -> Tree:
    """Alive while Ray answers; ready when, beyond that, `ready` does (a worker's proxy runs where a replica does)."""

    def probe(urls: tuple[str, ...], failures: int) -> Tree:
        command = " && ".join(f"{WGET}{'' if url == ready else TOKEN} http://{url} | grep -q success" for url in urls)
        return {
            "exec": {"command": ["bash", "-c", command]},
            "initialDelaySeconds": 30,
            "periodSeconds": 5,
            "timeoutSeconds": 10,
            "failureThreshold": failures,
        }

    wanted = (*addresses, ready) if ready else addresses
    return {"livenessProbe": probe(addresses, failures=120), "readinessProbe": probe(wanted, failures=3)}


def _pod(container: Tree) -> Tree:
    user = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "restartPolicy": "Never",  # a new pod for a new Ray node, as autoscaler v2 wants it
        "securityContext": user,
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
    }


def _template(pod: Tree) -> Tree:
    return {"metadata": {"labels": dict(LABEL)}, "spec": pod}


class _Dumper(yaml.SafeDumper):
    """Blocks for texts of several lines, no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def generate(serve_config: Path = SERVE_CONFIG, image: str | None = None) -> str:
    """The text of the manifest for a Serve config file."""
    if image is None:
        image = f"seedvc-serve:{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}"
    tree = ray_service(yaml.safe_load(serve_config.read_text()), image)
    note = (
        f"# Generated from configs/{serve_config.name} by `python -m serve_app.manifest`; change that file instead.\n"
    )
    return note + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120)


def main() -> None:
    """Writes the manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=SERVE_CONFIG, help="the Serve config")
    parser.add_argument("--image", help="the image to run, with its registry and tag")
    parser.add_argument("--out", type=Path, default=MANIFEST)
    args = parser.parse_args()
    try:
        manifest = generate(args.config, args.image)
    except ConfigError as error:
        parser.error(str(error))
    args.out.write_text(manifest)


if __name__ == "__main__":
    main()
