"""`seedvc voices`: the voices of a server, and the move of a store."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from serve_app.commands import UserMistake, note, say
from serve_app.commands.progress import Progress
from serve_app.commands.remote import Server
from serve_app.commands.sources import is_readable

if TYPE_CHECKING:
    from serve_app.voices.store import VoiceStore

_COPIED_AT_ONCE = 8


def run(args: argparse.Namespace) -> None:
    """Lists, adds, removes or copies."""
    if args.action == "copy":
        _copy(args.source, args.target)
        return
    with Server(args.server) as server:
        if args.action == "list":
            _list(server)
        elif args.action == "add":
            _add(server, args)
        else:
            server.remove_voice(server.voice_id(args.voice))
            say(f"removed {args.voice}")


def _list(server: Server) -> None:
    for voice in server.voices():
        say(f"{voice['voice_id']:<24}{voice['name']:<16}{voice['category']:<10}{voice['description'] or ''}".rstrip())


def _add(server: Server, args: argparse.Namespace) -> None:
    files = [Path(name) for name in args.files]
    for file in files:
        if not is_readable(file):
            raise UserMistake(f"there is no file {file}")
    added, warnings = server.add_voice(
        args.name, files, args.description, remove_noise=args.remove_background_noise, consent=args.consent
    )
    if reference := added.get("reference"):  # a server of an older version has none
        note(f"reference: {reference['summary']}")
    for warning in warnings:
        note(f"note: {warning}")
    say(added["voice_id"])


def _copy(source_url: str, target_url: str) -> None:
    """Copies all voices but the premade ones. Features are made again when they are first asked for."""
    from serve_app.errors import NotStored, StoreAway, VoiceError

    source, target = _opened(source_url, must_exist=True), _opened(target_url)

    def outcome(voice_id: str) -> Outcome | Exception:
        try:
            return copied(source, target, voice_id)
        except (VoiceError, NotStored) as error:
            return error

    counts = {"copied": 0, "changed": 0, "there already": 0, "gone": 0, "failed": 0}
    try:
        ids = source.ids()
        with Progress("copying voices", len(ids), "voices") as progress, ThreadPoolExecutor(_COPIED_AT_ONCE) as pool:
            for voice_id, found in zip(ids, pool.map(outcome, ids), strict=True):
                if isinstance(found, Exception):
                    note(f"{voice_id}: {found}")
                counts["failed" if isinstance(found, Exception) else found] += 1
                progress.advance(1)
    except StoreAway as error:
        raise UserMistake(f"{_told(counts)}; then {error}; the same command goes on where it stopped") from error
    note(_told(counts))
    if counts["failed"]:
        raise UserMistake(f"{counts['failed']} of {len(ids)} voices were not copied")


Outcome = Literal["copied", "changed", "there already", "gone"]


def copied(source: VoiceStore, target: VoiceStore, voice_id: str) -> Outcome:
    """Brings one voice to another store; VoiceExists where that has another recording under its id."""
    from serve_app.errors import VoiceDamaged, VoiceExists, VoiceNotFound

    try:
        record = source.get(voice_id)
    except VoiceDamaged:
        raise
    except VoiceNotFound:  # deleted since the list was made
        return "gone"
    try:
        there = target.get(voice_id)
    except VoiceDamaged:
        raise
    except VoiceNotFound:
        target.add(record, *source.reference(voice_id))
        return "copied"
    if source.digest(voice_id) != target.digest(voice_id):
        raise VoiceExists(voice_id)
    if there == record:
        return "there already"
    target.update(voice_id, {field.name: getattr(record, field.name) for field in fields(record)})
    return "changed"


def _opened(url: str, *, must_exist: bool = False) -> VoiceStore:
    from configs.places import place_of
    from configs.schema import ConfigError
    from serve_app.voices.stores import open_voice_store

    try:
        place = place_of(url)
        if must_exist and isinstance(place, Path) and not (place / "voices").is_dir():
            raise UserMistake(f"there is no store of voices in {place}")
        return open_voice_store(url)
    except (ConfigError, OSError) as error:
        raise UserMistake(f"the store cannot be opened: {error}") from error


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no voices were copied"
