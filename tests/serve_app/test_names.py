"""Names that strangers give: refused by the server, shown harmlessly by every command."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from configs.serve import Limits
from serve_app.cli import main
from serve_app.http import create_app
from serve_app.names import shown
from serve_app.recordings.service import Recordings
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.store import VoiceRecord
from tests.serve_app.fakes import EchoBackend, recordings_over, serving, tone, wav_file

ROOT = Path(__file__).parents[2]
EVIL = [
    "\x1b]0;owned\x07",
    "a\x1b[2Jb",
    "two\nlines",
    "over\rwritten",
    "\u202egnp.exe",
    "\x9b31m",
    "\u2028",
    "\x00",
    "\x7f",
]
FINE = ["Zoë", "नमस्ते", "مهدی\u200cپور", "👩\u200d🎤", "木村　拓", "O'Neil & Söhne", "a b"]


@pytest.fixture
def service(tmp_path: Path) -> Recordings:
    return recordings_over(EchoBackend(), FolderVoiceStore(tmp_path / "voices"), Limits())


@pytest.fixture
def url(service: Recordings) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url


def harmless(text: str) -> bool:
    return all(character == "\n" or character.isprintable() or character in "\u200c\u200d\u3000" for character in text)


@pytest.mark.parametrize("name", EVIL)
def test_what_is_not_seen_is_shown_as_an_escape(name: str) -> None:
    assert harmless(shown(name)) and "\n" not in shown(name) and "\\" in shown(name)


@pytest.mark.parametrize("name", FINE)
def test_names_of_all_scripts_stay_as_they_are(name: str, url: str) -> None:
    assert shown(name) == name
    answer = httpx.post(f"{url}/v1/voices/add", data={"name": name}, files={"files": wav_file(tone(1.5), 22050)})
    assert answer.status_code == 200


@pytest.mark.parametrize("field", ["name", "description"])
@pytest.mark.parametrize("text", EVIL)
def test_the_server_refuses_new_names_that_are_not_seen(url: str, field: str, text: str) -> None:
    if field == "description" and text in ("two\nlines", "over\rwritten"):
        return  # a description may have lines
    fields = {"name": "x", field: text}
    refused = httpx.post(f"{url}/v1/voices/add", data=fields, files={"files": wav_file(tone(1.5), 22050)})
    assert refused.status_code == 422
    (problem,) = refused.json()["detail"]
    assert problem["loc"] == ["body", field] and harmless(problem["msg"]) and "not allowed" in problem["msg"]


def test_names_that_are_there_already_are_listed_harmlessly(
    url: str, service: Recordings, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(EVIL):
        record = VoiceRecord(f"v{number}", name, description=name)
        service.voices.store.add(record, np.zeros(22050, np.float32), 22050)
    assert main(["voices", "list", "--server", url]) == 0
    listed = capsys.readouterr().out
    assert harmless(listed) and "\\x1b]0;owned\\x07" in listed
    assert len([line for line in listed.splitlines() if line.startswith("v") and "cloned" in line]) == len(EVIL)


def test_mistakes_are_told_harmlessly(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "no\x1b[2J\nfile\udcff.wav"
    for arguments in (
        ["convert", name, "--voice", "clara", "--out", "o.wav"],
        ["voices", "remove", name, "--server", url],
        ["voices", "add", name, str(tmp_path), "--server", url],
        ["call", "--voice", "x", "--in", name],
        ["call", "--voice", name, "--server", url],
        ["plan", name],
    ):
        assert main(arguments) == 2
        told = capsys.readouterr()
        assert harmless(told.err + told.out) and len(told.err.splitlines()) == 1, arguments
    for arguments in ([name], ["convert", "--steps", name, "x", "--voice", "x", "--out", "x"]):
        with pytest.raises(SystemExit):
            main(arguments)
        told = capsys.readouterr()
        assert harmless(told.err + told.out), arguments


def test_a_recording_with_such_a_name_makes_a_voice(url: str, tmp_path: Path) -> None:
    reference, out = tmp_path / "my\x1b[2Jvoice\n.wav", tmp_path / "out.wav"
    reference.write_bytes(wav_file(tone(1.5), 22050))
    assert main(["convert", str(reference), "--voice", str(reference), "--out", str(out), "--server", url]) == 0


def test_commands_print_in_one_way_only() -> None:
    for path in [*(ROOT / "serve_app" / "commands").glob("*.py"), ROOT / "serve_app" / "cli.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        prints = [ast.unparse(call) for call in calls if call.func.id == "print"]  # type: ignore[attr-defined]
        allowed = 2 if path.name == "__init__.py" else 0
        assert len(prints) == allowed, f"{path.name} prints by itself; use say() or note(): {prints}"
