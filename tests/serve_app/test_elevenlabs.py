"""The ElevenLabs Python SDK works against the service with nothing changed but the base URL, in both path families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.serve import Limits
from serve_app.forms import MODEL_IDS
from serve_app.http import create_app
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.premade import PREMADE_FOLDER
from tests.serve_app.fakes import EchoBackend, recordings_over, serving
from webrtc.files import decode_file

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "samples" / "sources" / "garden.flac"
# 2.75.0 moved the calls from /speech-to-speech to /voice-changer: one version from either side
VERSIONS = ("2.74.1", "2.78.0")


def with_sdk(version: str) -> dict[str, str]:
    """An environment in which this interpreter has that SDK, fetched once; what it requires is here already."""
    home = ROOT / ".venv" / "elevenlabs" / version
    done = home / ".installed"
    if not done.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(home)]
        installed = subprocess.run([*pip, f"elevenlabs=={version}"], capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"the ElevenLabs SDK {version} cannot be installed: {installed.stderr.strip()[-300:]}")
        done.touch()
    return os.environ | {"PYTHONPATH": str(home)}


@pytest.fixture(scope="module")
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture(scope="module")
def url(backend: EchoBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    service = recordings_over(backend, FolderVoiceStore(tmp_path_factory.mktemp("voices")), Limits())
    with serving(create_app(service)) as url:
        yield url


@pytest.mark.e2e
@pytest.mark.parametrize("version", VERSIONS)
def test_the_sdk_works_with_a_changed_base_url(url: str, backend: EchoBackend, version: str) -> None:
    client = str(Path(__file__).with_name("elevenlabs_client.py"))
    command = [sys.executable, client, url, str(SOURCE), str(PREMADE_FOLDER / "angus.flac")]
    backend.calls.clear()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=with_sdk(version))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)

    assert result["voice"] == {"name": "Anna", "labels": {"accent": "none"}, "category": "cloned"}
    assert result["is_listed"] and result["found"] == {"ids": True, "total": 1}
    assert result["renamed"] == {"name": "Renamed", "labels": {"age": "old"}}
    assert result["may_clone"] == [True, "self_hosted"]
    assert result["models"] == list(MODEL_IDS)
    assert result["default_voice_settings"] == 1.0
    assert result["deleted"] == ["ok", "ok"]

    samples, rate = decode_file(SOURCE)
    source_s = len(samples) / rate
    for name, expected_rate in (("mp3", 44100), ("wav", 16000)):
        samples, rate = decode_file(bytes.fromhex(result[name]))
        assert rate == expected_rate and abs(len(samples) / rate - source_s) < 0.05
    assert abs(result["pcm_bytes"] / 32000 - source_s) < 0.05
    assert abs(result["ulaw_bytes"] / 8000 - source_s) < 0.05
    asked = [(call["seed"], call["streaming"]) for call in backend.calls]
    assert asked[1] == (1234, False) and asked[2][1] is True and asked[3] == (5, True)

    refusals = result["refusals"]
    codes = {name: refusal.get("status_code") for name, refusal in refusals.items()}
    assert codes == {
        "unknown voice": 404,
        "unknown format": 422,
        "not audio": 422,
        "not audio, streamed": 422,
        "premade voice deleted": 403,
        "premade voice renamed": 403,
        "speech from text": 404,
        "voice deleted twice": 404,
    }
    assert refusals["unknown voice"]["body"]["detail"]["status"] == "voice_not_found"
    assert "not offered" in refusals["speech from text"]["body"]["detail"]["message"]
    assert refusals["unknown format"]["error"] == "UnprocessableEntityError"
    assert "mp3_44100_128" in refusals["unknown format"]["body"]["detail"][0]["msg"]
    assert refusals["not audio"]["body"]["detail"][0]["loc"] == ["body", "audio"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_versions_call_different_paths(version: str) -> None:
    code = "import elevenlabs.speech_to_speech.raw_client as c; print('voice-changer' in open(c.__file__).read())"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=with_sdk(version))
    assert shown.stdout.strip() == str(version == VERSIONS[1]), "both families are covered"
