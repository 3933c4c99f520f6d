"""What is told of a Serve config before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli import main
from serve_app.commands.serve_config import problems

CONFIGS = Path(__file__).parents[2] / "configs"
Tree = dict[str, Any]


def tree() -> Tree:
    """configs/local.yaml, to be spoilt."""
    read: Tree = yaml.safe_load((CONFIGS / "local.yaml").read_text())
    return read


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: str(path.name))
def test_our_own_configs_are_in_order(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config)]) == 0
    assert capsys.readouterr().out == f"{config} can be served\n"


def renamed(place: Tree, old: str, new: str) -> None:
    place[new] = place.pop(old)


def test_each_misspelt_key_is_told_with_its_place_and_the_nearest() -> None:
    wrong = tree()
    application = wrong["applications"][0]
    renamed(application["args"]["rtc"], "max_calls", "max_cals")
    renamed(application["deployments"][1], "autoscaling_config", "autoscaling_confg")
    renamed(application["deployments"][0]["autoscaling_config"], "min_replicas", "min_replica")
    renamed(application["deployments"][2]["ray_actor_options"], "num_cpus", "num_cpu")
    renamed(application, "deployments", "deploymnets")
    wrong["http_options"]["hots"] = "0.0.0.0"
    assert problems(wrong) == [
        "http_options.hots: there is no such key; the nearest is host",
        "applications.0.deploymnets: there is no such key; the nearest is deployments",
        "applications.0.args.rtc.max_cals: there is no such key; the nearest is max_calls",
    ]
    renamed(application, "deploymnets", "deployments")
    assert [told.removeprefix("applications.0.deployments.") for told in problems(wrong)[1:4]] == [
        "0.autoscaling_config.min_replica: there is no such key; the nearest is min_replicas",
        "1.autoscaling_confg: there is no such key; the nearest is autoscaling_config",
        "2.ray_actor_options.num_cpu: there is no such key; the nearest is num_cpus",
    ]


@pytest.mark.parametrize(
    ("args", "deployments", "complaint"),
    [
        ({"rtc": {"max_calls": -2}}, {}, "args.rtc.max_calls: Input should be greater than 0 (it is -2)"),
        ({"preset": "huge"}, {}, "args.preset: no preset named 'huge'"),
        ({"device": "cuda"}, {}, "Stages sees no GPU; device cuda needs its num_gpus"),
        ({"together": False}, {}, "there is no deployment Stages; unless together is set, allowed are"),
        ({}, {"Stages": {"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}}, "max_replicas (2) must be"),
        ({}, {"Stages": {"num_replicas": 2}}, "num_replicas is not allowed when autoscaling_config is provided"),
        ({}, {"Ingress": {"max_ongoing_requests": 32}}, "max_ongoing_requests of Ingress is 32"),
        ({"voices": "s3://AKIA:very-secret@bucket/a"}, {}, "holds no credentials"),
        ({}, {"Stages": {"name": "Stagse"}}, "there is no deployment Stagse; the nearest is Stages"),
    ],
)
def test_settings_that_cannot_work_are_told(args: Tree, deployments: dict[str, Tree], complaint: str) -> None:
    wrong = tree()
    application = wrong["applications"][0]
    application["args"] |= args
    for deployment in application["deployments"]:
        deployment |= deployments.get(deployment["name"], {})
    assert [told for told in problems(wrong) if complaint in told], problems(wrong)
    assert "very-secret" not in "".join(problems(wrong))


def test_all_of_it_is_listed_by_check_and_the_first_by_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tree() | {"proxy_locaton": "HeadOnly", "http_options": {"port": 80000}}
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(wrong))
    assert main(["check", str(config)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "the nearest is proxy_location" in told[0]
    assert "http_options.port: is 80000; allowed are 1 to 65535" in told[1]
    assert main(["serve", str(config)]) == 2
    assert "(and 1 more, which `seedvc check` lists)" in capsys.readouterr().err


def test_somebody_elses_application_is_left_alone() -> None:
    other = tree()
    other["applications"][0] |= {"import_path": "theirs.app:build", "args": {"anything": 1}}
    assert problems(other) == []
