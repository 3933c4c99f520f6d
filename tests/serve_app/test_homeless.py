"""A user without a home folder, as a container with `--user` or a cron job has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError, load_preset
from serve_app.cli import main
from stages.local import weights_folder
from tests.serve_app.deploy import speechlike
from tests.serve_app.fakes import wav_file
from tests.serve_app.processes import nobody
from webrtc.files import decode_file

HUB_PRESET = "seed-vc-small"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("HOME", "SEEDVC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def seedvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of `seedvc` with nothing in its environment but a path."""
    command = [*nobody(), sys.executable, "-m", "serve_app.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": os.environ["PATH"]})


@pytest.mark.e2e
def test_tiny_converts(tmp_path: Path) -> None:
    source, out = tmp_path / "source.wav", tmp_path / "out.wav"
    source.write_bytes(wav_file(speechlike(0.5, 1), 22050))
    done = seedvc("convert", str(source), "--voice", "martin", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert np.abs(decode_file(out)[0]).max() > 0.01


@pytest.mark.usefixtures("homeless")
def test_pull_says_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", HUB_PRESET]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "there is no home folder" in told and "set SEEDVC_CACHE" in told


@pytest.mark.usefixtures("homeless")
def test_weights_that_ship_need_no_home() -> None:
    assert weights_folder(load_preset("tiny")).is_dir()


@pytest.mark.usefixtures("homeless")
def test_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = load_preset(HUB_PRESET)
    with pytest.raises(ConfigError, match="SEEDVC_CACHE"):
        weights_folder(preset)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(ConfigError):  # its specification says to ignore a relative path
        weights_folder(preset)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder(preset) == tmp_path / "seedvc-serve" / HUB_PRESET
    monkeypatch.setenv("SEEDVC_CACHE", str(tmp_path / "own"))
    assert weights_folder(preset) == tmp_path / "own" / HUB_PRESET
