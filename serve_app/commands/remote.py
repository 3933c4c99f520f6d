"""A server, as the command line sees it. A refused request raises one sentence."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from serve_app.commands import KEY_VARIABLE, UserMistake
from serve_app.commands.sources import is_readable
from serve_app.names import shown

_CONNECT_S = 10.0
_REMOVE_S = 10.0
_BORROWED_S = 180
"""How long the server keeps a voice that was made for one use, should this process be killed before it removes it."""


def key_header() -> dict[str, str]:
    """The key, where there is one; Authorization stays free for a proxy's user and password in the URL."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserMistake(f"{KEY_VARIABLE} holds characters that a request cannot carry")
    return {"xi-api-key": key} if key else {}


def unreached(url: str, error: BaseException) -> str:
    """Why a server was not reached, and what to do."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {url} is not known here ({cause.verify_message}); where the server made it, "
                "set SSL_CERT_FILE to a copy of its certificate.pem"
            )
        cause = cause.__cause__ or cause.__context__
    return f"no server answers at {url}; `make serve` starts one"


class Server:
    """The HTTP API of one server; a context manager."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserMistake(f"a server is given by its URL, such as http://127.0.0.1:8000; got {url!r}")
        self._url = url
        # A long recording takes long: only connecting is limited.
        try:
            timeout = httpx.Timeout(None, connect=_CONNECT_S)
            self._client = httpx.Client(base_url=url, timeout=timeout, headers=key_header())
        except httpx.InvalidURL as error:
            raise UserMistake(f"{url!r} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    @contextmanager
    def request(self, method: str, path: str, **content: Any) -> Iterator[httpx.Response]:
        """A good answer, its body still to be read; UserMistake with the server's own words for any other."""
        try:
            with self._client.stream(method, path, **content) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise UserMistake(f"{self._url} refused: {_reason(answer)}")
                yield answer
        except httpx.ConnectError as error:
            raise UserMistake(unreached(self._url, error)) from error
        except httpx.HTTPError as error:
            raise UserMistake(f"{self._url} did not finish its answer: {error}") from error

    def json(self, method: str, path: str, **content: Any) -> Any:
        """The answer's JSON."""
        with self.request(method, path, **content) as answer:
            answer.read()
            try:
                return answer.json()
            except ValueError as error:
                raise UserMistake(f"{self._url} is not a seedvc server: its answer to {path} is not JSON") from error

    def voices(self) -> list[dict[str, Any]]:
        """All voices."""
        voices: list[dict[str, Any]] = self.json("GET", "/v1/voices")["voices"]
        return voices

    def voice_id(self, wanted: str) -> str:
        """The id of the voice that has this id, or this name and no other has it."""
        voices = self.voices()
        ids = {str(voice["voice_id"]) for voice in voices}
        if wanted in ids:
            return wanted
        named = [str(voice["voice_id"]) for voice in voices if voice["name"].casefold() == wanted.casefold()]
        if len(named) > 1:
            raise UserMistake(f"{len(named)} voices are named {wanted!r}; give one of their ids: {', '.join(named)}")
        if not named:
            raise UserMistake(f"there is no voice {wanted!r}; there are: {', '.join(sorted(ids))}")
        return named[0]

    def add_voice(
        self,
        name: str,
        files: Sequence[Path],
        description: str | None = None,
        *,
        expires_s: int | None = None,
        remove_noise: bool = False,
        consent: str | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """Adds a voice, which the server forgets when it was not used for `expires_s`; its answer, and warnings."""
        given = {"name": name, "description": description, "expires_s": expires_s, "consent": consent}
        fields = {field: str(value) for field, value in given.items() if value}
        if remove_noise:
            fields["remove_background_noise"] = "true"
        parts = [("files", (path.name, path.read_bytes())) for path in files]
        with self.request("POST", "/v1/voices/add", data=fields, files=parts) as answer:
            answer.read()
            return answer.json(), answer.headers.get_list("x-seedvc-warning")

    def remove_voice(self, voice_id: str) -> None:
        """Removes a voice."""
        self.json("DELETE", f"/v1/voices/{voice_id}", timeout=_REMOVE_S)

    @contextmanager
    def voice(self, wanted: str) -> Iterator[tuple[str, list[str]]]:
        """The id of a voice by name or id, or of a voice that is made of a recording and removed afterwards."""
        if not is_readable(Path(wanted)):
            yield self.voice_id(wanted), []
            return
        name = shown(Path(wanted).stem)[:100]
        added, warnings = self.add_voice(name, [Path(wanted)], expires_s=_BORROWED_S)
        voice_id = str(added["voice_id"])
        try:
            yield voice_id, warnings
        finally:
            with suppress(UserMistake):  # somebody else removed it, or the server is gone
                self.remove_voice(voice_id)


def _reason(answer: httpx.Response) -> str:
    """What a refusal says."""
    try:
        detail = answer.json()["detail"]
        if isinstance(detail, list):
            return "; ".join(f"{'.'.join(map(str, entry['loc'][1:]))}: {entry['msg']}" for entry in detail)
        return str(detail["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
