"""The addresses that a client names as its own: which of them are read, and which packets may be sent to."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiortc import RTCIceCandidate

MAX_CANDIDATES = 64
"""Of one client, in its offer and after it; each costs connectivity checks."""

# RFC 8839, section 5.1; sound and control share component 1
_CANDIDATE = re.compile(
    r"(?:a=)?(?:candidate:)?\s*(?P<foundation>[!-~]{1,64})\s+1\s+udp\s+(?P<priority>[0-9]{1,10})\s+(?P<address>[!-~]+)"
    r"\s+(?P<port>[0-9]{1,5})\s+typ\s+(?P<type>host|srflx|relay)(?:\s.*)?",
    re.IGNORECASE | re.ASCII,
)
_NAT64 = IPv6Network("64:ff9b::/96")
_THIS_NETWORK = IPv4Address("0.255.255.255")
# Where clouds tell a machine its secrets, where that is not link-local: Alibaba, Azure, AWS, Google, Oracle
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe"))
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where packets of a call may go. A client can name any address, also one that is not its own."""

    loopback: bool = False
    """Whether this machine itself counts, for a client that is known to run on it."""
    private: bool = True
    """Whether addresses of a local network count."""

    def allows(self, address: str) -> bool:
        """Whether packets may be sent to an address; False for anything but an IP address."""
        try:
            ip = _unwrapped(ip_address(address))
        except ValueError:
            return False
        if ip.is_loopback:
            return self.loopback
        if ip.is_link_local or ip.is_multicast or ip.is_reserved:  # broadcast and translated addresses are reserved
            return False
        if ip in _METADATA:
            return False
        if ip <= _THIS_NETWORK if isinstance(ip, IPv4Address) else ip.is_site_local:
            return False
        return self.private or ip.is_global


def read_candidate(line: str, reach: Reach = Reach()) -> RTCIceCandidate | None:  # noqa: B008 - frozen
    """A candidate of UDP within reach, from its line in SDP or a browser's own form; None for anything else.

    Names under .local, behind which browsers hide addresses, are left out: they can only be looked up by multicast, in
    the local network. A client there reaches us at our own address anyway.
    """
    parts = _CANDIDATE.fullmatch(line.strip())
    if parts is None or not 0 < int(parts["port"]) < 65536 or not reach.allows(parts["address"]):
        return None
    return RTCIceCandidate(
        component=1,
        foundation=parts["foundation"],
        ip=str(ip_address(parts["address"])),
        port=int(parts["port"]),
        priority=int(parts["priority"]),
        protocol="udp",
        type=parts["type"].lower(),
    )


def _unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that stands in an IPv6 address, where there is one; else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip.scope_id is not None:
        raise ValueError("an address with a zone means something on one machine only")
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, ip))[1]
