"""Who may call: keys on every route, names of the server, pages of other origins, and what answers tell browsers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from configs.serve import AccessArgs, Limits
from serve_app.access import Access, host_name, is_loopback
from serve_app.http import PAGE, PAGE_FOLDER
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.test_rtc import replica
from tests.serve_app.fakes import EchoBackend, recordings_over, tone, wav_file

HERE = "http://localhost:8000"
SPEECH = "/v1/speech-to-speech/martin"
OPEN = ("/", "/app.js", "/style.css", "/healthz", "/readyz", "/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js")


@contextmanager
def client(folder: Path, access: Access | None = None) -> Iterator[TestClient]:
    with replica(folder, access=access).client as one:
        yield one


# --- the key


def test_every_route_asks_for_the_key(tmp_path: Path) -> None:
    """All that the description names, so that a route that comes later is asked about too."""
    with client(tmp_path, Access(key="sesame")) as one:
        routes = [
            (method.upper(), re.sub(r"{\w+}", "x", path))
            for path, methods in one.app.openapi()["paths"].items()  # type: ignore[attr-defined]
            for method in methods
            if path not in ("/healthz", "/readyz")
        ]
        assert len(routes) > 15
        for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/v1/rtc/whip"), ("POST", "/nowhere")]:
            refused = one.request(method, path)
            assert refused.status_code == 401, (method, path)
            assert refused.json()["detail"]["status"] == "invalid_api_key"
        for path in OPEN:
            assert one.get(path).status_code == 200, path
        assert one.post("/").status_code == 401, "only reading is open"


def test_a_server_below_a_path_asks_for_the_same(tmp_path: Path) -> None:
    app = replica(tmp_path, access=Access(key="sesame")).client.app
    with TestClient(app, base_url=HERE, root_path="/voices") as one:
        for path in OPEN:
            assert one.get(f"/voices{path}").status_code == 200, path
        assert one.get("/voices/v1/models").status_code == 401
        assert one.get("/voices/v1/models", headers={"xi-api-key": "sesame"}).status_code == 200


def test_the_key_comes_in_either_header(tmp_path: Path) -> None:
    with client(tmp_path, Access(key="sesame")) as one:
        for headers in (
            {"xi-api-key": "sesame"},
            {"Authorization": "Bearer sesame"},
            {"Authorization": "bearer  sesame "},
            {"Authorization": "Basic dTpw", "xi-api-key": "sesame"},
            {"Authorization": "Bearer wrong", "xi-api-key": "sesame"},
        ):
            assert one.get("/v1/voices", headers=headers).status_code == 200, headers
        for headers in (
            {"Authorization": "sesame"},
            {"Authorization": "Basic sesame"},
            {"xi-api-key": "Sesame"},
            {"xi-api-key": "sesame2"},
            {"xi-api-key": ""},
        ):
            assert one.get("/v1/voices", headers=headers).status_code == 401, headers
        assert one.get("/v1/voices?access_token=sesame").status_code == 401, "a URL is for sockets only"


def test_a_key_may_have_any_letters(tmp_path: Path) -> None:
    with client(tmp_path, Access(key="schl\u00fcssel")) as one:
        assert one.get("/v1/voices", headers=[(b"xi-api-key", "schl\u00fcssel".encode())]).status_code == 200


# --- names of the server

LOCAL = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "127.8.9.1", "page.localhost", "localhost.:80"]
STRANGE = [
    "evil.example",
    "evil.example:8000",
    "192.0.2.7:8000",
    "localhost.evil.example",
    "",
    "::1:::",
    "127.0.0.1.x",
    "evil.example@localhost",
    "localhost@evil.example",
    "localhost/evil.example",
    "localhost:80:80",
    "127.1",
    "2130706433",
]


@pytest.mark.parametrize(
    ("access", "known", "unknown"),
    [
        (Access(), LOCAL, STRANGE),
        (Access(key="sesame"), LOCAL, STRANGE),
        (Access(hosts=("voice.example",)), [*LOCAL, "voice.example", "Voice.Example:443"], STRANGE),
        (Access(on_loopback=False), [*LOCAL, "192.0.2.7:8000", "[2001:db8::1]:8000"], ["evil.example", ""]),
        (Access(key="sesame", on_loopback=False), [*LOCAL, "192.0.2.7", "seedvc-serve-svc:8000"], []),
        (Access(key="sesame", on_loopback=False, hosts=("a.example",)), ["a.example", "127.0.0.1"], STRANGE),
    ],
)
def test_a_server_answers_to_its_own_names(
    tmp_path: Path, access: Access, known: list[str], unknown: list[str]
) -> None:
    key = {"xi-api-key": access.key}
    with client(tmp_path, access) as one:
        for host in known:
            assert one.get("/v1/models", headers={"Host": host, **key}).status_code == 200, host
        for host in unknown:
            refused = one.get("/v1/models", headers={"Host": host, **key})
            assert refused.status_code == 421, host
            assert "access.hosts" in refused.json()["detail"]["message"]
            assert one.get("/", headers={"Host": host}).status_code == 421
            assert one.get("/healthz", headers={"Host": host}).status_code == 200, "probes use the address"


def test_what_is_loopback() -> None:
    assert all(is_loopback(name) for name in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_loopback(name) for name in ("0.0.0.0", "::", "192.0.2.1", "example.org", "", "localhost.example"))
    assert host_name("[bad") == ""


# --- pages of other origins


def test_pages_of_other_origins_change_nothing(tmp_path: Path) -> None:
    form: dict[str, Any] = {"data": {"name": "x"}, "files": {"files": wav_file(tone(1.5), 22050)}}
    with client(tmp_path) as one:
        before = one.get("/v1/voices").json()["voices"]
        for origin in ("https://evil.example", "null", "http://localhost:9000", "http://127.0.0.1:8000"):
            foreign = {"Origin": origin}
            refused = one.post("/v1/voices/add", headers=foreign, **form)
            assert refused.status_code == 403 and "access.origins" in refused.json()["detail"]["message"]
            assert "access-control-allow-origin" not in refused.headers
            for method, path in (("DELETE", "/v1/voices/clara"), ("POST", SPEECH), ("POST", "/v1/rtc/whip?voice=x")):
                assert one.request(method, path, headers=foreign).status_code == 403
            read = one.get("/v1/rtc/config", headers=foreign)
            assert read.status_code == 200 and "access-control-allow-origin" not in read.headers
        assert one.get("/v1/voices").json()["voices"] == before


def test_an_origin_that_is_none_is_of_no_server() -> None:
    access = Access(key="sesame", on_loopback=False)
    assert not any(access.knows_origin(origin, "") for origin in ("null", "", "file://", "about:blank", "x"))
    assert not access.knows_origin("ftp://a.example", "a.example")
    assert not access.knows_origin("http://evil@a.example", "a.example")
    assert not access.knows_origin("http://a.example/x", "a.example")
    assert not access.knows_origin("http://[", "[") and not access.knows_origin("http://a:x", "a:x")
    assert access.knows_origin("https://a.example", "A.example") and access.knows_origin("http://[::1]:80", "[::1]")
    assert Access(origins=("*",)).knows_origin("https://anything.example", "localhost")


def test_a_form_of_another_site_is_known_without_its_origin(tmp_path: Path) -> None:
    with client(tmp_path) as one:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 422), ("none", 422)):
            assert one.post("/v1/voices/add", headers={"Sec-Fetch-Site": site}).status_code in (status, 400), site


def test_the_servers_own_page_may_call_behind_a_proxy_too(tmp_path: Path) -> None:
    access = Access(hosts=("voice.example",))
    with client(tmp_path, access) as one:
        for host, origin in (
            ("localhost:8000", "http://localhost:8000"),
            ("voice.example", "https://voice.example"),
            ("voice.example:443", "https://voice.example"),
        ):
            answer = one.delete("/v1/voices/clara", headers={"Host": host, "Origin": origin})
            assert answer.json()["detail"]["status"] == "voice_is_read_only"


PAGE_ORIGIN = "https://page.example"


ROUTES = (
    ("POST", SPEECH),
    ("POST", f"{SPEECH}/stream"),
    ("DELETE", "/v1/voices/x"),
    ("POST", "/v1/voices/add"),
    ("GET", "/v1/models"),
    ("POST", "/v1/rtc/whip"),
    ("PATCH", "/v1/rtc/sessions/x"),
)


def preflight(method: str, origin: str = PAGE_ORIGIN) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "xi-api-key, authorization, content-type, if-match, x-fern-language",
        "Access-Control-Request-Private-Network": "true",
    }


def test_pages_of_named_origins_are_told_that_they_may_call(tmp_path: Path) -> None:
    with client(tmp_path, Access(key="sesame", origins=(PAGE_ORIGIN,))) as one:
        for method, path in ROUTES:
            told = one.options(path, headers=preflight(method))
            assert told.status_code == 200
            assert told.headers["access-control-allow-origin"] == PAGE_ORIGIN
            assert method in told.headers["access-control-allow-methods"]
            assert "xi-api-key" in told.headers["access-control-allow-headers"]
            assert told.headers["access-control-allow-private-network"] == "true"
            other = one.options(path, headers=preflight(method, "https://evil.example"))
            assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
            refused = one.request(method, path, headers={"Origin": PAGE_ORIGIN})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == PAGE_ORIGIN, "refusals can be read too"
            exposed = {name.strip().lower() for name in refused.headers["access-control-expose-headers"].split(",")}
            assert {"x-seedvc-seed", "x-seedvc-warning", "request-id", "location", "etag", "link"} <= exposed
            assert refused.headers["request-id"]


def test_no_page_is_named_by_default(tmp_path: Path) -> None:
    with client(tmp_path) as one:
        for method, path in ROUTES:
            assert "access-control-allow-origin" not in one.options(path, headers=preflight(method)).headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"origins": ["page.example"]},
        {"origins": ["https://page.example/"]},
        {"origins": ["https://Page.example"]},
        {"origins": ["null"]},
        {"hosts": ["voice.example:8000"]},
        {"hosts": ["https://voice.example"]},
        {"hosts": ["*"]},
    ],
)
def test_what_no_browser_sends_is_a_mistake_of_the_config(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AccessArgs.model_validate(wrong)
    AccessArgs.model_validate({"origins": ["https://a.example:8443", "http://[::1]:3000", "*"], "hosts": ["a", "::1"]})


# --- what answers tell browsers


def test_no_page_may_frame_what_is_answered(tmp_path: Path) -> None:
    with client(tmp_path) as one:
        for path in ("/", "/app.js", "/docs", "/v1/voices", "/v1/nothing", "/openapi.json"):
            headers = one.get(path).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


def test_the_pages_own_policy_is_the_one_in_its_header() -> None:
    """It holds where something else serves the page, but cannot speak of frames."""
    own = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', (PAGE_FOLDER / "index.html").read_text())
    assert own is not None and f"{own[1]}; frame-ancestors 'none'" == PAGE


def test_the_documentation_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    with client(tmp_path) as one:
        page = one.get("/docs")
        assert page.status_code == 200 and not re.search(r"(src|href)=\"?(https?:)?//", page.text)
        for file in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert one.get(f"/{file}").status_code == 200, file
        assert "<script>" not in page.text and "onclick" not in page.text


def test_an_app_by_itself_is_for_this_machine_only(tmp_path: Path) -> None:
    from serve_app.http import create_app

    with TestClient(create_app(recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits()))) as one:
        assert one.get("/v1/models").status_code == 421, "the test client says that its host is 'testserver'"
