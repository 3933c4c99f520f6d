"""Somebody else's WHIP client, Debian's `whip-client` (GStreamer), publishing a recording."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0
"""The first start scans all of GStreamer's plugins."""
# whip-client is linked against libsoup 2.4, but GStreamer's ICE plugin brings libsoup 3 along, by way of a library for
# port forwarding on home routers; the two refuse to share a process. None of these functions is called in a call.
ROUTER_LIBRARY = "libgupnp-igd-1.0.so.4"
ROUTER_FUNCTIONS = (
    "simple_igd_get_type",
    "simple_igd_thread_new",
    "simple_igd_add_port",
    "simple_igd_remove_port_local",
)
# Whole 20 ms buffers on the clock of the recording: a file source alone sends in bursts of 43 ms.
PIPELINE = (
    "filesrc location={path} ! wavparse ! audioconvert ! audioresample ! audio/x-raw,rate=48000,channels=1 ! "
    "audiobuffersplit output-buffer-duration=1/50 ! identity sync=true ! opusenc bitrate=64000 inband-fec=true ! "
    "rtpopuspay pt=100 ssrc=1 ! queue ! application/x-rtp,media=audio,encoding-name=OPUS,payload=100"
)


@dataclass(frozen=True)
class Publisher:
    """A running whip-client and what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def session_url(self) -> str:
        """The session's address, which the server told in `Location`."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"Resource URL: (\S+)", self.log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.1)
        raise RuntimeError(f"whip-client published nothing: {self.log.read_text(errors='replace')[-2000:]}")


@contextmanager
def publishing(recording: Path, endpoint: str, folder: Path) -> Iterator[Publisher]:
    """Publishes a WAV file to a WHIP endpoint until it ends, or the block is left."""
    program = shutil.which("whip-client")
    assert program is not None, "ask missing() first"
    _build_router_library(folder)
    log = folder / "whip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "-u", endpoint, "-o", "-A", PIPELINE.format(path=recording)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LD_LIBRARY_PATH": str(folder)},  # for this process only
        )
        try:
            yield Publisher(process, log)
        finally:
            process.send_signal(signal.SIGINT)  # it then sends DELETE
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _build_router_library(folder: Path) -> None:
    source = folder / "router.c"
    source.write_text("".join(f"void *gupnp_{name}(void) {{ return 0; }}\n" for name in ROUTER_FUNCTIONS))
    library = folder / ROUTER_LIBRARY
    subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{ROUTER_LIBRARY}", "-o", library, source], check=True)
