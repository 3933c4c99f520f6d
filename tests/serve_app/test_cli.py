"""The `seedvc` command: what it prints, what it writes, and one sentence for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.serve import Limits
from serve_app.access import Access
from serve_app.cli import main
from serve_app.commands.convert import FORMAT_OF
from serve_app.http import create_app
from serve_app.recordings.service import Recordings
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.premade import PREMADE_FOLDER
from stages.geometry import HOP, MODEL_RATE
from tests.serve_app.fakes import EchoBackend, encoded, recordings_over, serving, tone, wav_file
from tests.stages.golden import TINY_MODEL
from tests.stages.sounds import quick_preset
from webrtc.files import decode_file

ROOT = Path(__file__).parents[2]
SOURCE_S = 0.6
SOURCE = ROOT / "samples" / "sources" / "bakery.flac"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A preset of the reduced networks, as a user's YAML file."""
    tree = quick_preset().model_dump(mode="json") | {"weights": str(TINY_MODEL)}
    path = tmp_path_factory.mktemp("presets") / "quick.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return recordings_over(
        EchoBackend(), FolderVoiceStore(tmp_path_factory.mktemp("voices")), Limits(max_source_s=60.0)
    )


@pytest.fixture(scope="module")
def url(service: Recordings) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.wav"
    path.write_bytes(wav_file(tone(SOURCE_S), MODEL_RATE))
    return str(path)


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """A short reference: most of the time of a small conversion goes into it."""
    path = tmp_path / "reference.wav"
    path.write_bytes(wav_file(tone(1.1, hz=150.0), MODEL_RATE))
    return str(path)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a mistake is answered with."""
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse leaves in this way
        assert isinstance(end.code, int)
        code = end.code
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if not line.endswith(" %")]
    assert code == 2 and len(told) == 1 and told[0].startswith("seedvc"), lines
    return told[0]


def test_help_comes_at_once() -> None:
    code = "import sys; from serve_app.cli import parser; parser().print_help(); print(*sys.modules, file=sys.stderr)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "convert" in shown.stdout and "voices" in shown.stdout
    heavy = {"torch", "ray", "av", "numpy", "fastapi", "httpx"} & set(shown.stderr.split())
    assert not heavy, f"{heavy} are imported before the command is known"


@pytest.mark.e2e
def test_convert_in_a_process_of_its_own(preset: str, source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "convert", source, "--voice", "Clara"]
        + ["--out", str(out), "--preset", preset, "--seed", "7"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "seed 7" in done.stdout and "100 %" in done.stderr, "plain lines where there is no terminal"
    with wave.open(str(out)) as file:
        assert abs(file.getnframes() - SOURCE_S * MODEL_RATE) <= HOP


@pytest.mark.parametrize("live", [False, True])
def test_the_same_seed_gives_the_same_file(
    preset: str, source: str, reference: str, tmp_path: Path, live: bool
) -> None:
    results: list[bytes] = []
    for seed in ("1", "1", "2"):
        out = tmp_path / f"{len(results)}.wav"
        arguments = ["convert", source, "--voice", reference, "--out", str(out), "--preset", preset, "--seed", seed]
        assert main(arguments + ["--live"] * live) == 0
        results.append(out.read_bytes())
        samples, _ = decode_file(out)
        assert abs(len(samples) - SOURCE_S * MODEL_RATE) <= HOP
        assert np.abs(samples).max() > 0
    assert results[0] == results[1] != results[2]


def test_a_recording_serves_as_voice_and_odd_input_is_told(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(3.0, "mp3_44100_128")
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    long = tone(35.0, 8000)
    (tmp_path / "long.wav").write_bytes(wav_file(np.stack([long, -long], axis=1), 8000))
    out = tmp_path / "out.ogg"
    arguments = ["convert", str(tmp_path / "cut.mp3"), "--voice", str(tmp_path / "long.wav"), "--out", str(out)]
    assert main([*arguments, "--preset", preset]) == 0
    told = capsys.readouterr().err
    assert "note: " in told and "30 s" in told and "cut off" in told and "cancel each other" in told
    assert 1.2 < len(decode_file(out)[0]) / 48000 < 1.6


@pytest.mark.parametrize("place", ["here", "on a server"])
@pytest.mark.parametrize("given", ["-", "/dev/stdin", "a named pipe"])
def test_a_pipe_is_converted(
    preset: str, url: str, source: str, reference: str, tmp_path: Path, given: str, place: str
) -> None:
    out = tmp_path / "out.wav"
    if given == "a named pipe":
        given = str(tmp_path / "pipe")
        os.mkfifo(given)
    where = ["--preset", preset] if place == "here" else ["--server", url]
    command = [sys.executable, "-m", "serve_app.cli", "convert", given, "--voice", reference, "--out", str(out), *where]
    running = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert running.stdin is not None
    data = Path(source).read_bytes()
    if given.startswith(("-", "/dev")):
        _, told = running.communicate(data, timeout=120)
    else:
        Path(given).write_bytes(data)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 0, told
    assert abs(len(decode_file(out)[0]) - SOURCE_S * MODEL_RATE) <= HOP


def piped(data: bytes, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    """The command with `{}` standing for a pipe that holds the data, as a shell passes `<(command)`."""
    end, ours = os.pipe()
    command = [sys.executable, "-m", "serve_app.cli", *(part.format(f"/dev/fd/{end}") for part in arguments)]

    def feed() -> None:
        with suppress(BrokenPipeError), open(ours, "wb") as pipe:
            pipe.write(data)

    feeding = threading.Thread(target=feed)
    feeding.start()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, pass_fds=[end], env=environment, timeout=120)
    os.close(end)
    feeding.join()
    return done


@pytest.mark.parametrize("place", ["here", "on a server"])
@pytest.mark.parametrize("part", ["source", "voice"])
def test_what_a_shell_passes_as_a_pipe_is_read(
    preset: str, url: str, source: str, reference: str, tmp_path: Path, part: str, place: str
) -> None:
    where = ["--preset", preset] if place == "here" else ["--server", url]
    given = {"source": source, "voice": reference}
    data = Path(given[part]).read_bytes()
    given[part] = "{}"
    out = tmp_path / "out.wav"
    done = piped(data, ["convert", given["source"], "--voice", given["voice"], "--out", str(out), *where])
    assert done.returncode == 0, done.stderr
    assert abs(len(decode_file(out)[0]) - SOURCE_S * MODEL_RATE) <= HOP


def test_a_voice_is_added_from_a_pipe_and_a_call_says_that_it_wants_a_file(url: str, reference: str) -> None:
    data = Path(reference).read_bytes()
    done = piped(data, ["voices", "add", "Pia", "{}", "--server", url])
    assert done.returncode == 0, done.stderr
    refused = piped(b"", ["call", "--voice", "clara", "--in", "{}", "--server", url])
    assert refused.returncode == 2 and b"is no file; --in takes" in refused.stderr


def test_what_is_no_source_is_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, preset: str
) -> None:
    empty = tmp_path / "empty.wav"
    empty.touch()
    sources = {str(tmp_path): "is a folder", str(empty): "empty", "/dev/null": "neither a file nor a pipe"}
    for place in (["--preset", preset], ["--server", url]):
        for given, words in sources.items():
            out = str(tmp_path / "o.wav")
            assert words in mistake(capsys, "convert", given, "--voice", "clara", "--out", out, *place)
        monkeypatch.setattr(sys, "stdin", None)
        assert "closed" in mistake(capsys, "convert", "-", "--voice", "clara", "--out", out, *place)


def test_background_noise_is_removed_here_and_on_a_server(
    url: str, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * 22050)
    (tmp_path / "noise.wav").write_bytes(wav_file(noise, 22050))
    power = {}
    for where in (["--server", url], ["--preset", preset, "--seed", "1"]):
        for flag in ([], ["--remove-background-noise"]):
            out = tmp_path / "out.wav"
            source = str(tmp_path / "noise.wav")
            assert main(["convert", source, "--voice", "clara", "--out", str(out), *where, *flag]) == 0
            heard, rate = decode_file(out)
            assert abs(len(heard) / rate - 2.0) < 0.02
            power[where[0], bool(flag)] = float(np.mean(heard[rate // 2 :] ** 2))
    assert power["--server", True] < 0.1 * power["--server", False]
    assert power["--preset", True] != power["--preset", False], "the reduced networks say nothing of use"


@pytest.mark.parametrize("extension", FORMAT_OF)
def test_the_extension_names_the_format(url: str, source: str, tmp_path: Path, extension: str) -> None:
    out = tmp_path / f"out{extension.upper()}"
    assert main(["convert", source, "--voice", "clara", "--out", str(out), "--server", url]) == 0
    assert out.stat().st_size > 1000
    assert list(tmp_path.glob("*.part")) == []


def test_convert_on_a_server(url: str, service: Recordings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    arguments = ["convert", str(SOURCE), "--out", str(out), "--server", url]
    assert main([*arguments, "--voice", "CLARA", "--seed", "9", "--steps", "3", "--live"]) == 0
    assert isinstance(service.voices.maker, EchoBackend)
    call = service.voices.maker.calls[-1]
    assert (call["path"], call["voice_id"], call["seed"], call["steps"]) == ("live", "clara", 9, 3)
    assert "seed 9" in capsys.readouterr().out
    original, rate = decode_file(SOURCE)
    converted, new_rate = decode_file(out)
    assert abs(len(converted) / new_rate - len(original) / rate) < 0.01


def test_a_recording_becomes_a_voice_of_the_server_for_one_conversion(
    url: str, service: Recordings, tmp_path: Path
) -> None:
    before = service.voices.store.list()
    out = tmp_path / "out.mp3"
    reference = str(PREMADE_FOLDER / "vera.flac")
    assert main(["convert", str(SOURCE), "--voice", reference, "--out", str(out), "--server", url]) == 0
    assert isinstance(service.voices.maker, EchoBackend)
    assert service.voices.maker.calls[-1]["voice_id"] not in {record.voice_id for record in before}
    assert service.voices.store.list() == before


def test_voices_are_listed_added_and_removed(url: str, service: Recordings, capsys: pytest.CaptureFixture[str]) -> None:
    reference = str(PREMADE_FOLDER / "angus.flac")
    assert main(["voices", "add", "Otto", reference, reference, "--description", "deep", "--server", url]) == 0
    told = capsys.readouterr()
    voice_id = told.out.strip()
    assert "reference: 4.1 s of speech" in told.err and "note: 4.1 s of speech found; 10 s or more" in told.err
    assert service.voices.store.get(voice_id).description == "deep"
    assert main(["voices", "list", "--server", url]) == 0
    shown = capsys.readouterr().out
    assert voice_id in shown and "clara" in shown and "premade" in shown
    assert main(["voices", "add", "Otto", reference, "--remove-background-noise", "--server", url]) == 0
    other_id = capsys.readouterr().out.strip()
    assert "give one of their ids" in mistake(capsys, "voices", "remove", "otto", "--server", url)
    assert main(["voices", "remove", other_id, "--server", url]) == 0
    assert main(["voices", "remove", "otto", "--server", url]) == 0
    assert "there is no voice 'otto'" in mistake(capsys, "voices", "remove", "otto", "--server", url)


def test_the_key_comes_from_the_environment(
    service: Recordings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(create_app(service, access=Access(key="sesame"))) as url:
        for key in (None, "wrong"):
            if key is not None:
                monkeypatch.setenv("SEEDVC_API_KEY", key)
            told = mistake(capsys, "voices", "list", "--server", url)
            assert "API key is needed" in told and "wrong" not in told
        monkeypatch.setenv("SEEDVC_API_KEY", "sesame")
        behind_proxy = url.replace("http://", "http://user:password@")  # what a proxy asks for goes along
        for address in (url, behind_proxy):
            assert main(["voices", "list", "--server", address]) == 0
        monkeypatch.setenv("SEEDVC_API_KEY", "ses\x1bame")
        assert "cannot carry" in mistake(capsys, "voices", "list", "--server", url)


def test_presets_and_plan(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown and "seed-vc-small" in shown and "licence" in shown
    for name in ("tiny", "seed-vc-small", preset):
        assert main(["plan", name]) == 0
        assert "180 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "missing.wav", "--voice", "clara", "--out", "o.wav"], "no file missing.wav"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.xyz"], ".wav, .mp3"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "nowhere/o.wav"], "no folder nowhere"),
        (["convert", str(SOURCE), "--voice", "nobody", "--out", "o.wav"], "clara"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.wav", "--preset", "huge"], "tiny"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.wav", "--seed", "-1"], "whole number from 0"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.wav", "--steps", "many"], "whole number from 1"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.wav", "--server", "localhost"], "given by its URL"),
        (["convert", str(SOURCE), "--voice", "clara", "--out", "o.wav", "--server", "http://127.0.0.1:9"], "no server"),
        (["convert", str(SOURCE), "--out", "o.wav"], "--voice"),
        (["voices", "list", "--server", "http://127.0.0.1:9"], "no server answers"),
        (["voices", "list", "--server", "http://127.0.0.1:port"], "is not a URL"),
        (["voices", "add", "Otto", "missing.wav"], "no file missing.wav"),
        (["plan", "huge"], "tiny"),
        (["sing"], "sing"),
        ([], "COMMAND"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in mistake(capsys, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_what_is_no_recording_is_told_in_one_sentence(
    preset: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no recording " * 100)
    silent = tmp_path / "silent.wav"
    silent.write_bytes(wav_file(np.zeros(2 * MODEL_RATE), MODEL_RATE))
    out = tmp_path / "out.wav"
    for place in (["--preset", preset], ["--server", url]):
        mistake(capsys, "convert", str(text), "--voice", "clara", "--out", str(out), *place)
        mistake(capsys, "convert", str(SOURCE), "--voice", str(text), "--out", str(out), *place)
        told = mistake(capsys, "convert", str(SOURCE), "--voice", str(silent), "--out", str(out), *place)
        assert "silent" in told
        assert not out.exists() and not list(tmp_path.glob("*.part"))
    long = tmp_path / "long.mp3"
    long.write_bytes(encoded(61.0, "mp3_44100_32"))
    assert "60 s" in mistake(capsys, "convert", str(long), "--voice", "clara", "--out", str(out), "--server", url)


def test_silence_stays_silent(preset: str, tmp_path: Path) -> None:
    (tmp_path / "silent.wav").write_bytes(wav_file(np.zeros(2 * MODEL_RATE), MODEL_RATE))
    out = tmp_path / "out.wav"
    assert (
        main(["convert", str(tmp_path / "silent.wav"), "--voice", "clara", "--out", str(out), "--preset", preset]) == 0
    )
    samples, _ = decode_file(out)
    assert abs(len(samples) - 2 * MODEL_RATE) <= HOP and not samples.any()
