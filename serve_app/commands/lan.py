"""`seedvc serve --lan`: HTTPS for phones and computers in the local network, with a certificate and a key."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ifaddr
import segno

from configs.serve import AccessArgs
from serve_app.access import is_loopback
from serve_app.commands import UserMistake, say
from serve_app.commands.certificate import Certificate, given_certificate, kept_certificate
from serve_app.commands.private_files import read_private, state_folder, write_private
from serve_app.commands.serve_config import APPLICATION

EVERYWHERE = "0.0.0.0"
_NOWHERE = ("192.0.2.1", 9)  # RFC 5737: for documentation; nothing is sent
_KEY_BYTES = 16


@dataclass(frozen=True)
class Lan:
    """How a server is reached from the local network."""

    certificate: Certificate
    port: int
    names: tuple[str, ...]
    """Addresses and host names to open, the likeliest first."""
    key: str = field(repr=False)
    key_file: Path | None
    """Where the key is kept; None: it came from the environment."""
    key_variable: str

    @property
    def urls(self) -> list[str]:
        """Where to open the page, without the key."""
        return [f"https://{f'[{name}]' if ':' in name else name}:{self.port}/" for name in self.names]

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The key in this process's environment, from which Ray's processes take it."""
        from serve_app.instance import environment

        with environment({self.key_variable: self.key}):
            yield

    def tell(self) -> None:
        """Says what to open and what to compare. The key goes to a terminal only, as output elsewhere is kept."""
        say(f"open on a phone or another computer: {' or '.join(self.urls)}")
        if self.certificate.is_own:
            say("the browser warns of the certificate once, as it was made here; compare its SHA-256 fingerprint:")
            say(f"  {self.certificate.fingerprint}")
        link = self.urls[0]
        if self.key_file is None:
            say(f"the page asks for the key: what {self.key_variable} holds")
        elif sys.stdout.isatty():
            link += f"#key={quote(self.key, safe='')}"
            say(f"the page asks for the key {self.key}, kept in {self.key_file}; this address brings it along:")
            say(f"  {link}")
        else:
            say(f"the page asks for the key that is kept in {self.key_file}")
        if sys.stdout.isatty():
            picture = StringIO()
            segno.make(link, micro=False).terminal(picture, border=2, compact=True)
            sys.stdout.write(f"{picture.getvalue()}\n")
            sys.stdout.flush()


def open_lan(tree: dict[str, Any], certificate: Path | None, private_key: Path | None) -> Lan:
    """Finds addresses, certificate and key, and puts them into a Serve config, which a schema has accepted.

    Raises:
        UserMistake: this machine has no address in a network, or certificate, key or their folder cannot be used.
    """
    options = tree["http_options"] = tree.get("http_options") or {}
    host = options.get("host", EVERYWHERE)
    host = EVERYWHERE if is_loopback(host) else host
    addresses = own_addresses() if host in (EVERYWHERE, "::") else [host]
    if not addresses:
        raise UserMistake("this machine has no address in a network that others could reach it by: connect it first")
    now = datetime.now(UTC)
    if certificate is not None and private_key is not None:
        shown = given_certificate(certificate.absolute(), private_key.absolute(), now)
        names = (*(name for name in shown.names if not is_loopback(name)),) or tuple(addresses)
    else:
        name = socket.gethostname().lower().partition(".")[0]
        shown = kept_certificate(state_folder(), [*addresses, name, f"{name}.local"], now)
        names = tuple(addresses)
    options |= {"host": host, "ssl_certfile": str(shown.file), "ssl_keyfile": str(shown.private_key_file)}
    accesses = _accesses(tree)
    for access in accesses:
        if access.get("hosts"):
            access["hosts"] = list(dict.fromkeys([*access["hosts"], *shown.names, *addresses]))
    variables = {access.get("api_key_env", AccessArgs().api_key_env) for access in accesses}
    if len(variables) != 1:
        raise UserMistake(f"--lan takes a config with one application {APPLICATION}, or several with one api_key_env")
    (variable,) = variables
    key, key_file = _key(variable)
    return Lan(shown, options.get("port", 8000), names, key, key_file, variable)


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine that others can reach, that of the way out first."""
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
    usable = [ip for ip in map(ipaddress.IPv4Address, ips) if not ip.is_loopback and not ip.is_link_local]
    first = _way_out()
    return sorted({str(ip) for ip in usable}, key=lambda address: (address != first, ipaddress.IPv4Address(address)))


def _way_out() -> str | None:
    """The address from which packets go beyond the network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_NOWHERE)
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _accesses(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The `access` of each application of ours, put in where it was not."""
    accesses = []
    for application in tree["applications"]:
        if application["import_path"] != APPLICATION:
            other = application["import_path"]
            raise UserMistake(f"--lan serves {APPLICATION} alone, which asks for a key; {other} may ask for none")
        args = application["args"] = application.get("args") or {}
        access = args["access"] = args.get("access") or {}
        accesses.append(access)
    return accesses


def _key(variable: str) -> tuple[str, Path | None]:
    """The key of the environment; else the one that is kept, made where there is none."""
    if key := os.environ.get(variable, "").strip():
        return key, None
    file = state_folder() / "api-key"
    if not file.exists():
        write_private(file, f"{secrets.token_urlsafe(_KEY_BYTES)}\n".encode())
    if not (key := read_private(file).decode(errors="replace").strip()):
        raise UserMistake(f"{file} holds no key: remove it, and a new one is made")
    return key, file
