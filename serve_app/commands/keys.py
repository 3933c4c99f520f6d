"""`seedvc keys`: who may use a server, beside the operator."""

from __future__ import annotations

import argparse
import asyncio
import re
from datetime import UTC, datetime

from configs.schema import ConfigError
from serve_app.callers.file_store import FileKeys
from serve_app.callers.key import NAME, KeyLimits, new_key
from serve_app.callers.store import KeysAway, KeyStore
from serve_app.callers.stores import open_keys
from serve_app.commands import UserMistake, note, say


def run(args: argparse.Namespace) -> None:
    """Makes, lists or revokes, in the store itself: no server has to run."""
    asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> None:
    try:
        store = open_keys(args.keys)
    except ConfigError as error:
        raise UserMistake(str(error)) from error
    try:
        if args.action == "add":
            await _add(store, args)
        elif args.action == "list":
            await _list(store)
        elif not await store.remove(args.name):
            raise UserMistake(f"there is no key of the name {args.name!r}; `seedvc keys list` lists them")
        else:
            note(f"revoked {args.name}: no request begins with it and its calls end, within 5 s")
    except KeysAway as error:
        raise UserMistake(error.reason) from error
    finally:
        await store.close()


async def _add(store: KeyStore, args: argparse.Namespace) -> None:
    if not re.fullmatch(NAME, args.name):
        raise UserMistake(f"{args.name!r} is no name of a key: 1 to 64 letters, digits, '.', '_' and '-'")
    limits = KeyLimits(
        calls=args.calls,
        minutes_a_day=args.minutes_a_day,
        voices=args.voices,
        requests_a_second=args.requests_a_second,
        upload_mb_a_day=args.upload_mb,
    )
    secret, key = new_key(args.name, limits, int(datetime.now(UTC).timestamp()))
    if not await store.add(key):
        raise UserMistake(f"there is a key of the name {args.name!r} already; revoke it first, or take another name")
    note(f"the key of {args.name}, which is shown this once; the store keeps its hash only:")
    say(secret)


async def _list(store: KeyStore) -> None:
    if isinstance(store, FileKeys) and not store.path.exists():
        return
    for key in sorted(await store.keys(), key=lambda key: key.name):
        made = datetime.fromtimestamp(key.created_at_unix, UTC).strftime("%Y-%m-%d")
        limits = ", ".join(f"{name} {value}" for name, value in key.limits.model_dump(exclude_none=True).items())
        say(f"{key.name:<24}{key.key_id:<14}{made:<12}{limits.replace('_', ' ') or 'no limits'}")
