# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces of a node can carry cluster traffic, and which one does.

Internal to metalray.cluster: not a public interface.

``read_links`` looks at a sysfs tree under any root, so that captured trees test it; everything else is pure. Addresses come
from ``_addresses``, routes are what ``ip -j`` prints (iproute2).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ._addresses import Address
from ._tree import Tree

# Names that container engines, hypervisors and overlays give to what they make. The kind decides where the kernel tells
# it; these catch what it does not tell.
_MADE_BY_SOFTWARE = ("docker", "br-", "veth", "virbr", "vnet", "cni", "cali", "flannel", "cilium", "lxc", "podman", "tun", "tap",
                     "wg", "kube-", "tailscale", "zt", "dummy", "ifb", "sit", "ip6tnl", "gre", "nerdctl")  # fmt: skip

_ARPHRD_ETHER = 1
_ARPHRD_INFINIBAND = 32
_LEAST_MTU = 68
# What drivers say that do not know their speed, besides -1: the same number in 16 and in 32 bits.
_UNKNOWN_SPEEDS = (0xFFFF, 0xFFFFFFFF)


class InterfaceError(Exception):
    """No interface fits; the text says what was wanted and what the node has."""


@dataclass(frozen=True)
class Link:
    """A network device as sysfs shows it. ``speed_mbps`` is None where the driver does not know."""

    name: str
    up: bool
    arp_type: int
    mtu: int
    speed_mbps: int | None
    driver: str | None
    has_device: bool
    lower: tuple[str, ...]
    bridge_ports: tuple[str, ...] | None
    enslaved: bool
    bonding: bool


@dataclass(frozen=True)
class Candidate:
    """An address of a node that could carry cluster traffic.

    ``default_route`` tells that the node's default route leaves by this interface; ``physical`` that a real device is
    below it (directly, or under a bond, VLAN or bridge); ``first`` that Gloo and NCCL take this address when they are told
    the interface, since no other of its family is listed before it.
    """

    interface: str
    address: str
    prefix: int
    mtu: int
    speed_mbps: int | None
    physical: bool
    default_route: bool
    first: bool = True

    @property
    def network(self) -> str:
        return str(ipaddress.ip_interface(f"{self.address}/{self.prefix}").network)

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.address).version

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


def read_links(root: str = "/", problems: list[str] | None = None) -> dict[str, Link]:
    """The network devices under ``root``/sys/class/net, by name. A file that lies adds a sentence to ``problems``."""
    tree = Tree(root)
    links = {}
    for name in tree.names("/sys/class/net"):
        path = f"/sys/class/net/{name}"
        entries = tree.names(path)
        if not entries or not name.isprintable():
            continue  # bonding_masters is a file
        speed = tree.number(f"{path}/speed")
        driver = os.path.basename(tree.real(f"{path}/device/driver"))
        links[name] = Link(
            name=name,
            # A driver that does not track its state says 'unknown' and still has a carrier.
            up=tree.text(f"{path}/operstate") in ("up", "unknown") and tree.text(f"{path}/carrier") == "1",
            arp_type=tree.number(f"{path}/type", least=0) or 0,
            mtu=tree.number(f"{path}/mtu", least=_LEAST_MTU) or 0,
            speed_mbps=speed if speed and speed > 0 and speed not in _UNKNOWN_SPEEDS else None,
            driver=driver if driver != "driver" else None,
            has_device="device" in entries,
            lower=tuple(entry[len("lower_") :] for entry in entries if entry.startswith("lower_")),
            bridge_ports=tuple(tree.names(f"{path}/brif")) if "bridge" in entries else None,
            enslaved="master" in entries,
            bonding="bonding" in entries,
        )
    if problems is not None:
        problems += tree.problems
    return links


def _stack(name: str, links: Mapping[str, Link]) -> list[Link]:
    """A device and everything below it."""
    todo, found = [name], {}
    while todo:
        link = links.get(todo.pop())
        if link is not None and link.name not in found:
            found[link.name] = link
            todo += link.lower if link.bridge_ports is None else link.bridge_ports
    return list(found.values())


def is_physical(name: str, links: Mapping[str, Link]) -> bool:
    """Whether a real device carries this one: it is one, or a bond, VLAN or bridge over one."""
    return any(link.has_device for link in _stack(name, links))


def link_speed(name: str, links: Mapping[str, Link]) -> int | None:
    """A VLAN or bridge that does not say its speed has that of the fastest device below it."""
    own = links[name].speed_mbps
    return own or max((link.speed_mbps for link in _stack(name, links) if link.speed_mbps), default=None)


def _usable(link: Link, links: Mapping[str, Link]) -> bool:
    if not link.up or not link.mtu or link.arp_type not in (_ARPHRD_ETHER, _ARPHRD_INFINIBAND) or link.enslaved:
        return False
    if is_physical(link.name, links):
        return True
    # A virtual device is a node's own only where the node is itself a container or a guest without a bus. Bridges with
    # nothing real below them, and what engines and overlays make, never are.
    return link.bridge_ports is None and not link.name.startswith(_MADE_BY_SOFTWARE)


def default_route_devices(routes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The devices of the default routes with the lowest metric, from ``ip -j route``."""
    found: list[tuple[int, str]] = []
    for route in routes:
        if route.get("dst") in ("default", "0.0.0.0/0", "::/0"):
            hops = route.get("nexthops") or [route]
            found += [(int(route.get("metric") or 0), hop["dev"]) for hop in hops if hop.get("dev")]
    best = min((metric for metric, _dev in found), default=0)
    return [dev for metric, dev in found if metric == best]


def find_candidates(
    links: Mapping[str, Link], addresses: Iterable[Address], routes: Iterable[Mapping[str, Any]]
) -> list[Candidate]:
    """Every address of the node that could carry cluster traffic; real devices first, then by name and address.

    ``routes`` is ``ip -j route`` and ``ip -6 -j route`` together.
    """
    by_default = set(default_route_devices(routes))
    found = [
        Candidate(
            interface=item.interface,
            address=item.address,
            prefix=item.prefix,
            mtu=links[item.interface].mtu,
            speed_mbps=link_speed(item.interface, links),
            physical=is_physical(item.interface, links),
            default_route=item.interface in by_default,
            first=item.first,
        )
        for item in addresses
        if item.interface in links and _usable(links[item.interface], links)
    ]
    return sorted(found, key=lambda c: (not c.physical, c.version, c.interface, int(ipaddress.ip_address(c.address))))


def routed_networks(routes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The networks that a node's routes name, in CIDR notation: no default route, no link-local or multicast network, and
    nothing behind a container engine's own bridge."""
    found = set()
    for route in routes:
        destination = route.get("dst", "default")
        if destination == "default" or str(route.get("dev", "")).startswith(("docker", "br-", "lo")):
            continue
        try:
            network = ipaddress.ip_network(destination, strict=False)
        except ValueError:
            continue
        if network.prefixlen and not (network.is_link_local or network.is_multicast or network.is_loopback):
            found.add(network)
    return [str(network) for network in sorted(found, key=lambda n: (n.version, int(n.network_address), n.prefixlen))]


#: What is left to a node that is alone and has no link.
LOOPBACK = Candidate("lo", "127.0.0.1", 8, 65536, None, physical=False, default_route=False)


def describe(candidates: Iterable[Candidate]) -> str:
    """What a node has, for an error message."""
    return (
        ", ".join(f"{c.interface} {c.address}/{c.prefix}" for c in candidates)
        or "no interface that is up with an address"
    )


def narrow(candidates: Iterable[Candidate], interface: str | None, cidr: str | None) -> list[Candidate]:
    """The candidates that the user's choice of interface or network leaves. Raises InterfaceError when none is left."""
    have = list(candidates)
    left = [c for c in have if not interface or c.interface == interface]
    if interface and not left:
        raise InterfaceError(f"cluster_interface is '{interface}', but this node has {describe(have)}")
    if cidr:
        network = ipaddress.ip_network(cidr, strict=False)
        inside = [c for c in left if ipaddress.ip_address(c.address) in network]
        if not inside:
            raise InterfaceError(f"cluster_cidr is {network}, but this node has {describe(left)}")
        left = inside
    return left


def _is_private(network: str) -> bool:
    return ipaddress.ip_network(network).is_private


def _rank(network: str, members: Iterable[Candidate]) -> tuple[Any, ...]:
    """Smaller is better: a real device, IPv4, a private network, one that is not the way to the Internet, the faster one."""
    chosen = list(members)
    slowest = min(c.speed_mbps or 0 for c in chosen)
    parsed = ipaddress.ip_network(network)
    return (
        not all(c.physical for c in chosen),
        parsed.version,
        not _is_private(network),
        any(c.default_route for c in chosen),
        -slowest,
        int(parsed.network_address),
    )


def _shared(nodes: Mapping[str, list[Candidate]]) -> dict[str, dict[str, Candidate]]:
    """Networks in which every node has an address of its own: network to node to candidate."""
    networks: dict[str, dict[str, Candidate]] = {}
    for node, candidates in nodes.items():
        for candidate in candidates:
            networks.setdefault(candidate.network, {}).setdefault(node, candidate)
    return {
        network: members
        for network, members in networks.items()
        # The same address on two nodes is a private network of each node (a hypervisor's, say), not a shared one.
        if len(members) == len(nodes) == len({c.address for c in members.values()})
    }


def choose(nodes: Mapping[str, list[Candidate]], head: str) -> tuple[dict[str, Candidate], str]:
    """One candidate a node, and the cluster's network in CIDR notation.

    The best network in which every node has an address. Where there is none (a routed fabric with a subnet a node) each
    node's own best candidate, and the head's network: the kernel's answer for every peer then proves it.

    Raises InterfaceError for a node without any candidate.
    """
    for node, candidates in nodes.items():
        if not candidates:
            raise InterfaceError(f"{node} has no interface that is up with an address and that leads to other nodes")
    shared = _shared(nodes)
    if shared:
        network = min(shared, key=lambda name: _rank(name, shared[name].values()))
        return shared[network], network

    picked = {node: min(candidates, key=lambda c: _rank(c.network, [c])) for node, candidates in nodes.items()}
    versions = {c.version for c in picked.values()}
    if len(versions) > 1:
        raise InterfaceError(
            "some nodes have only IPv4 and some only IPv6: " + "; ".join(f"{n}: {c.address}" for n, c in picked.items())
        )
    return picked, picked[head].network


def route_batch(peers: Iterable[str]) -> str:
    """What ``ip -j -force -batch -`` reads to ask for the route to every peer: one process, however many peers."""
    return "".join(f"route get {peer}\n" for peer in peers)


def parse_routes(peers: Iterable[str], out: str, err: str) -> dict[str, dict[str, Any]]:
    """The kernel's answer for each peer, from what the batch of ``route_batch`` printed.

    Raises InterfaceError that names the command, the peers and the kernel's reason where there is no answer.
    """
    asked = list(peers)
    answers = {}
    for line in out.splitlines():
        try:
            for route in json.loads(line):
                answers[str(ipaddress.ip_address(route["dst"]))] = route
        except (ValueError, KeyError, TypeError):
            raise InterfaceError(f"'ip -j route get' answered '{line[:200]}', which is no JSON of a route") from None
    found = {peer: answers[key] for peer in asked if (key := str(ipaddress.ip_address(peer))) in answers}
    own = [peer for peer, route in found.items() if route.get("type") == "local"]
    if own:
        raise InterfaceError(f"{', '.join(own)} is an address of this node, not of a peer")
    missing = [peer for peer in asked if peer not in found]
    if missing:
        # 'REASON', then 'Command failed -:LINE'.
        reasons = {
            int(line): reason for reason, line in re.findall(r"^(.+)\nCommand failed -:(\d+)", err, re.MULTILINE)
        }
        shown = "; ".join(
            f"'ip route get {peer}' failed: {reasons.get(asked.index(peer) + 1, 'no answer')}" for peer in missing[:3]
        )
        more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
        raise InterfaceError(
            f"this node has no route to {'a peer' if len(missing) == 1 else 'its peers'}: {shown}{more}. Bring the interface up, "
            "mend the routes or rules of this node, or name a network that all nodes share in cluster_cidr"
        )
    return found


def check_steady(first: Mapping[str, Mapping[str, Any]], again: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InterfaceError when the way to a peer is another one than a moment before."""
    for peer, before in first.items():
        now = again[peer]
        ways = [f"{route.get('dev', '?')} (from {route.get('prefsrc', '?')})" for route in (before, now)]
        if ways[0] != ways[1]:
            raise InterfaceError(
                f"the route to {peer} changed while this node was looked at ('ip route get {peer}'): first by {ways[0]}, then by "
                f"{ways[1]}. Jobs would lose their connections: find what changes it (a routing daemon, a link that goes up and "
                "down, DHCP), and run again"
            )


def check_routes(peers: Mapping[str, Mapping[str, Any]], interface: str | None = None) -> tuple[str, str]:
    """The one device and source address by which the kernel reaches every peer.

    ``peers`` maps a peer's address to what ``ip -j route get`` answered for it. Raises InterfaceError when the answers
    differ between peers, or differ from ``interface``.
    """
    answers: dict[tuple[str, str], list[str]] = {}
    for peer, route in peers.items():
        answers.setdefault((route.get("dev", "?"), route.get("prefsrc", "?")), []).append(peer)
    if len(answers) != 1:
        ways = "; ".join(f"{dev} (from {source}) to {', '.join(to)}" for (dev, source), to in sorted(answers.items()))
        raise InterfaceError(
            f"this node reaches its peers by different interfaces: {ways}. Gloo and NCCL need one. Mend the routes, or name a "
            "network that all nodes share in cluster_cidr"
        )
    (device, source), to = next(iter(answers.items()))
    if interface and device != interface:
        raise InterfaceError(
            f"this node reaches {', '.join(to)} by {device} (from {source}), not by {interface}. Mend the routes, or set "
            f"cluster_interface or cluster_cidr to what really leads there"
        )
    return device, source
