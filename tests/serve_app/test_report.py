"""`seedvc report` tells what a report needs, and nothing that is private."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import yaml

from serve_app.cli import main
from serve_app.commands.report import HIDDEN, shown


def test_versions_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["python"] == platform.python_version()
    assert told["torch"].startswith("2.") and told["ray"] and told["seedvc-serve"]
    assert "cores" in told["cpu"] and "GiB" in told["memory"] and told["gpu"]


def test_a_config_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    config = tmp_path / "mine.yaml"
    config.write_text(
        """
applications:
  - name: seedvc
    args:
      voices: /home/anna/voices
      sessions: redis://anna:hunter2@redis.example:6379/0
      rtc: {turn_secret: hunter2, turn_secret_env: SEEDVC_TURN_SECRET, max_calls: 2, api_key: hunter2}
    runtime_env: {env_vars: {AWS_SECRET_ACCESS_KEY: hunter2, OMP_NUM_THREADS: "1"}}
"""
    )
    assert main(["report", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed and "anna" not in printed
    (application,) = yaml.safe_load(printed.split("mine.yaml:\n")[1])["applications"]
    assert application["args"]["voices"] == "~/voices"
    assert application["args"]["sessions"] == f"redis://{HIDDEN}@redis.example:6379/0"
    assert application["args"]["rtc"]["turn_secret_env"] == "SEEDVC_TURN_SECRET"
    assert application["args"]["rtc"]["max_calls"] == 2
    assert application["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


def test_a_config_that_cannot_be_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--config", "nowhere.yaml"]) == 2
    assert "cannot read nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["password", "SEEDVC_API_KEY", "api_key", "token", "credential", "AWS_SESSION_TOKEN"])
def test_what_is_named_like_a_secret_is_hidden(key: str) -> None:
    assert shown({key: "hunter2"}) == {key: HIDDEN}
    assert shown({"list": [{key: ["hunter2"]}]}) == {"list": [{key: [HIDDEN]}]}


@pytest.mark.parametrize("key", ["keyboard", "max_calls", "monkey"])
def test_other_keys_are_shown(key: str) -> None:
    assert shown({key: "value"}) == {key: "value"}
