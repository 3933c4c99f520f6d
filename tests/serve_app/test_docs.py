"""What README.md tells people to type works as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve_app.deploy import Deployed, speechlike
from webrtc.files import decode_file

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVER = "http://127.0.0.1:8000"
SOURCE_S = len(decode_file(ROOT / "samples" / "sources" / "station.flac")[0]) / 22050


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(*needles: str) -> list[str]:
    """README's shell lines that hold all of `needles`."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [line for line in lines if all(needle in line for needle in needles)]
    assert found, f"README shows no line with {needles}"
    return found


def run(line: str, folder: Path) -> None:
    """A README line, with its output in `folder` and the interpreter that runs the tests."""
    line = line.replace("samples/", f"{ROOT}/samples/").replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(shlex.split(line), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def seconds(path: Path) -> float:
    samples, rate = decode_file(path)
    assert np.isfinite(samples).all() and samples.any()
    return len(samples) / rate


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", blocks("sh")[0], re.MULTILINE)
    assert targets == ["serve", "demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.e2e
def test_convert_without_a_server(tmp_path: Path) -> None:
    (line,) = [line for line in commands("seedvc convert") if "--server" not in line]
    run(line, tmp_path)
    assert abs(seconds(tmp_path / "converted.wav") - SOURCE_S) < 0.05


@pytest.mark.e2e
def test_python_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, np.ndarray] = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    assert abs(len(names["wave"]) / 22050 - SOURCE_S) < 0.05


@pytest.mark.e2e
@pytest.mark.ray
def test_commands_with_a_server(graph: Deployed, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copy(ROOT / "samples" / "voices" / "clara.flac", tmp_path / "me.wav")
    needs_sound_card = [line for line in commands("seedvc call") if "--in" not in line]
    for line in [*commands("curl"), *commands("seedvc", "--server")]:
        if line in needs_sound_card:
            continue
        assert SERVER in line
        run(line.replace(SERVER, graph.http_url), tmp_path)
    assert abs(seconds(tmp_path / "converted.mp3") - SOURCE_S) < 0.1  # an mp3 frame and the encoder's delay
    assert abs(seconds(tmp_path / "converted.wav") - SOURCE_S) < 0.05


@pytest.mark.ray
def test_python_handles(graph: Deployed) -> None:
    names: dict[str, Any] = {"samples": speechlike(1.5, 0)}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert len(names["wave"]) == len(np.concatenate(list(names["chunks"])))
    assert names["voice_id"]
