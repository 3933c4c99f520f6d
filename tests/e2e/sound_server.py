"""A real PulseAudio for a browser that takes no file for its microphone: two cables, and no card."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 10.0
MICROPHONE = "microphone"
"""Its name in lists of devices."""


@dataclass(frozen=True)
class SoundServer:
    """A running server; its clients find it by these variables of the environment."""

    environment: dict[str, str]

    @contextmanager
    def speaking(self, recording: Path) -> Iterator[None]:
        """Its microphone hears a WAV file once, from now on, as long as the block runs."""
        player = subprocess.Popen(["paplay", "--device=mouth", recording], env=os.environ | self.environment)
        try:
            yield
        finally:
            player.terminate()
            player.wait(10)


@contextmanager
def running_sound_server(folder: Path) -> Iterator[SoundServer]:
    """Starts one with a single microphone and a single speaker, of which nothing is heard, and stops it."""
    socket = folder / "pulse.socket"
    running = SoundServer({"PULSE_SERVER": f"unix:{socket}", "PULSE_RUNTIME_PATH": str(folder)})
    cable = "module-null-sink rate=48000 channels=1 sink_name={0} sink_properties=device.description={0}"
    modules = [
        cable.format("mouth"),
        cable.format("ear"),
        f"module-remap-source master=mouth.monitor source_name={MICROPHONE} "
        f"source_properties=device.description={MICROPHONE}",
        f"module-native-protocol-unix socket={socket} auth-anonymous=1",
    ]
    command = ["pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1"]
    environment = os.environ | running.environment
    with (folder / "pulse.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *(f"--load={module}" for module in modules)], env=environment, stdout=log, stderr=log
        )
        try:
            _wait_for(socket, server)
            for default in (f"set-default-source {MICROPHONE}", "set-default-sink ear"):
                subprocess.run(["pactl", *default.split()], env=environment, check=True)
            yield running
        finally:
            server.terminate()
            server.wait(10)


def _wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            log = socket.with_name("pulse.log").read_text(errors="replace")
            raise RuntimeError(f"PulseAudio did not start within {START_TIMEOUT_S:.0f} s: {log}")
        time.sleep(0.05)
