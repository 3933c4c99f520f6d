"""`seedvc serve --lan`: what the local network gets, what it does not, and what is kept of it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from playwright.sync_api import Page, expect, sync_playwright

from serve_app.cli import main
from serve_app.commands import UserMistake
from serve_app.commands.certificate import RENEWED_BEFORE, VALID, given_certificate, kept_certificate
from serve_app.commands.lan import own_addresses
from serve_app.instance import free_port
from tests.e2e.browser import chromium
from tests.serve_app.processes import ROOT, listening

NOW = datetime(2026, 6, 1, tzinfo=UTC)
START_TIMEOUT_S = 240.0
NAMES = ["192.168.1.20", "desk", "desk.local"]


@dataclass(frozen=True)
class LanServer:
    """A running `seedvc serve --lan`, by its address in the container's own network."""

    pid: int
    address: str
    port: int
    state: Path
    told: str

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.state / "certificate.pem")

    @property
    def key(self) -> str:
        return (self.state / "api-key").read_text().strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanServer]:
    """configs/local.yaml with one replica of each kind, asked for by name; its state is a folder of the test."""
    if not (addresses := own_addresses()):
        pytest.skip("this machine has no address in a network")
    folder, port = tmp_path_factory.mktemp("lan"), free_port()
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    application = tree["applications"][0]
    application["args"]["voices"] = str(folder / "voices")
    for deployment in application["deployments"]:
        deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}
    (folder / "one.yaml").write_text(yaml.safe_dump(tree))
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    environment.pop("SEEDVC_API_KEY", None)
    command = [sys.executable, "-m", "serve_app.cli", "serve", str(folder / "one.yaml"), "--lan"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"serving at" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield LanServer(process.pid, addresses[0], port, folder / "state" / "seedvc-serve", log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def page(server: LanServer) -> Iterator[Page]:
    """A browser that knows this one certificate, as a phone does once it has accepted it."""
    if chromium() is None:
        pytest.skip("not installed: chromium (see `make test-programs`)")
    public_key = parsed(server.state / "certificate.pem").public_key()
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(spki).digest()).decode()
    media = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", f"--ignore-certificate-errors-spki-list={pin}", *media],
        )
        yield browser.new_page()
        browser.close()


def parsed(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


@pytest.mark.e2e
def test_a_call_over_the_network_with_the_key_of_the_link(server: LanServer, page: Page) -> None:
    page.goto(f"{server.url}/#key={server.key}")
    expect(page.get_by_test_id("voice").first).to_be_visible(timeout=30000)
    assert server.key not in page.url
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text(re.compile("^Live"), timeout=60000)
    expect(page.get_by_test_id("blocks-done")).to_have_text(re.compile("[1-9]"), timeout=30000)
    media = [each for each in listening(server.pid) if each.protocol == "udp" and str(each.address) == server.address]
    assert media, "the call's media do not use the address in the network"
    page.get_by_test_id("stop").click()


@pytest.mark.e2e
def test_only_https_and_media_are_beyond_loopback(server: LanServer) -> None:
    tcp = [each for each in listening(server.pid) if each.protocol.startswith("tcp")]
    assert len(tcp) > 10, "Ray's own processes are not among the sockets"
    assert {each.port for each in tcp if not each.is_loopback} == {server.port}


@pytest.mark.e2e
def test_nothing_without_tls_or_with_a_wrong_key(server: LanServer) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{server.address}:{server.port}/healthz", timeout=30)
    with httpx.Client(base_url=server.url, verify=server.trust, timeout=30) as client:
        assert client.get("/v1/voices").status_code == 401
        assert client.get("/v1/voices", headers={"xi-api-key": "wrong"}).status_code == 401
        answer = client.get("/v1/voices", headers={"xi-api-key": server.key})
    assert answer.status_code == 200
    assert "strict-transport-security" not in answer.headers


@pytest.mark.e2e
def test_our_own_client_trusts_a_copy_of_the_certificate(
    server: LanServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEDVC_API_KEY", server.key)
    assert main(["voices", "list", "--server", server.url]) == 2
    assert "set SSL_CERT_FILE to a copy of its certificate.pem" in capsys.readouterr().err
    monkeypatch.setenv("SSL_CERT_FILE", str(server.state / "certificate.pem"))
    assert main(["voices", "list", "--server", server.url]) == 0


@pytest.mark.e2e
def test_it_tells_the_fingerprint_but_no_key_where_output_is_kept(server: LanServer) -> None:
    der = parsed(server.state / "certificate.pem").public_bytes(serialization.Encoding.DER)
    assert hashlib.sha256(der).hexdigest() in server.told.replace(":", "").lower()
    assert f"{server.url}/" in server.told and str(server.state / "api-key") in server.told
    assert server.key not in server.told
    for name in ("certificate.pem", "private-key.pem", "api-key"):
        assert stat.S_IMODE((server.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700


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


# What is refused on the command line


def config(folder: Path, port: int) -> str:
    path = folder / "own.yaml"
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SEEDVC_API_KEY", raising=False)
    return tmp_path / "seedvc-serve"


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


def test_a_machine_without_a_network_is_told(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.commands.lan.own_addresses", list)
    assert main(["serve", config(tmp_path, free_port()), "--lan"]) == 2
    assert "no address in a network" in capsys.readouterr().err
    assert not state.exists()
