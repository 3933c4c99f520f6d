"""Whether a server may start: its key has arrived, or it listens on loopback, or it is open on purpose."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.serve.context import _get_global_client

from configs.schema import ConfigError
from configs.serve import AccessArgs
from serve_app.access import Access, is_loopback
from serve_app.callers.stores import checked_keys

log = logging.getLogger("seedvc.access")


@dataclass(frozen=True, slots=True)
class KeyMark:
    """Compares a key with another without holding it. Travels with the application."""

    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, key: str) -> KeyMark:
        """The mark of a key."""
        salt = secrets.token_bytes(16)
        return cls(salt, _digest(key, salt))

    def fits(self, key: str) -> bool:
        """Whether it is the mark of this key."""
        return hmac.compare_digest(self.digest, _digest(key, self.salt))


def checked_mark(args: AccessArgs) -> KeyMark | None:
    """The mark of this process's key, None without one; called where the application is built.

    Raises:
        ConfigError: the server would not ask for the key that its user has set, or anybody could reach it without one.
    """
    key = _key(os.environ, args)
    if ray.is_initialized():
        for process, theirs in _keys_of_drivers(args):
            if theirs != key:
                raise ConfigError(
                    f"{args.api_key_env} is set where the server was started (process {process}), but Ray ran before, "
                    f"with {'another one' if key else 'none'} in its own environment, which replicas get: stop Ray, or "
                    f"start it with the same {args.api_key_env}"
                )
        if (client := _get_global_client(raise_if_no_controller_running=False)) is not None:
            _check_reach(args, key, client.http_config.host)
    return KeyMark.of(key) if key else None


def checked_access(args: AccessArgs, mark: KeyMark | None) -> Access:
    """What this replica asks of its callers; blocks while it asks Serve where it listens.

    Raises:
        ConfigError: the key is not the one that the application was built with, or anybody could reach it without one.
    """
    key = _key(os.environ, args)
    if mark is not None and not mark.fits(key):
        raise ConfigError(
            f"{args.api_key_env} has {'another value' if key else 'no value'} in the environment of this replica than "
            "where the application was built: start Ray with the same one on every node"
        )
    client = _get_global_client()
    assert client is not None, "a replica has a controller"
    host = client.http_config.host
    _check_reach(args, key, host)
    keys = None if args.keys is None else checked_keys(args.keys)
    if not key and keys is None and not _is_here(host):
        log.warning("no API key is set: whoever reaches %s may use this server, as access.open says", host)
    return Access(key, _is_here(host), args.hosts, args.origins, keys, args.consent == "required")


def _check_reach(args: AccessArgs, key: str, host: str | None) -> None:
    if key or args.keys is not None:
        return
    if not _is_here(host) and not args.open:
        raise ConfigError(
            f"http_options.host is {host}, which other machines reach, and no key is set: set the environment variable "
            f"{args.api_key_env} where Ray starts, or listen on 127.0.0.1, or say access: {{open: true}} in the args"
        )
    if "*" in args.origins:
        raise ConfigError(
            f"access.origins has '*', which lets any page on the web call: that needs a key in {args.api_key_env}"
        )


def _is_here(host: str | None) -> bool:
    """Whether only this machine reaches what listens there; None: nothing listens."""
    return host is None or is_loopback(host)


def _key(environment: Mapping[str, str], args: AccessArgs) -> str:
    return environment.get(args.api_key_env, "").strip()


def _keys_of_drivers(args: AccessArgs) -> Iterator[tuple[int, str]]:
    """Process and key of each program on this machine that uses this Ray instance and has a key."""
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    jobs = ray._private.state.jobs()  # type: ignore[no-untyped-call]  # private: the public list needs the dashboard
    for job in jobs:
        if job["IsDead"] or job["DriverIPAddress"] != here:
            continue
        try:
            content = Path(f"/proc/{job['DriverPid']}/environ").read_bytes()
        except OSError:  # another system, or another user's
            continue
        variables = (entry.partition("=") for entry in os.fsdecode(content).split("\0"))
        if key := _key({name: value for name, _, value in variables}, args):
            yield job["DriverPid"], key


def _digest(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(os.fsencode(key), salt=salt, n=2**14, r=8, p=1)
