"""STUN and TURN servers and coturn's credentials."""

import pytest
from aiortc import RTCIceGatherer

from webrtc.ice import IceServer, configuration, time_limited_credential


def test_without_servers_nobody_is_asked() -> None:
    servers = configuration([]).iceServers
    assert servers == []
    assert RTCIceGatherer.getDefaultIceServers() != servers  # aiortc's own default is a public server


def test_servers_reach_aiortc_with_their_credentials() -> None:
    turn = IceServer(("turn:turn.example.org:3478?transport=udp", "turn:turn.example.org?transport=tcp"), "ann", "pw")
    stun, relay = configuration([IceServer(("stun:stun.example.org",)), turn]).iceServers or []
    assert stun.urls == ["stun:stun.example.org"] and stun.username is None
    assert relay.urls == list(turn.urls) and (relay.username, relay.credential) == ("ann", "pw")


def test_ipv6_urls_are_for_clients_only() -> None:
    server = IceServer(("stun:[2001:db8::1]:3478",))
    assert server.as_dict() == {"urls": ["stun:[2001:db8::1]:3478"]}
    assert configuration([server]).iceServers == []


def test_a_browser_is_told_urls_and_credential() -> None:
    server = IceServer(("turns:turn.example.org",), "1700:ann", "pw")
    assert server.as_dict() == {"urls": ["turns:turn.example.org"], "username": "1700:ann", "credential": "pw"}


def test_a_credential_is_not_printed() -> None:
    assert "pw-secret" not in repr(IceServer(("turn:a.example",), "ann", "pw-secret"))


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://turn.example.org", "'http://turn.example.org' is no ICE server URL"),
        ("stun:", "is no ICE server URL"),
        ("stun:host:99999", "is no ICE server URL"),
        ("turn:host?transport=sctp", "is no ICE server URL"),
        ("stun:host?transport=udp", "only TURN URLs may have"),
        ("turn:host", "has no username and credential"),
    ],
)
def test_a_wrong_server_is_refused_in_one_sentence(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.replace("?", r"\?")):
        IceServer((url,))


def test_no_url_is_refused() -> None:
    with pytest.raises(ValueError, match="has no URL"):
        IceServer(())


def test_credentials_are_those_of_coturn() -> None:
    # made with: printf %s 1700003600:ann | openssl dgst -sha1 -hmac north -binary | base64
    username, credential = time_limited_credential("north", "ann", now_s=1_700_000_000.9, valid_s=3600)
    assert username == "1700003600:ann"
    assert credential == "TwqKCcbzejRFa1sgGqGS7SEzCGg="


def test_an_empty_secret_makes_no_credentials() -> None:
    with pytest.raises(ValueError, match="secret"):
        time_limited_credential("", "ann", now_s=0, valid_s=60)
