"""The subcommands of `seedvc`, one module each; `serve_app.cli` parses and dispatches."""
