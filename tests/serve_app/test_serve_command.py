"""`seedvc serve --lan`, started as a user starts it: what it listens on, who may call and give it jobs, and what it
leaves behind. What it is like without `--lan` is in test_serving.py."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.browser import chromium
from serve_app.cli import main
from serve_app.commands.lan import own_addresses
from serve_app.instance import free_port
from tests.serve_app.processes import descendants, listening, nobody, python_below

CONFIGS = Path(__file__).parents[2] / "configs"
START_TIMEOUT_S = 240.0
JOB = {"entrypoint": "true"}


@dataclass(frozen=True)
class Server:
    """A running `seedvc serve --lan`, by an address of this machine that is not loopback."""

    pid: int
    address: str
    port: int
    token_file: Path
    state: Path
    told: str

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.state / "certificate.pem")

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.state / "certificate.pem").read_bytes())

    @property
    def key(self) -> str:
        return (self.state / "api-key").read_text().strip()


def values_of(variable: str, pid: int) -> set[str]:
    """What an environment variable is in the processes below this one; some write their title over theirs."""
    found = set()
    for each in descendants(pid)[1:]:
        for setting in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"):
            name, _, value = setting.decode(errors="replace").partition("=")
            if name == variable:
                found.add(value)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """configs/local.yaml from a folder with a space in its path, for a user without a home, authentication told off."""
    if not (addresses := own_addresses()):
        pytest.skip("this machine has no address in a network")
    folder = tmp_path_factory.mktemp("my voices")
    config, port = folder / "local.yaml", free_port()
    tree = yaml.safe_load((CONFIGS / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    config.write_text(yaml.safe_dump(tree))
    command = [*nobody(), str(python_below(folder / "nc")), "-m", "serve_app.cli", "serve", str(config), "--lan"]
    state = folder / "state"
    environment = {"PATH": os.environ["PATH"], "RAY_AUTH_MODE": "disabled", "XDG_STATE_HOME": str(state)}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"serving at" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        assert values_of("RAY_AUTH_MODE", process.pid) == {"token"}
        (token_file,) = values_of("RAY_AUTH_TOKEN_PATH", process.pid)
        yield Server(process.pid, addresses[0], port, Path(token_file), state / "seedvc-serve", log.read_text())
        processes = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
        assert not Path(token_file).parent.exists()
        deadline = time.monotonic() + 20
        while left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, f"left running: {left}"
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    """A browser that knows this one certificate, as a phone does once it has accepted it."""
    if chromium() is None:
        pytest.skip("not installed: chromium (see `make test-programs`)")
    spki = server.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(spki).digest()).decode()
    media = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", f"--ignore-certificate-errors-spki-list={pin}", *media],
        )
        yield browser.new_page()
        browser.close()


@pytest.mark.e2e
@pytest.mark.alone
def test_a_call_over_the_network_with_the_key_of_the_link(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/#key={server.key}")
    expect(page.get_by_test_id("voice").first).to_be_visible(timeout=60000)
    assert server.key not in page.url
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text(re.compile("^Live"), timeout=60000)
    expect(page.get_by_test_id("blocks-done")).to_have_text(re.compile("[1-9]"), timeout=60000)
    media = {str(each.address) for each in listening(server.pid) if each.protocol.startswith("udp")}
    assert server.address in media
    page.get_by_test_id("stop").click()


@pytest.mark.e2e
def test_only_https_and_media_are_beyond_loopback(server: Server) -> None:
    tcp = [each for each in listening(server.pid) if each.protocol.startswith("tcp")]
    assert len(tcp) > 10, "Ray's own processes are not among the sockets"
    assert {each.port for each in tcp if not each.is_loopback} == {server.port}


@pytest.mark.e2e
def test_nothing_without_tls_or_with_a_wrong_key(server: Server) -> None:
    for address in (server.address, "127.0.0.1"):
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{address}:{server.port}/healthz", timeout=30)
    with httpx.Client(base_url=server.url, verify=server.trust, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/voices").status_code == 401
        assert client.get("/v1/voices", headers={"xi-api-key": "wrong"}).status_code == 401
        answer = client.get("/v1/voices", headers={"xi-api-key": server.key})
    assert answer.status_code == 200
    assert "strict-transport-security" not in answer.headers


@pytest.mark.e2e
def test_our_own_client_trusts_a_copy_of_the_certificate(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEDVC_API_KEY", server.key)
    assert main(["voices", "list", "--server", server.url]) == 2
    assert "set SSL_CERT_FILE to a copy of its certificate.pem" in capsys.readouterr().err
    monkeypatch.setenv("SSL_CERT_FILE", str(server.state / "certificate.pem"))
    assert main(["voices", "list", "--server", server.url]) == 0


@pytest.mark.e2e
def test_it_tells_the_fingerprint_but_no_key_where_output_is_kept(server: Server) -> None:
    der = server.certificate.public_bytes(Encoding.DER)
    assert hashlib.sha256(der).hexdigest() in server.told.replace(":", "").lower()
    assert f"{server.url}/" in server.told and str(server.state / "api-key") in server.told
    assert server.key not in server.told
    for name in ("certificate.pem", "private-key.pem", "api-key"):
        assert stat.S_IMODE((server.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700


@pytest.mark.e2e
def test_jobs_need_the_token(server: Server) -> None:
    token = server.token_file.read_text()
    answers: dict[str | None, set[int]] = {None: set(), "0" * 64: set(), token: set()}
    for port in {each.port for each in listening(server.pid) if each.protocol.startswith("tcp")} - {server.port}:
        for presented, statuses in answers.items():
            headers = {} if presented is None else {"Authorization": f"Bearer {presented}"}
            try:
                url = f"http://127.0.0.1:{port}/api/job_agent/jobs/"
                statuses.add(httpx.post(url, json=JOB, headers=headers, timeout=10).status_code)
            except httpx.HTTPError:  # a port that speaks gRPC
                continue
    right = answers.pop(token)
    assert right and not right & {401, 403}, "the token opens nothing, so the others show nothing"
    for statuses in answers.values():
        assert statuses & {401, 403}
        assert all(status >= 400 for status in statuses)


@pytest.mark.e2e
def test_replicas_run_as_soon_as_any_other_program(server: Server) -> None:
    niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in descendants(server.pid) if is_replica(pid)}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, server.pid)}


def is_replica(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica")


def test_the_token_is_private(server: Server) -> None:
    assert stat.S_IMODE(server.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.token_file.parent.stat().st_mode) == 0o700
    assert len(server.token_file.read_text()) == 64


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path) -> None:
    tree = yaml.safe_load((CONFIGS / "local.yaml").read_text())
    tree["http_options"]["port"] = server.port
    config = tmp_path / "local.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["serve", str(config)]) == 2
    assert f"cannot listen at 127.0.0.1:{server.port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not YAML"),
        ("[]", "names no applications"),
        ("applications: [{import_path: 3, name: a}]", "import_path"),
        ("http_options: {port: soon}\napplications: [{import_path: 'a:b'}]", "http_options.port"),
    ],
)
def test_a_config_that_cannot_be_served_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, complaint: str
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(text)
    assert main(["serve", str(config)]) == 2
    told = capsys.readouterr().err
    assert complaint in told and "Traceback" not in told


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: str(path.name))
def test_no_config_has_a_runtime_env(config: Path) -> None:
    """With one, Ray starts workers by a shell line that breaks at a space in the path of Python."""
    assert "runtime_env" not in config.read_text()
