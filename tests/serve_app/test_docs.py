"""What README.md and docs/ tell people to type works as it stands."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import README, ROOT, TOLD_TO_TYPE, blocks, shell_lines
from tests.serve_app.deploy import Deployed, speechlike
from webrtc.files import decode_file

API = ROOT / "docs" / "api.md"
SERVER = "http://127.0.0.1:8000"
SOURCE_S = len(decode_file(ROOT / "samples" / "sources" / "station.flac")[0]) / 22050


def run(line: str, folder: Path) -> None:
    """A line of the documents, with its output in `folder` and the interpreter that runs the tests."""
    line = line.replace("samples/", f"{ROOT}/samples/").replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(shlex.split(line, comments=True), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def needs_sound_card(line: str) -> bool:
    return "seedvc call" in line and "--in" not in line


def seconds(path: Path) -> float:
    samples, rate = decode_file(path)
    assert np.isfinite(samples).all() and samples.any()
    return len(samples) / rate


@pytest.mark.e2e
def test_convert_without_a_server(tmp_path: Path) -> None:
    (line,) = [line for line in shell_lines(README) if "seedvc convert" in line and "--server" not in line]
    run(line, tmp_path)
    assert abs(seconds(tmp_path / "converted.wav") - SOURCE_S) < 0.05


@pytest.mark.e2e
def test_python_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, np.ndarray] = {}
    exec(compile(blocks(API, "python")[0], API.name, "exec"), names)
    assert abs(len(names["wave"]) / 22050 - SOURCE_S) < 0.05


@pytest.mark.e2e
@pytest.mark.ray
def test_commands_with_a_server(graph: Deployed, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copy(ROOT / "samples" / "voices" / "clara.flac", tmp_path / "me.wav")
    lines = [
        line for page in TOLD_TO_TYPE for line in shell_lines(page) if SERVER in line and line.split()[0] != "make"
    ]
    assert len(lines) > 6
    for line in lines:
        if not needs_sound_card(line):
            line = line.replace("curl ", "curl --fail-with-body ") if line.startswith("curl ") else line
            run(line.replace(SERVER, graph.http_url), tmp_path)
    assert {"converted.mp3", "converted.ogg", "call.wav"} <= {path.name for path in tmp_path.iterdir()}
    for path in (tmp_path / "converted.mp3", tmp_path / "converted.ogg", tmp_path / "call.wav"):
        assert seconds(path) > 2


@pytest.mark.e2e
@pytest.mark.ray
def test_a_recording_is_as_long_as_it_was(graph: Deployed, tmp_path: Path) -> None:
    (line,) = [line for line in shell_lines(README) if line.startswith("curl") and "speech-to-speech" in line]
    run(line.replace(SERVER, graph.http_url), tmp_path)
    assert abs(seconds(tmp_path / "converted.mp3") - SOURCE_S) < 0.1  # an mp3 frame and the encoder's delay


@pytest.mark.ray
def test_python_handles(graph: Deployed) -> None:
    names: dict[str, Any] = {"samples": speechlike(1.5, 0)}
    exec(compile(blocks(API, "python")[1], API.name, "exec"), names)
    assert len(names["wave"]) == len(np.concatenate(list(names["chunks"])))
    assert names["voice_id"]
