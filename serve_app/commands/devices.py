"""The microphones and speakers of this machine: those of PortAudio, and those that a PulseAudio server has by name.

On Linux PortAudio knows ALSA's devices. Of a sound server (PulseAudio, or PipeWire's part that speaks its protocol) it
sees one device for all that is there, virtual devices included; which one is meant, the environment tells.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.commands import UserMistake

Kind = Literal["microphone", "speaker"]

_PULSE = "pulse"
"""ALSA's name for the sound server."""
_PULSE_KIND = {"microphone": "sources", "speaker": "sinks"}
_PACTL_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Device:
    """One device: PortAudio's number and name of it, and its name on the sound server where it is one of those."""

    index: int
    name: str
    pulse_name: str | None = None

    def matches(self, wanted: str) -> bool:
        """Whether each of the words is in its name, as PortAudio's own tools have it."""
        return all(word in self.name.casefold() for word in wanted.casefold().split())


def find(kind: Kind, wanted: str | None) -> Device:
    """The device of that name, or the system's own; UserMistake that names what there is."""
    known = _devices(kind)
    if not known:
        flag = "--in takes a recording" if kind == "microphone" else "--out writes a file"
        raise UserMistake(f"this machine has no {kind}; {flag}")
    if wanted is None:
        return next((device for device in known if device.index == _default_index(kind)), known[0])
    found = [device for device in known if device.matches(wanted)]
    found = [device for device in found if wanted in (device.name, device.pulse_name)] or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(device.name) for device in found or known)
    if found:
        raise UserMistake(f"{len(found)} {kind}s match {wanted!r}: {names}; give more of the name")
    raise UserMistake(f"there is no {kind} {wanted!r}; there are: {names}")


def listed() -> Iterator[str]:
    """All devices, line by line."""
    kinds: tuple[Kind, Kind] = ("microphone", "speaker")
    for kind in kinds:
        yield f"--{kind}"
        default = _default_index(kind)
        for device in _devices(kind):
            own = device.index == default and device.pulse_name is None
            yield f"  {device.name}" + (" (the system's own)" if own else "")


def aim(microphone: Device | None, speaker: Device | None) -> None:
    """Has devices of the sound server that this process opens from now on be those of these names."""
    for variable, device in (("PULSE_SOURCE", microphone), ("PULSE_SINK", speaker)):
        if device is not None and device.pulse_name is not None:
            os.environ[variable] = device.pulse_name


def sounddevice() -> Any:
    """The module, imported only where a device is used: machines without PortAudio can still use files."""
    try:
        import sounddevice
    except ImportError as error:
        raise UserMistake(
            "sound devices need the package sounddevice (pip install 'seedvc-serve[call]'); --in and --out take files"
        ) from error
    except OSError as error:
        raise UserMistake(
            "sound devices need PortAudio (Debian: apt-get install libportaudio2); --in and --out take files"
        ) from error
    return sounddevice


def _devices(kind: Kind) -> list[Device]:
    portaudio = sounddevice()
    systems = [system["name"] for system in portaudio.query_hostapis()]
    found = []
    for index, told in enumerate(portaudio.query_devices()):
        if told["max_input_channels" if kind == "microphone" else "max_output_channels"] > 0:
            found.append(Device(index, f"{told['name']}, {systems[told['hostapi']]}"))
            if told["name"] == _PULSE:
                found += [Device(index, name, name) for name in _pulse_names(kind)]
    return found


def _default_index(kind: Kind) -> int:
    index: int = sounddevice().default.device[0 if kind == "microphone" else 1]
    return index


def _pulse_names(kind: Kind) -> list[str]:
    """What the sound server has; nothing where its tool is not installed or no server answers."""
    if shutil.which("pactl") is None:
        return []
    command = ["pactl", "list", "short", _PULSE_KIND[kind]]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_PACTL_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [fields[1] for line in told.stdout.splitlines() if len(fields := line.split("\t")) > 1]
