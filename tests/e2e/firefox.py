"""Stands between Playwright and a Firefox that lacks one command of WebDriver BiDi, which Playwright insists on.

Playwright starts `launcher(folder)` in place of Firefox, and meets a relay that answers that command itself. Firefox
153 ESR does not know it yet.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

ROOT = Path(__file__).parents[2]
PROGRAMS = ("firefox-esr", "firefox")
MISSING_COMMAND = "emulation.setMediaFeaturesOverride"  # colour scheme and the like, which no test here changes
LISTENING = re.compile(rb"WebDriver BiDi listening on (ws://\S+)")


def firefox() -> str | None:
    """Where the browser is."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def launcher(folder: Path) -> Path:
    """A program in that folder which takes Firefox's arguments and runs Firefox behind the relay."""
    path = folder / "firefox"
    path.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m {__name__} "$@"\n')
    path.chmod(0o755)
    return path


async def run(arguments: list[str]) -> int:
    """Runs Firefox until it ends, and tells its standard error on, but with the relay's address for its own."""
    program = firefox()
    assert program is not None, "ask firefox() first"
    process = await asyncio.create_subprocess_exec(program, *arguments, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    address = ""

    async def relay(playwright: ServerConnection) -> None:
        assert playwright.request is not None
        async with connect(address + playwright.request.path, max_size=None, ping_interval=None) as browser:

            async def ask() -> None:
                async for message in playwright:
                    command = json.loads(message)
                    if command["method"] == MISSING_COMMAND:
                        await playwright.send(json.dumps({"type": "success", "id": command["id"], "result": {}}))
                    else:
                        await browser.send(message)

            asking = asyncio.create_task(ask())
            async for message in browser:
                await playwright.send(message)
            await asking

    async with serve(relay, "127.0.0.1", 0, max_size=None, ping_interval=None) as server:
        own = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}".encode()
        async for line in process.stderr:
            if found := LISTENING.search(line):
                address = found[1].decode()
                line = line.replace(found[1], own)
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(run(sys.argv[1:])))
