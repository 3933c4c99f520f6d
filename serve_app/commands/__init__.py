"""The subcommands of `seedvc`, one module each with a `run(args)`; `serve_app.cli` parses and dispatches."""

from __future__ import annotations

import sys

from serve_app.names import shown

DEFAULT_SERVER = "http://127.0.0.1:8000"
DEFAULT_KEYS = "data/keys.json"
KEY_VARIABLE = "SEEDVC_API_KEY"
"""Where a server asks for a key, this environment variable of its callers holds it: arguments can be seen by others."""


class UserMistake(Exception):
    """What the user can put right; the message is one sentence that says what and how."""


def say(line: str = "") -> None:
    """One line on standard output. Characters that would command the terminal are made visible."""
    print(shown(line), flush=True)


def note(line: str, *, before: str = "", end: str = "\n") -> None:
    """One line on standard error, as `say`; `before` and `end` go to the terminal as they are."""
    print(f"{before}{shown(line)}", end=end, file=sys.stderr, flush=True)
