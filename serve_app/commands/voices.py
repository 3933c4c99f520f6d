"""`seedvc voices`: the voices of a server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serve_app.commands import UserMistake
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
            print(f"removed {args.voice}")


def _list(server: Server) -> None:
    for voice in server.voices():
        print(f"{voice['voice_id']:<24}{voice['name']:<16}{voice['category']:<10}{voice['description'] or ''}".rstrip())


def _add(server: Server, args: argparse.Namespace) -> None:
    files = [Path(name) for name in args.files]
    for file in files:
        if not file.is_file():
            raise UserMistake(f"there is no file {file}")
    added, warnings = server.add_voice(args.name, files, args.description, args.remove_background_noise)
    if reference := added.get("reference"):  # a server of an older version has none
        print(f"reference: {reference['summary']}", file=sys.stderr)
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)
    print(added["voice_id"])
