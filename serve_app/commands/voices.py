"""`seedvc voices`: the voices of a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from serve_app.commands import UserMistake, note, say
from serve_app.commands.remote import Server


def run(args: argparse.Namespace) -> None:
    """Lists, adds or removes."""
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
        if not file.is_file():
            raise UserMistake(f"there is no file {file}")
    added, warnings = server.add_voice(args.name, files, args.description, remove_noise=args.remove_background_noise)
    if reference := added.get("reference"):  # a server of an older version has none
        note(f"reference: {reference['summary']}")
    for warning in warnings:
        note(f"note: {warning}")
    say(added["voice_id"])
