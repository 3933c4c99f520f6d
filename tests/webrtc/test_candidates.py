"""Which addresses of a client are read, and which packets may be sent to."""

import pytest

from webrtc.candidates import Reach, read_candidate


def line(address: str, port: str = "5000", kind: str = "host") -> str:
    return f"candidate:1 1 udp 2122 {address} {port} typ {kind}"


@pytest.mark.parametrize(
    ("reach", "refused"),
    [
        (Reach(), {"loopback"}),
        (Reach(loopback=True), set[str]()),
        (Reach(private=False), {"loopback", "private"}),
        (Reach(loopback=True, private=False), {"private"}),
    ],
)
def test_how_far_a_call_reaches(reach: Reach, refused: set[str]) -> None:
    addresses = {
        "public": ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
        "private": ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"],
        "loopback": [
            "127.0.0.1",
            "127.255.0.9",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:0:808:808::80ff:fffe",
        ],
    }
    for kind, some in addresses.items():
        assert [read_candidate(line(one), reach) is None for one in some] == [kind in refused] * len(some), kind


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",  # where clouds tell a machine its secrets
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "fe80::1",
        "fe80::1%eth0",
        "2001:4860::8888%1",
        "224.0.0.251",
        "ff02::fb",
        "255.255.255.255",
        "240.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "::127.0.0.1",  # IPv4 addresses within IPv6 ones, in all forms that were ever used
        "::169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "2001:0:7f00:1::5601:5601",  # Teredo: 169.254.169.254
        "fec0::1",
        "5f00::1",
        "0b0b0b0b-1111-4222-8333-444444444444.local",
        "host.example",
        "127.1",
        "0x7f000001",
        "2130706433",
        "010.0.0.1",
        "1.2.3.4.5",
    ],
)
def test_what_no_reach_allows(address: str) -> None:
    assert read_candidate(line(address), Reach(loopback=True)) is None


@pytest.mark.parametrize(
    ("port", "usable"), [("1", True), ("65535", True), ("0", False), ("65536", False), ("x", False)]
)
def test_a_candidate_has_a_port_that_exists(port: str, usable: bool) -> None:
    assert (read_candidate(line("192.0.2.1", port)) is not None) is usable


@pytest.mark.parametrize(
    "unusable",
    [
        "",
        "rubbish",
        "candidate:1 1 tcp 1518 192.0.2.3 9 typ host tcptype active",
        "candidate:1 2 udp 2122 192.0.2.3 5000 typ host",  # RTCP on a port of its own
        "candidate:1 1 udp 99999999999 192.0.2.3 5000 typ host",
        "candidate:1 1 udp -1 192.0.2.3 5000 typ host",
        "candidate:1 1 udp ٣ 192.0.2.3 5000 typ host",
        "candidate:1 1 udp 2122 192.0.2.3 5000 typ prflx",
        "candidate:1 1 udp 2122 192.0.2.3 5000",
        "candidate:1 1 udp 2122 192.0.2.3 5000 typ host\r\na=setup:active",
    ],
)
def test_what_is_no_candidate_of_a_call(unusable: str) -> None:
    assert read_candidate(unusable) is None


def test_candidates_come_with_all_that_browsers_add() -> None:
    extras = "raddr 10.0.0.1 rport 9 generation 0 ufrag abcd network-cost 999"
    for head in ("candidate", "a=candidate"):
        found = read_candidate(f"{head}:842163049 1 UDP 1677729535 192.0.2.7 50000 typ srflx {extras}")
        assert found is not None
        assert (found.ip, found.port, found.type, found.component) == ("192.0.2.7", 50000, "srflx", 1)
