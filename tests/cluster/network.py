"""The bridges of pods and of dockerd, and the traces that networking leaves in the kernel."""

import json
from pathlib import Path
from typing import Any

from tests.cluster.layout import BRIDGE, BRIDGE_ADDRESS, DOCKER_ADDRESS, DOCKER_BRIDGE, POD_NETWORK
from tests.cluster.shell import run, succeeds

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")

PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""nftables tables that kube-proxy makes."""


def create_bridges() -> None:
    """Make both bridges, before anything binds to their addresses."""
    _create_bridge(BRIDGE, f"{BRIDGE_ADDRESS}/{POD_NETWORK.partition('/')[2]}")
    _create_bridge(DOCKER_BRIDGE, DOCKER_ADDRESS)
    if FORWARDING.read_text().strip() != "1":
        FORWARDING.write_text("1")


def remove_network() -> None:
    """Remove bridges, the pods' interfaces on them and kube-proxy's tables, whichever are there."""
    for name in interfaces():
        succeeds(["ip", "link", "delete", name])  # the other end of a pair may have taken it along already
    for family, table in tables():
        run(["nft", "delete", "table", family, table])


def interfaces() -> list[str]:
    """Our network interfaces: those plugged into the bridges first, then the bridges."""
    links = _links()
    ours = (BRIDGE, DOCKER_BRIDGE)
    plugged = [link["ifname"] for link in links if link.get("master") in ours]
    return plugged + [link["ifname"] for link in links if link["ifname"] in ours]


def tables() -> list[tuple[str, str]]:
    """kube-proxy's nftables tables that exist."""
    return [(family, table) for family, table in PROXY_TABLES if succeeds(["nft", "list", "table", family, table])]


def _create_bridge(name: str, address: str) -> None:
    run(["ip", "link", "add", name, "type", "bridge"])
    run(["ip", "address", "add", address, "dev", name])
    run(["ip", "link", "set", name, "up"])


def _links() -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(run(["ip", "-json", "link", "show"]))
    return links
