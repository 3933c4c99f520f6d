"""cluster/: the manifest is the generated one, KubeRay's schema accepts it, and Serve knows every key of its config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs import load_preset
from configs.serve import ServeArgs
from serve_app.commands import serve_config
from serve_app.manifest import BUCKET_SECRET, CLAIM, MANIFEST, REDIS_SECRET, SERVE_CONFIG, generate

CRD = Path(__file__).parent / "kuberay-rayservices-crd.yaml"
FOLDER = MANIFEST.parent
GPU = "nvidia.com/gpu"
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def manifest() -> Tree:
    tree: Tree = yaml.safe_load(MANIFEST.read_text())
    return tree


@pytest.fixture(scope="module")
def served(manifest: Tree) -> Tree:
    tree: Tree = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return tree


@pytest.fixture(scope="module")
def schema() -> Tree:
    """KubeRay's v1 schema, closed: the cluster drops unknown fields in silence, a test should not."""
    definition = yaml.load(CRD.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema: Tree = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def closed(node: Any) -> Any:
    """A schema in which an object with named properties allows no others, and int-or-string fields allow both."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: closed(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_open = node.get("x-kubernetes-preserve-unknown-fields") is True or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not is_open:
        out["additionalProperties"] = False
    return out


def problems(schema: Tree, tree: Tree) -> list[str]:
    errors = jsonschema.Draft7Validator(schema).iter_errors(tree)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:120]}" for error in errors]


def test_the_manifest_is_generated() -> None:
    assert MANIFEST.read_text() == generate(), "run `python -m serve_app.manifest`"


def test_kuberay_accepts_it(manifest: Tree, schema: Tree) -> None:
    assert problems(schema, manifest) == []


def test_a_misspelt_field_is_found(manifest: Tree, schema: Tree) -> None:
    wrong = copy.deepcopy(manifest)
    cluster = wrong["spec"]["rayClusterConfig"]
    cluster["enableIntreeAutoscaling"] = cluster.pop("enableInTreeAutoscaling")
    cluster["workerGroupSpecs"][0].pop("maxReplicas")
    cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert len(problems(schema, wrong)) == 3


def test_serve_knows_every_key(served: Tree) -> None:
    assert serve_config.problems(served) == []
    config = ServeDeploySchema.model_validate(served)
    (application,) = config.applications
    assert application.import_path == "serve_app.app:build"
    assert application.name == "seedvc"
    assert {deployment.name for deployment in application.deployments} == {
        *("Ingress", "Encoder", "Diffusion", "Vocoder", "VoiceMaker")
    }


def test_only_the_folders_differ_from_the_serve_config(served: Tree) -> None:
    written = yaml.safe_load(SERVE_CONFIG.read_text())
    args = ServeArgs.model_validate(served["applications"][0]["args"])
    assert Path(args.voices).is_absolute()
    assert Path(str(args.weights)).is_absolute()
    told = copy.deepcopy(served)
    for tree in (written, told):
        for folder in ("voices", "weights"):
            tree["applications"][0]["args"].pop(folder, None)
    assert written == told


@pytest.mark.parametrize(
    "in_redis", [{"sessions": "redis://redis:6379/1"}, {"access": {"keys": "redis://redis:6379/2"}}], ids=str
)
def test_voices_in_s3_and_sessions_or_keys_in_redis_stay_there(schema: Tree, tmp_path: Path, in_redis: Tree) -> None:
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    places = {"voices": "s3://voices/of/us?endpoint=http://minio:9000", **in_redis}
    config["applications"][0]["args"] |= places
    (tmp_path / "s3.yaml").write_text(yaml.safe_dump(config))
    tree: Tree = yaml.safe_load(generate(tmp_path / "s3.yaml"))
    assert problems(schema, tree) == []
    served = yaml.safe_load(tree["spec"]["serveConfigV2"])
    assert places.items() <= served["applications"][0]["args"].items()
    for pod in pods(tree):
        (container,) = pod["containers"]
        secrets = [{"secretRef": {"name": name, "optional": True}} for name in (BUCKET_SECRET, REDIS_SECRET)]
        assert container["envFrom"] == secrets


def pods(manifest: Tree) -> list[Tree]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_pods_are_guaranteed_probed_and_unprivileged(manifest: Tree) -> None:
    for pod in pods(manifest):
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= resources["limits"].keys()
        assert {"livenessProbe", "readinessProbe"} <= container.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}]


def test_ray_asks_for_its_token(manifest: Tree) -> None:
    assert manifest["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    for pod in pods(manifest):
        (container,) = pod["containers"]
        assert not any(variable["name"].startswith("RAY_AUTH") for variable in container["env"])
        for probe in ("livenessProbe", "readinessProbe"):
            *_, command = container[probe]["exec"]["command"]
            asked = [part for part in command.split("&&") if ":8000/" not in part]
            assert all("Bearer $RAY_AUTH_TOKEN" in part for part in asked)


def test_only_pods_reach_rays_ports(manifest: Tree) -> None:
    (policy,) = yaml.safe_load_all((FOLDER / "network.yaml").read_text())
    cluster = manifest["spec"]["rayClusterConfig"]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    from_anywhere = [port for rule in policy["spec"]["ingress"] if "from" not in rule for port in rule["ports"]]
    served = yaml.safe_load(manifest["spec"]["serveConfigV2"])["http_options"]["port"]
    assert [port["port"] for port in from_anywhere if port["protocol"] == "TCP"] == [served]
    inside = [rule for rule in policy["spec"]["ingress"] if "from" in rule and "ports" not in rule]
    assert [rule["from"] for rule in inside] == [[{"podSelector": {"matchLabels": labels}}]]


def test_workers_hold_all_replicas(manifest: Tree, served: Tree) -> None:
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    deployments = served["applications"][0]["deployments"]
    for n_pods, replicas in ((group["minReplicas"], "min_replicas"), (group["maxReplicas"], "max_replicas")):
        for resource, per_pod in (("num_gpus", int(limits[GPU])), ("num_cpus", int(limits["cpu"]))):
            wanted = sum(
                d["ray_actor_options"].get(resource, 0) * d["autoscaling_config"][replicas] for d in deployments
            )
            assert wanted <= n_pods * per_pod + 1e-9, (replicas, resource)
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    drain_s = next(d["graceful_shutdown_timeout_s"] for d in deployments if d["name"] == "Ingress")
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s


def test_the_storage_fits_the_manifest(manifest: Tree, served: Tree) -> None:
    claim, job = yaml.safe_load_all((FOLDER / "storage.yaml").read_text())
    assert claim["metadata"]["name"] == CLAIM
    (container,) = job["spec"]["template"]["spec"]["containers"]
    args = served["applications"][0]["args"]
    assert container["command"] == ["seedvc", "pull", args["preset"], "--folder", args["weights"]]
    assert load_preset(args["preset"]).hub
    images = {pod["containers"][0]["image"] for pod in pods(manifest)}
    assert images == {container["image"]}
    assert f"-t {container['image']} ." in (FOLDER / "Dockerfile").read_text()
