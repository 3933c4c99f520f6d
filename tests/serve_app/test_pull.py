"""`seedvc pull` against a hub on this machine that speaks what huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from configs import Preset, load_preset
from configs.schema import HubFile
from serve_app.cli import main
from serve_app.commands import pull as command
from serve_app.commands.pull import PullFailed, pull

REPO, REVISION = "someone/voices", "0123456789abcdef0123456789abcdef01234567"
BIG = bytes(range(256)) * 20000
SMALL = b"sizes: 1\n"


class Hub(http.server.ThreadingHTTPServer):
    """One repository at one revision; can break a download off, or ignore ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files = {"net.pth": BIG, "sizes.yml": SMALL}
        self.break_after: int | None = None
        """Close the connection after so many bytes of a body."""
        self.breaks_left = 0
        self.knows_ranges = True
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Requests(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self, with_body: bool) -> None:
        hub = self.server
        content = hub.files.get(self.path.removeprefix(f"/{REPO}/resolve/{REVISION}/"))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if with_body:
            hub.ranges.append(wanted := self.headers["Range"])
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and hub.knows_ranges else 0
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if hub.break_after is not None and hub.breaks_left:
            hub.breaks_left -= 1
            self.wfile.write(body[: hub.break_after])
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(command, "PAUSE_S", 0.0)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def hub_file(path: str, target: str, content: bytes | None = None) -> HubFile:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return HubFile(repo=REPO, revision=REVISION, path=path, target=target, sha256=digest)


@pytest.fixture
def preset() -> Preset:
    files = (hub_file("net.pth", "net.pth", BIG), hub_file("sizes.yml", "deeper/sizes.yml"))
    return load_preset("seed-vc-small").model_copy(update={"hub": files})


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetches_all_files_once(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    pull(preset, tmp_path, hub.url)
    assert (tmp_path / "net.pth").read_bytes() == BIG
    assert (tmp_path / "deeper" / "sizes.yml").read_bytes() == SMALL
    assert names_in(tmp_path) == ["deeper/sizes.yml", "net.pth"]
    n_requests = len(hub.ranges)
    pull(preset, tmp_path, hub.url)
    assert len(hub.ranges) == n_requests == 2


def test_a_broken_connection_is_taken_up_at_once(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.break_after, hub.breaks_left = 3_000_000, 1
    pull(preset, tmp_path, hub.url)
    assert (tmp_path / "net.pth").read_bytes() == BIG
    start = int(str(hub.ranges[1]).removeprefix("bytes=").removesuffix("-"))
    assert 1_000_000 < start <= 3_000_000


def test_a_later_run_goes_on_where_one_was_interrupted(
    hub: Hub, preset: Preset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.break_after, hub.breaks_left = 0, 99
    with pytest.raises(PullFailed, match=r"cannot fetch net\.pth of someone/voices"):
        pull(preset, tmp_path, hub.url)
    assert len(hub.ranges) == command.ATTEMPTS
    (part,) = tmp_path.iterdir()
    part.write_bytes(BIG[:4_000_000])
    hub.breaks_left = 0
    hub.ranges.clear()
    pull(preset, tmp_path, hub.url)
    assert hub.ranges[0] == "bytes=4000000-"
    assert (tmp_path / "net.pth").read_bytes() == BIG
    assert "net.pth: 70 %" in capsys.readouterr().err


def test_a_part_of_other_content_is_not_taken_up(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.files["net.pth"] = BIG[::-1]
    hub.break_after, hub.breaks_left = 0, 99
    with pytest.raises(PullFailed):
        pull(preset, tmp_path, hub.url)
    (part,) = tmp_path.iterdir()
    part.write_bytes(BIG[:0:-1])
    hub.files["net.pth"], hub.breaks_left = BIG, 0
    pull(preset, tmp_path, hub.url)
    assert (tmp_path / "net.pth").read_bytes() == BIG
    assert names_in(tmp_path) == ["deeper/sizes.yml", "net.pth"]


def test_a_hub_without_ranges(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.knows_ranges, hub.break_after, hub.breaks_left = False, 3_000_000, 1
    pull(preset, tmp_path, hub.url)
    assert (tmp_path / "net.pth").read_bytes() == BIG


def test_a_wrong_hash_leaves_nothing(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.files["net.pth"] = BIG[:-1] + b"x"
    with pytest.raises(PullFailed, match=r"net\.pth of someone/voices at 0123.* has SHA-256 .*, expected .*run the"):
        pull(preset, tmp_path, hub.url)
    assert names_in(tmp_path) == []


def test_another_file_in_the_way_is_kept(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"fine-tuned")
    with pytest.raises(PullFailed, match=r"net\.pth is there already; move it away"):
        pull(preset, tmp_path, hub.url)
    assert (tmp_path / "net.pth").read_bytes() == b"fine-tuned"


def test_a_file_that_the_hub_lacks(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    del hub.files["sizes.yml"]
    with pytest.raises(PullFailed, match=r"cannot fetch sizes\.yml of someone/voices at 0123.*404"):
        pull(preset, tmp_path, hub.url)
    assert names_in(tmp_path) == ["net.pth"]


def test_a_target_outside_of_the_folder(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    escaping = preset.model_copy(update={"hub": (hub_file("net.pth", "../net.pth"),)})
    with pytest.raises(PullFailed, match="outside of the weights folder"):
        pull(escaping, tmp_path / "weights", hub.url)
    assert names_in(tmp_path) == []


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )


def test_without_a_connection_the_files_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreachable(monkeypatch)
    assert main(["pull", "seed-vc-small", "--folder", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"put these files into {tmp_path} by hand" in message
    for file in load_preset("seed-vc-small").hub:
        assert f"{file.target} (from {file.repo})" in message


def test_offline_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["pull", "seed-vc-small", "--folder", str(tmp_path)]) == 2
    assert "by hand: DiT_seed_v2" in capsys.readouterr().err


def test_a_preset_that_ships_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "tiny"]) == 0
    assert "tiny: the weights ship with the preset" in capsys.readouterr().out


def test_an_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "huge"]) == 2
    assert "no preset named 'huge'" in capsys.readouterr().err


def test_published_files_are_pinned() -> None:
    files = load_preset("seed-vc-small").hub
    assert len({file.target for file in files}) == len(files) == 8
    for file in files:
        assert len(file.revision) == 40
        assert file.sha256 is not None or file.path.endswith(".yml")
