"""A real sound server (PulseAudio) with virtual devices for as long as a test needs it, apart from any other."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from webrtc.files.codecs import Samples

PROGRAMS = ("pulseaudio", "pactl", "pacat", "parec")
RATE_HZ = 48000
MICROPHONE, SPEAKERS = "microphone", ("speaker1", "speaker2")
_MOUTH = "mouth"
_CHANNELS = ("front-left", "front-right", "rear-left", "rear-right")
START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class SoundServer:
    """What is played at the mouth is heard by the microphone; what the speakers play can be recorded."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    """For programs that shall use it."""
    folder: Path

    def talk(self, sound: Samples, tail_s: float) -> Samples:
        """Plays a sound at the mouth; that and what each speaker played meanwhile [3, samples], on one clock."""
        said, recorded = self.folder / "said.raw", self.folder / "recorded.raw"
        said.write_bytes(np.pad(sound, (0, round(tail_s * RATE_HZ))).astype("<f4").tobytes())
        shape = [f"--rate={RATE_HZ}", "--format=float32le", "--raw"]
        channels = [f"--channels={len(_CHANNELS)}", f"--channel-map={','.join(_CHANNELS)}"]
        with recorded.open("wb") as out:
            recording = subprocess.Popen(
                ["parec", "--device=desk.monitor", *channels, *shape], stdout=out, env=self.environment
            )
            try:
                playing = ["pacat", f"--device={_MOUTH}", "--channels=1", *shape, str(said)]
                subprocess.run(playing, env=self.environment, check=True, timeout=60)
            finally:
                recording.terminate()
                recording.wait(10)
        samples = np.frombuffer(recorded.read_bytes(), "<f4")
        whole = samples[: len(samples) // len(_CHANNELS) * len(_CHANNELS)]
        return np.ascontiguousarray(whole.reshape(-1, len(_CHANNELS)).T[:3], np.float32)

    @contextmanager
    def speaking(self, recording: Path) -> Iterator[None]:
        """The microphone hears a WAV file once, from now on, as long as the block runs."""
        player = subprocess.Popen(["paplay", f"--device={_MOUTH}", recording], env=self.environment)
        try:
            yield
        finally:
            player.terminate()
            player.wait(10)


@contextmanager
def running_sound_server() -> Iterator[SoundServer]:
    """Starts PulseAudio with one loopback of four channels, which mouth, microphone and speakers share, and stops it.

    PortAudio reaches it by way of ALSA, whose settings are in a file of their own.
    """
    with tempfile.TemporaryDirectory(prefix="sv") as name:  # short: the path of a socket has 107 characters at most
        folder = Path(name)
        socket, settings, script = folder / "native", folder / "asound.conf", folder / "devices.pa"
        settings.write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\npcm.pulse { type pulse }\n")
        script.write_text("\n".join(_modules(socket)))
        own = {"HOME": name, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": name, "PULSE_RUNTIME_PATH": name}
        environment = os.environ | {"PULSE_SERVER": f"unix:{socket}", "ALSA_CONFIG_PATH": str(settings)}
        command = ["pulseaudio", "-n", f"--file={script}", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=os.environ | own, stdout=out, stderr=subprocess.STDOUT)
            try:
                _wait_for(process, environment, log)
                yield SoundServer(process, environment, folder)
            finally:
                process.kill()
                process.wait(10)


def _modules(socket: Path) -> Iterator[str]:
    whole = f"channels={len(_CHANNELS)} channel_map={','.join(_CHANNELS)} rate={RATE_HZ} format=float32le"
    yield f"load-module module-native-protocol-unix auth-anonymous=1 socket={socket}"
    yield f"load-module module-null-sink sink_name=desk {whole}"
    for sink, channel in zip((_MOUTH, *SPEAKERS), _CHANNELS, strict=False):
        yield f"load-module module-remap-sink sink_name={sink} master=desk {_one(channel)}"
    yield (
        f"load-module module-remap-source source_name={MICROPHONE} master=desk.monitor {_one(_CHANNELS[0])}"
        f" source_properties=device.description={MICROPHONE}"
    )
    yield f"set-default-source {MICROPHONE}"
    yield f"set-default-sink {SPEAKERS[0]}"


def _one(channel: str) -> str:
    return f"channels=1 channel_map=mono master_channel_map={channel} remix=no"


def _wait_for(process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        listed = subprocess.run(["pactl", "list", "short", "sources"], env=environment, capture_output=True, text=True)
        if f"\t{MICROPHONE}\t" in listed.stdout:
            return
        time.sleep(0.05)
    raise RuntimeError(f"PulseAudio did not start: {log.read_text(errors='replace')[-2000:]}")
