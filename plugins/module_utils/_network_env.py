# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which transport carries the cluster's collectives, and with it every node's NCCL and Gloo settings.

Internal to metalray.cluster: not a public interface. Runs on the controller.

``decide`` looks at all nodes and makes one choice for the cluster, since NCCL hangs where hosts differ in transport or in
their number of adapters. ``render`` then writes it out for one node, whose interfaces and adapters may have other names.
There is one function a row of this table; ``environment`` is the part that all of them share.

==================  ============================================================================================
row                 NCCL's file
==================  ============================================================================================
none                nothing: no GPU, no NCCL
single              the interface
socket              the interface, ``NCCL_NET=Socket``, no InfiniBand where RDMA is visible, streams by link speed
infiniband          the interface, the adapters, strict mode
roce                the interface, the adapters, strict mode, address family and range, GID index for NCCL < 2.21
efa                 the interface: the plugin sets the rest itself
==================  ============================================================================================

Never set: ``NCCL_P2P_DISABLE``, ``NCCL_SHM_DISABLE``, ``NCCL_NET_GDR_LEVEL``, ``NCCL_CROSS_NIC``,
``*ASYNC_ERROR_HANDLING``, ``MASTER_*``.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ._env_catalogue import release
from ._env_lint import chosen_ports

#: From NCCL 2.21 on it finds the GID itself, and its documentation asks not to set the index.
_FINDS_GID = (2, 21)
#: The release that has NCCL_IGNORE_NET_MISMATCH.
_KNOWS_MISMATCH = (2, 30, 3)
#: The release that has NCCL_MIN_CTAS.
_KNOWS_MIN_CTAS = (2, 17)

# Closest first, by what lies between an adapter and a GPU on the PCI tree.
_NEAR = ("PIX", "PXB")


@dataclass(frozen=True)
class Port:
    """A port of an RDMA adapter; ``gids`` are its RoCE v2 GIDs as (index, address)."""

    device: str
    number: int
    link_layer: str
    rate_mbps: int
    interfaces: tuple[str, ...]
    gids: tuple[tuple[int, str], ...]
    distance: str | None

    @property
    def name(self) -> str:
        return f"{self.device}:{self.number}"


def _preferred(gids: Iterable[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """Those over IPv4, which NCCL takes unless told otherwise; where a port has none, those over IPv6."""
    found = tuple(gids)
    return tuple(gid for gid in found if ipaddress.ip_address(gid[1]).version == 4) or found


@dataclass(frozen=True)
class Member:
    """A node as the decision sees it. ``networks`` are those of each interface's addresses, in CIDR notation.

    ``fabric`` is that of the module ``node_facts``. ``first_address`` is false where the interface lists another address before
    this one. ``hcas`` is the user's own NCCL_IB_HCA, if there is one.
    """

    name: str
    interface: str
    address: str
    mtu: int
    speed_mbps: int | None
    default_interfaces: tuple[str, ...]
    networks: Mapping[str, Sequence[str]]
    fabric: Mapping[str, Any]
    first_address: bool = True
    hcas: str = ""

    @property
    def gpus(self) -> int:
        return len(self.fabric["gpus"])

    @property
    def nccl(self) -> tuple[int, ...] | None:
        """NCCL's version, or None where there is no NCCL yet, or one that does not say."""
        try:
            return release(self.fabric["nccl"]["version"]) if self.fabric["nccl"] else None
        except ValueError:
            return None

    @property
    def active_ports(self) -> list[Port]:
        return [
            Port(
                device=port["device"],
                number=port["port"],
                link_layer=port["link_layer"],
                rate_mbps=port["rate_mbps"] or 0,
                interfaces=tuple(port["interfaces"]),
                gids=_preferred((gid["index"], gid["address"]) for gid in port["roce_gids"]),
                distance=port["distance"],
            )
            for port in self.fabric["rdma"]
            if port["active"]
        ]


@dataclass(frozen=True)
class Setting:
    """One variable of one node, and why it has this value."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Sockets:
    """Helper threads of a connection, sockets of each thread, and the channels that NCCL opens at least."""

    threads: int
    each: int
    channels: int | None


@dataclass(frozen=True)
class Decision:
    """What holds for the whole cluster.

    ``adapters`` are the ports of each node that carry the collectives. ``notes`` are whole sentences that a user should read
    once.
    """

    transport: str
    adapters: Mapping[str, Sequence[Port]] = field(default_factory=dict)
    strict: bool = True
    external_plugin: bool = False
    sockets: Sockets | None = None
    address_family: str | None = None
    address_range: str | None = None
    notes: tuple[str, ...] = ()


# The choice for the cluster -----------------------------------------------------------------------------------------


def choose_sockets(speed_mbps: int | None) -> Sockets | None:
    """How to fill a TCP link of this speed, or None to leave it to NCCL. Measured: tests/gpu/RESULTS.md.

    One TCP stream, which is what NCCL takes by itself, moves about 30 Gb/s. Two helper threads with a socket each reach the
    wire's speed up to 100 Gb/s; from there on it takes more channels. More sockets lose: their bursts overrun the queues. A
    link that does not tell its speed is taken for a fast one, since on a slow one none of this costs anything.
    """
    if speed_mbps is not None and speed_mbps < 25_000:
        return None
    return Sockets(threads=2, each=1, channels=4 if speed_mbps is None or speed_mbps >= 100_000 else None)


def compute_ports(member: Member, link_layer: str) -> list[Port]:
    """The ports of a node that collectives should use.

    Those that the user names; or else not the one that carries the node's own traffic, nor ports slower than the fastest, nor,
    where some are next to a GPU, those that are not. A rule that would leave none is not applied.
    """
    ports = [port for port in member.active_ports if port.link_layer == link_layer]
    if link_layer == "Ethernet":
        ports = [port for port in ports if port.gids]
    ports.sort(key=lambda port: (port.device, port.number))
    chosen = chosen_ports(member.hcas, [port.name for port in ports])
    if chosen:
        return [port for port in ports if port.name in chosen]
    # IPoIB shares its port with RDMA without harm; an Ethernet port that also carries SSH and Ray is better left to them.
    own = {*member.default_interfaces, member.interface}
    if link_layer == "InfiniBand":
        own.remove(member.interface)
    ports = [port for port in ports if not own.intersection(port.interfaces)] or ports
    fastest = max((port.rate_mbps for port in ports), default=0)
    ports = [port for port in ports if port.rate_mbps == fastest]
    return [port for port in ports if port.distance in _NEAR] or ports


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _must_agree(what: str, values: Mapping[str, Any], mend: str) -> list[str]:
    """Names the nodes that differ from most; where no value is more common than the others, from the first one."""
    if len(set(values.values())) < 2:
        return []
    usual = Counter(values.values()).most_common(1)[0][0]
    odd = [name for name, value in values.items() if value != usual]
    others = [name for name in values if name not in odd]
    seen = "; ".join(f"{name}: {values[name]}" for name in odd)
    return [f"{what} differs between nodes: {seen}, but {usual} on {_list(others)}. {mend}"]


def _rdma(members: Sequence[Member], link_layer: str, demanded: bool) -> tuple[dict[str, list[Port]] | None, list[str]]:
    """Every node's compute ports, or None where the cluster cannot use this link layer; and what is wrong."""
    label = "InfiniBand" if link_layer == "InfiniBand" else "RoCE"
    ports = {member.name: compute_ports(member, link_layer) for member in members}
    have = [name for name, found in ports.items() if found]
    lack = [name for name, found in ports.items() if not found]
    if not have and not demanded:
        return None, []
    if lack:
        look = (
            "ibstat; one in state Initializing waits for a subnet manager"
            if label == "InfiniBand"
            else "ibv_devinfo; an Ethernet port needs an IP address for its RoCE v2 GID"
        )
        but = f", but {_list(have)} has" if have else ""
        return None, [
            f"{_list(lack)}: no active {label} port{but}. The transport must be the same on all nodes: bring the port up "
            f"({look}), or set network_env_profile to 'ethernet'"
        ]
    problems = _must_agree(
        f"The number of active {label} ports",
        {name: len(found) for name, found in ports.items()},
        "NCCL hangs on unequal sets. Bring the missing ports up, take the node out, or name the same number of ports for each "
        "node in network_env_extra.NCCL_IB_HCA",
    )
    return ports, problems


def _address_range(members: Sequence[Member], ports: Mapping[str, Sequence[Port]]) -> tuple[str | None, str | None]:
    """NCCL_IB_ADDR_RANGE where a port has addresses in several networks, or a note that only the operator can know it."""
    by_port = [(member, [ipaddress.ip_address(address) for _index, address in port.gids])
               for member in members for port in ports[member.name]]  # fmt: skip
    if all(len(addresses) < 2 for _member, addresses in by_port):
        return None, None
    networks = {
        network
        for member, _addresses in by_port
        for listed in member.networks.values()
        for network in map(ipaddress.ip_network, listed)
    }
    fits = [
        network
        for network in networks
        if all(sum(address in network for address in addresses) == 1 for _member, addresses in by_port)
    ]
    if len(fits) == 1:
        return str(fits[0]), None
    return None, (
        "Some RoCE ports have addresses in several networks, and no single network fits all of them: set "
        "NCCL_IB_ADDR_RANGE in network_env_extra to the one that NCCL should use"
    )


def _decide_roce(members: Sequence[Member], strict: bool, plugin: bool) -> tuple[Decision, list[str]]:
    ports, problems = _rdma(members, "Ethernet", demanded=True)
    if ports is None:
        return Decision("roce"), problems
    families = {ipaddress.ip_address(gid[1]).version for found in ports.values() for port in found for gid in port.gids}
    for member in members:
        if _wants_gid(member) and len({port.gids[0][0] for port in ports[member.name]}) != 1:
            problems.append(
                f"{member.name}: its RoCE ports have their GIDs at different indexes, and NCCL "
                f"{member.fabric['nccl']['version']} takes one for all. Use NCCL 2.21 or newer, which finds them itself"
            )
    if len(families) > 1:
        only = [f"{name} {port.name}" for name, found in ports.items() for port in found
                if ipaddress.ip_address(port.gids[0][1]).version == 6]  # fmt: skip
        problems.append(
            f"RoCE ports with IPv6 addresses only: {_list(only)}; the others have IPv4. Give them IPv4 addresses too"
        )
    address_range, note = _address_range(members, ports)
    return Decision(
        "roce",
        adapters=ports,
        strict=strict,
        external_plugin=plugin,
        address_family="AF_INET6" if families == {6} else None,
        address_range=address_range,
        notes=(*_without_address(members), *([note] if note else [])),
    ), problems


def _wants_gid(member: Member) -> bool:
    return member.nccl is not None and member.nccl < _FINDS_GID


def _without_address(members: Sequence[Member]) -> list[str]:
    """Ports that RoCE cannot use: without an IP address there is no RoCE v2 GID."""
    bare = [f"{port.name} on {member.name}" for member in members for port in member.active_ports
            if port.link_layer == "Ethernet" and not port.gids]  # fmt: skip
    if not bare:
        return []
    return [
        f"Active Ethernet ports that RoCE cannot use, for want of an IP address: {_list(bare)}. Give them one if they are to carry "
        "collectives"
    ]


def _shadowed(members: Sequence[Member]) -> list[str]:
    """Gloo and NCCL find an address by the name of its interface, and take the first that it lists."""
    return [
        f"{member.name}: {member.address} is not the first address of {member.interface}, and Gloo and NCCL take the first. Make "
        "it the first one, or give the cluster an interface of its own"
        for member in members
        if not member.first_address
    ]


def _idle_capability(members: Sequence[Member]) -> list[str]:
    """What the nodes could do and Ethernet leaves unused."""
    waiting = [f"{port['device']}:{port['port']} on {member.name}" for member in members for port in member.fabric["rdma"]
               if (port["link_layer"], port["physical_state"], port["state"]) == ("InfiniBand", "LinkUp", "INIT")]  # fmt: skip
    if waiting:
        return [
            f"InfiniBand ports that have a link and wait for a subnet manager: {_list(waiting)}. TCP is used until there is one "
            "(opensm on a node, or a switch's own)"
        ]
    able = [member.name for member in members if compute_ports(member, "Ethernet")]
    if len(able) != len(members):
        return []
    return [
        f"All nodes have RoCE ports ({_list(port.name for port in compute_ports(members[0], 'Ethernet'))} on "
        f"{members[0].name}), and TCP is used: a lossless fabric cannot be seen from the nodes. Where the operator vouches for "
        "it, set network_env_profile to 'roce'"
    ]


def _hardware(members: Sequence[Member]) -> list[str]:
    """What slows down the GPUs of one node, whatever joins the nodes."""
    notes = []
    idle = [m.name for m in members if not all(gpu["driver"] for gpu in m.fabric["gpus"])]
    if idle:
        notes.append(
            f"GPUs that no driver has taken on {_list(idle)}: look for 'NVRM' in 'dmesg', and install or reload the driver"
        )
    broken = [m.name for m in members if m.fabric["nvlink"] == "some"]
    if broken:
        notes.append(
            f"NVLink joins some pairs of GPUs and not all on {_list(broken)}: a link is down, or the fabric manager does not run "
            "(nvidia-smi nvlink --status, systemctl status nvidia-fabricmanager)"
        )
    detour = [m.name for m in members if m.fabric["acs_bridges"] and m.gpus > 1 and m.fabric["nvlink"] != "all"]
    if detour:
        notes.append(
            f"PCI bridges above GPUs on {_list(detour)} send what GPUs write to one another through the CPU: switch ACS off in the "
            "firmware, or with setpci (NCCL_P2P_DISABLE would not help, it gives up the direct way altogether)"
        )
    small = [m.name for m in members if m.gpus > 1 and m.fabric["nvlink"] != "all" and m.fabric["shm_bytes"] < 1 << 30]
    if small:
        notes.append(
            f"/dev/shm is smaller than 1 GiB on {_list(small)}, and NCCL needs it between GPUs without NVLink: mount it larger "
            "(NCCL_SHM_DISABLE would send this traffic over the network)"
        )
    return notes


def _readiness(members: Sequence[Member], strict: bool) -> list[str]:
    """What keeps RDMA from its full speed, or from being held to it."""
    notes = []
    without = [m.name for m in members if not (m.fabric["gpudirect"]["peermem"] or m.fabric["gpudirect"]["dmabuf"])]
    if without:
        notes.append(
            f"GPUDirect RDMA is not ready on {_list(without)}: load nvidia_peermem, or use NVIDIA's open kernel modules with Linux "
            "5.12 or newer (DMA-BUF). NCCL works without it, more slowly"
        )
    plugins = {m.name: m.fabric["plugins"][0] for m in members if m.fabric["plugins"]}
    if plugins and strict:
        notes.append(
            f"An external network plugin is there ({'; '.join(f'{name}: {path}' for name, path in plugins.items())}), whose network "
            "has a name of its own, so NCCL is not kept from falling back to TCP. Set NCCL_NET in network_env_extra to that name, "
            "or NCCL_NET_PLUGIN to none and NCCL_NET to IB"
        )
    return notes


def decide(members: Sequence[Member], profile: str = "auto", strict: bool = True) -> tuple[Decision, list[str]]:
    """The cluster's decision, and problems that stand in its way.

    ``members`` are all nodes, the head first; those without a GPU take no part in NCCL's collectives.
    """
    workers = [member for member in members if member.gpus]
    problems = _must_agree(
        "The MTU of the cluster's interface",
        {member.name: member.mtu for member in members},
        "Give all the same (ip link set dev INTERFACE mtu N, and in the node's network configuration)",
    )
    notes = [*_shadowed(members), *_hardware(workers)]
    if not workers or len(members) == 1:
        return Decision("single" if workers else "none", notes=tuple(notes)), problems
    plugin = any(member.fabric["plugins"] for member in workers)

    if profile == "auto" and any(member.fabric["efa"] for member in workers):
        problems += _must_agree(
            "EFA",
            {member.name: "an EFA device" if member.fabric["efa"] else "none" for member in workers},
            "The transport must be the same on all nodes: attach the device, or set network_env_profile to 'ethernet'",
        )
        return Decision("efa", notes=tuple(notes)), problems
    if profile == "roce":
        decision, wrong = _decide_roce(workers, strict, plugin)
        return _with_notes(decision, [*notes, *_readiness(workers, strict)]), problems + wrong
    if profile in ("auto", "infiniband"):
        ports, wrong = _rdma(workers, "InfiniBand", demanded=profile == "infiniband")
        problems += wrong
        if ports is not None or wrong:
            decision = Decision("infiniband", adapters=ports or {}, strict=strict, external_plugin=plugin)
            return _with_notes(decision, [*notes, *_readiness(workers, strict)]), problems

    speeds = [member.speed_mbps for member in workers]
    # Ethernet, and the guide's settings, which are made for TCP.
    slowest = None if None in speeds else min(speed for speed in speeds if speed is not None)
    notes += _idle_capability(workers) if profile == "auto" else []
    return Decision("socket", sockets=choose_sockets(slowest), notes=tuple(notes)), problems


def _with_notes(decision: Decision, notes: Sequence[str]) -> Decision:
    return replace(decision, notes=(*decision.notes, *notes))


def check_nccl(members: Sequence[Member]) -> list[str]:
    """NCCL's versions must agree between the nodes that use it. Nodes without NCCL yet do not count."""
    seen = {m.name: ".".join(map(str, m.nccl)) for m in members if m.gpus and m.nccl}
    return _must_agree(
        "NCCL's version", seen, "Build the same environment on all nodes (--tags python_env) and run this stage again"
    )


# One node's settings ------------------------------------------------------------------------------------------------


def environment(member: Member) -> list[Setting]:
    """Of every process on the node. Gloo takes exact names only, and these may differ from node to node."""
    return [
        Setting(
            "GLOO_SOCKET_IFNAME", member.interface, "the interface that leads to the other nodes, by its exact name"
        ),
        Setting("VLLM_HOST_IP", member.address, "this node's address in the cluster, the same that Ray uses"),
    ]


def _interface(member: Member) -> Setting:
    return Setting("NCCL_SOCKET_IFNAME", f"={member.interface}", "exactly this interface: without '=' it is a prefix")


def _common(member: Member) -> list[Setting]:
    family = "AF_INET6" if ipaddress.ip_address(member.address).version == 6 else "AF_INET"
    return [
        _interface(member),
        Setting("NCCL_SOCKET_FAMILY", family, "the family of the node's address in the cluster"),
        Setting("NCCL_DEBUG", "WARN", "NCCL says what goes wrong, and nothing else"),
    ]


def _none(_member: Member, _decision: Decision) -> list[Setting]:
    return []


def _single(member: Member, _decision: Decision) -> list[Setting]:
    return [_interface(member)]


def _socket(member: Member, decision: Decision) -> list[Setting]:
    settings = [*_common(member), Setting("NCCL_NET", "Socket", "TCP, whatever plugins and adapters are there")]
    if member.fabric["rdma"]:
        settings.append(Setting("NCCL_IB_DISABLE", "1", "the RDMA adapters of this node are not used"))
    sockets = decision.sockets
    if sockets:
        why = "one TCP stream does not fill this link"
        settings += [
            Setting("NCCL_SOCKET_NTHREADS", str(sockets.threads), why),
            Setting("NCCL_NSOCKS_PERTHREAD", str(sockets.each), why),
        ]
    if sockets and sockets.channels and (member.nccl is None or member.nccl >= _KNOWS_MIN_CTAS):
        settings.append(Setting("NCCL_MIN_CTAS", str(sockets.channels), "nor do two channels"))
    return settings


def _strict(member: Member, decision: Decision) -> list[Setting]:
    if not decision.strict:
        return []
    settings = []
    if not decision.external_plugin:
        settings.append(Setting("NCCL_NET", "IB", "an error instead of a silent fall-back to TCP"))
    if member.nccl is None or member.nccl >= _KNOWS_MISMATCH:
        settings.append(
            Setting("NCCL_IGNORE_NET_MISMATCH", "0", "an error where nodes have chosen different transports")
        )
    return settings


def _adapters(member: Member, decision: Decision) -> list[Setting]:
    names = ",".join(port.name for port in decision.adapters[member.name])
    return [Setting("NCCL_IB_HCA", f"={names}", "exactly the active ports that belong to the GPUs")]


def _infiniband(member: Member, decision: Decision) -> list[Setting]:
    return [*_common(member), *_adapters(member, decision), *_strict(member, decision)]


def _roce(member: Member, decision: Decision) -> list[Setting]:
    settings = [*_common(member), *_adapters(member, decision), *_strict(member, decision)]
    if _wants_gid(member):
        index = decision.adapters[member.name][0].gids[0][0]
        why = "NCCL before 2.21 does not find the RoCE v2 GID itself"
        return [*settings, Setting("NCCL_IB_GID_INDEX", str(index), why)]
    if decision.address_family:
        settings.append(Setting("NCCL_IB_ADDR_FAMILY", decision.address_family, "the RoCE ports have no IPv4 address"))
    if decision.address_range:
        settings.append(
            Setting("NCCL_IB_ADDR_RANGE", decision.address_range, "ports have addresses in several networks")
        )
    return settings


def _efa(member: Member, _decision: Decision) -> list[Setting]:
    return _common(member)


_ROWS: Mapping[str, Callable[[Member, Decision], list[Setting]]] = {
    "none": _none,
    "single": _single,
    "socket": _socket,
    "infiniband": _infiniband,
    "roce": _roce,
    "efa": _efa,
}


def render(member: Member, decision: Decision) -> tuple[list[Setting], list[Setting]]:
    """The environment of a node's processes, and NCCL's file."""
    if decision.transport != "none" and not member.gpus:
        # It takes no part in NCCL's collectives, and may be where a driver creates their id.
        return environment(member), _common(member)
    return environment(member), _ROWS[decision.transport](member, decision)


def expectation(member: Member, decision: Decision, nccl: Mapping[str, str]) -> dict[str, Any]:
    """What the proof has to see on a node with these final settings."""
    network = {"socket": "Socket", "infiniband": "IB", "roce": "IB", "efa": "Libfabric"}.get(decision.transport)
    if decision.external_plugin:
        network = None  # A plugin names its network as it likes.
    named = nccl.get("NCCL_NET", network or "")
    without_p2p = nccl.get("NCCL_P2P_DISABLE") == "1"
    if without_p2p and nccl.get("NCCL_SHM_DISABLE") == "1":
        intra = "NET"  # Somebody wants it so, and has been told what it costs.
    else:
        intra = "P2P" if member.fabric["nvlink"] == "all" and not without_p2p else "any"
    interface = nccl.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    return {
        "transport": {"socket": "Socket", "ib": "IB"}.get(named.lower(), named),
        "interface": interface if interface in {link["name"] for link in member.fabric["interfaces"]} else "",
        "hcas": [port.name for port in decision.adapters.get(member.name, ())],
        "intra": intra,
    }
