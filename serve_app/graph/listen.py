"""Where a replica listens for calls of other replicas."""

from __future__ import annotations

from typing import Any

import ray
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica


def listen_at_node() -> None:
    """Have this replica listen at its Ray node's address only; a deployment's constructor calls it.

    Serve 2.60 listens on every interface, and has no setting for it.
    """
    node_ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves its signature open
    address = f"[{node_ip}]:0" if ":" in node_ip else f"{node_ip}:0"

    def add_port(server: Any, _every_interface: str) -> int:
        port: int = add_port_to_grpc_server(server, address)  # type: ignore[no-untyped-call]
        return port

    replica.add_port_to_grpc_server = add_port  # type: ignore[attr-defined]  # imported there, not exported
