"""The STUN and TURN servers that clients are told to use, with credentials that expire."""

from __future__ import annotations

import os
import time

from configs.schema import ConfigError
from configs.serve import RtcArgs
from webrtc.ice import IceServer, time_limited_credential


def ice_servers_of(args: RtcArgs) -> list[IceServer]:
    """The configured servers; a TURN server gets a credential that is good for a while.

    Raises:
        ConfigError: there is a TURN server, but not the secret that credentials are made of.
    """
    servers = []
    for server in args.ice_servers:
        if not server.relays:
            servers.append(IceServer(server.urls))
            continue
        secret = os.environ.get(args.turn_secret_env, "")
        if not secret:
            message = f"the TURN server {', '.join(server.urls)} needs coturn's shared secret in the environment"
            raise ConfigError(f"{message} variable {args.turn_secret_env}, which is not set")
        credential = time_limited_credential(secret, "seedvc", now_s=time.time(), valid_s=args.credential_s)
        servers.append(IceServer(server.urls, *credential))
    return servers


def own_ice_servers(args: RtcArgs) -> list[IceServer]:
    """The servers that this server asks for its own address. One that does not answer would delay each call by 5 s."""
    return ice_servers_of(args) if args.behind_nat else []
