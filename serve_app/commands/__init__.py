"""The subcommands of `seedvc`, one module each with a `run(args)`; `serve_app.cli` parses and dispatches."""


class UserMistake(Exception):
    """What the user can put right; the message is one sentence that says what and how."""
