"""Processes that are started as users start them, and what they listen on, as /proc tells."""

from __future__ import annotations

import ipaddress
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTEN = "0A"


def python_below(folder: Path) -> Path:
    """An interpreter with this one's packages, in a virtual environment of its own."""
    venv.create(folder, symlinks=True)
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(packages, "shared.pth").write_text("\n".join(paths))
    return folder / "bin" / "python"


def nobody() -> list[str]:
    """What puts a command under a user without a name or a home folder, where the system lets us."""
    command = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    works = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


@dataclass(frozen=True)
class Listening:
    """A TCP socket that takes connections, or a UDP socket."""

    protocol: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += descendants(int(child))
    return found


def listening(pid: int) -> list[Listening]:
    """What the process and all below it listen on."""
    owner = {inode: each for each in descendants(pid) for inode in _socket_inodes(each)}
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in owner and (fields[3] == LISTEN or protocol.startswith("udp")):
                address, _, port = fields[1].partition(":")
                command = Path(f"/proc/{owner[fields[9]]}/cmdline").read_text().replace("\0", " ")
                found.append(Listening(protocol, _address(address), int(port, 16), command[:80]))
    return found


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # closed by now
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: words of four bytes in the machine's order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
