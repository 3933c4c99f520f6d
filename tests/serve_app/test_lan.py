"""What `seedvc serve --lan` makes, keeps and refuses before it starts; test_serve_command.py has it run."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.serve import ServeArgs
from serve_app.access import Access
from serve_app.cli import main
from serve_app.commands import UserMistake
from serve_app.commands.certificate import RENEWED_BEFORE, VALID, given_certificate, kept_certificate
from serve_app.commands.lan import Lan, open_lan
from serve_app.commands.serve_config import APPLICATION
from serve_app.instance import free_port
from tests.serve_app.processes import ROOT

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAMES = ["192.168.1.20", "desk", "desk.local"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SEEDVC_API_KEY", raising=False)
    return tmp_path / "seedvc-serve"


# The certificate


def test_a_certificate_is_kept_until_an_address_is_new_or_it_runs_out(tmp_path: Path) -> None:
    first = kept_certificate(tmp_path, NAMES, NOW)
    assert {*NAMES, "localhost", "127.0.0.1"} == set(first.names)
    later = NOW + VALID - RENEWED_BEFORE - timedelta(days=1)
    assert kept_certificate(tmp_path, NAMES[:1], later).fingerprint == first.fingerprint
    moved = kept_certificate(tmp_path, ["10.0.0.7", "desk"], later)
    assert "10.0.0.7" in moved.names and moved.fingerprint != first.fingerprint
    renewed = kept_certificate(tmp_path, ["10.0.0.7", "desk"], later + VALID)
    assert renewed.parsed.not_valid_after_utc == later + 2 * VALID
    assert renewed.parsed.public_key() == first.parsed.public_key()


def test_a_host_name_that_no_certificate_can_hold_is_left_out(tmp_path: Path) -> None:
    assert set(kept_certificate(tmp_path, ["büro", "a b", "pc1"], NOW).names) == {"localhost", "127.0.0.1", "pc1"}


def test_a_private_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    kept_certificate(tmp_path, NAMES, NOW)
    (tmp_path / "private-key.pem").chmod(0o644)
    with pytest.raises(UserMistake, match="others can read"):
        kept_certificate(tmp_path, NAMES, NOW)


def test_a_given_certificate_is_told_apart_from_what_cannot_be_served(tmp_path: Path) -> None:
    one, other = (kept_certificate(tmp_path / name, NAMES, NOW) for name in ("one", "other"))
    assert given_certificate(one.file, one.private_key_file, NOW).names == one.names
    for file, private_key, now, complaint in [
        (one.file, other.private_key_file, NOW, "is not the private key of the certificate"),
        (one.file, one.private_key_file, NOW + 2 * VALID, "ran out on 2027-06-01"),
        (one.file, one.private_key_file, NOW - VALID, "is valid only from 2026-05-31"),
        (one.private_key_file, one.private_key_file, NOW, "is no certificate in PEM form"),
        (one.file, one.file, NOW, "is no private key in PEM form"),
        (tmp_path / "none.pem", one.private_key_file, NOW, "No such file"),
    ]:
        with pytest.raises(UserMistake, match=complaint):
            given_certificate(file, private_key, now)


# What a server gets of it


def opened(**access: object) -> tuple[Lan, dict[str, Any]]:
    """configs/local.yaml opened to the network, with something in its `access`."""
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    tree["applications"][0]["args"]["access"] = access
    return open_lan(tree, None, None), tree


@pytest.mark.usefixtures("state")
def test_a_config_with_hosts_gets_the_addresses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.commands.lan.own_addresses", lambda: ["192.168.1.20"])
    _, tree = opened(hosts=["voice.example.org"])
    args = ServeArgs.model_validate(tree["applications"][0]["args"])
    access = Access("a key", on_loopback=False, hosts=args.access.hosts)
    assert access.knows_host("192.168.1.20") and access.knows_host("voice.example.org")
    assert not access.knows_host("192.168.1.21")
    assert opened()[1]["http_options"]["host"] == "0.0.0.0"


def test_the_key_of_the_environment_is_never_told(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.commands.lan.own_addresses", lambda: ["192.168.1.20"])
    monkeypatch.setenv("OWN_KEY", "sesame")
    lan, _ = opened(api_key_env="OWN_KEY")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lan.tell()
    told = capsys.readouterr().out
    assert lan.key == "sesame" and "sesame" not in told + repr(lan)
    assert "what OWN_KEY holds" in told and not (state / "api-key").exists()


def test_a_terminal_gets_the_key_that_was_made_in_a_link(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.commands.lan.own_addresses", lambda: ["192.168.1.20"])
    lan, _ = opened()
    assert opened()[0].key == lan.key == (state / "api-key").read_text().strip() and len(lan.key) > 20
    lan.tell()
    assert lan.key not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lan.tell()
    assert f"https://192.168.1.20:8000/#key={lan.key}\n" in capsys.readouterr().out


# What is refused on the command line


def config(folder: Path, port: int) -> str:
    path = folder / "own.yaml"
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_port_in_use_is_told(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", config(tmp_path, port), "--lan"]) == 2
    assert f"cannot listen at 0.0.0.0:{port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--certificate", "c.pem", "--private-key", "k.pem"], "which --lan asks for"),
        (["--lan", "--certificate", "c.pem"], "go together"),
        (["--lan", "--certificate", "c.pem", "--private-key", "k.pem"], "cannot read"),
    ],
)
def test_options_that_do_not_fit_are_told(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["serve", config(tmp_path, free_port()), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_an_application_that_may_ask_for_no_key_is_not_opened(state: Path) -> None:
    tree = {"applications": [{"import_path": APPLICATION, "args": {}}, {"import_path": "other:app", "args": {}}]}
    with pytest.raises(UserMistake, match="other:app may ask for none"):
        open_lan(tree, None, None)


def test_a_machine_without_a_network_is_told(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.commands.lan.own_addresses", list)
    assert main(["serve", config(tmp_path, free_port()), "--lan"]) == 2
    assert "no address in a network" in capsys.readouterr().err
    assert not state.exists()
