"""S3 as moto's server has it, over HTTP: it can be stopped, started again, and told to fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from configs.places import BucketPlace
from serve_app.instance import free_port
from serve_app.voices.s3 import _client

Environ = dict[str, Any]
Fault = Callable[[Environ], tuple[str, str] | None]
"""What is answered in place of the server, status and code, or None."""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class _Handler(MotoRequestHandler):
    """A connection ends with its request, so that none outlives the server."""


class BucketServer:
    """One server; what it holds outlives a stop."""

    def __init__(self) -> None:
        self._port = free_port()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self._server: BaseWSGIServer | None = None
        self._thread = threading.Thread()
        self._n_buckets = 0
        self.fault: Fault | None = None
        self.late_fault: Fault | None = None
        """As `fault`, after the request was carried out."""
        self.asked: list[str] = []
        """Method and path of each request."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, on the same port each time."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Handler)
        _Handler.protocol_version = "HTTP/1.0"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="s3", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()  # it closes the socket
            self._server = None

    def new_bucket(self, prefix: str = "some/where/", **options: Any) -> BucketPlace:
        """A part of an empty bucket."""
        self._n_buckets += 1
        place = BucketPlace(f"voices-{self._n_buckets}", prefix, self.url, path_style=True, **options)
        client(place).create_bucket(Bucket=place.bucket)
        return place

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.fault is not None and (answer := self.fault(environ)):
            return _error(*answer, environ, start_response)
        with self._one_at_a_time:  # moto checks a condition and writes in two steps
            body = list(self._app(environ, start_response if self.late_fault is None else _nothing))
        if self.late_fault is not None and (answer := self.late_fault(environ)):
            environ["CONTENT_LENGTH"] = ""  # it was read
            return _error(*answer, environ, start_response)
        return body


def url_of(place: BucketPlace) -> str:
    """The setting that means this place."""
    assert place.endpoint is not None
    return f"{place}?endpoint={quote(place.endpoint)}&region=eu-central-1&presigned_s={place.presigned_s}"


def client(place: BucketPlace) -> Any:
    """For what a test does behind a store's back."""
    return _client(place.endpoint, None, True)


def stuck(environ: Environ) -> None:
    """A fault: no answer for longer than a client waits."""
    time.sleep(1.0)


def _nothing(*_: object) -> None:
    """Takes the head of an answer that is not given."""


def _error(status: str, code: str, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ.get("CONTENT_LENGTH"):  # read whole, whether or not it was carried out: else the client sees a reset
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    text = f"<Error><Code>{code}</Code><Message>none</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [text]
