# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker engine's daemon.json: the merge, its checks, and what a running engine needs to take it on.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

DAEMON_JSON = "/etc/docker/daemon.json"
ENGINE_SOCKET = "/run/docker.sock"
POOLS = "default-address-pools"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What dockerd takes on with SIGHUP. Every other key, and every key that goes away, needs a restart.
RELOADABLE = _words(
    "authorization-plugins debug default-runtime features insecure-registries labels live-restore "
    "max-concurrent-downloads max-concurrent-uploads max-download-attempts registry-mirrors runtimes shutdown-timeout"
)

_KEYS_OF_KIND = {
    "true or false": _words(
        "debug experimental icc ip-forward ip-masq ip6tables iptables ipv6 live-restore no-new-privileges raw-logs "
        "selinux-enabled tls tlsverify userland-proxy"
    ),
    "a whole number": _words(
        "max-concurrent-downloads max-concurrent-uploads max-download-attempts mtu network-control-plane-mtu "
        "oom-score-adjust shutdown-timeout"
    ),
    "a text": _words(
        "bip bridge cgroup-parent containerd data-root default-cgroupns-mode default-gateway default-gateway-v6 "
        "default-ipc-mode default-runtime exec-root fixed-cidr fixed-cidr-v6 group init-path ip log-driver log-level "
        "metrics-addr pidfile seccomp-profile storage-driver userns-remap"
    ),
    "a list of texts": _words(
        "authorization-plugins dns dns-opts dns-search exec-opts hosts insecure-registries labels "
        "node-generic-resources registry-mirrors storage-opts"
    ),
    "a dictionary": _words("builder default-ulimits features log-opts runtimes"),
    "a list of pools": _words(POOLS),
}
_KINDS = {key: kind for kind, keys in _KEYS_OF_KIND.items() for key in keys}

# Keys beside those above that a dockerd from before --validate (23.0) knows.
_OLD_KEYS = _words(
    "allow-nondistributable-artifacts api-cors-header cluster-advertise cluster-store cluster-store-opts "
    "containerd-namespace containerd-plugin-namespace cpu-rt-period cpu-rt-runtime default-shm-size "
    "deprecated-key-path host-gateway-ip init rootless swarm-default-advertise-addr tlscacert tlscert tlskey "
    "userland-proxy-path"
)

# A flag of dockerd and the key of daemon.json that says the same, where the names differ.
_FLAG_KEYS = {
    "H": "hosts",
    "host": "hosts",
    "D": "debug",
    "G": "group",
    "b": "bridge",
    "g": "data-root",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
    "add-runtime": "runtimes",
    "authorization-plugin": "authorization-plugins",
    "default-address-pool": POOLS,
    "default-ulimit": "default-ulimits",
    "dns-opt": "dns-opts",
    "exec-opt": "exec-opts",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "node-generic-resource": "node-generic-resources",
    "registry-mirror": "registry-mirrors",
    "storage-opt": "storage-opts",
}

# Bridges that the engine itself makes, and their ends of a container's cable.
_OWN_DEVICE = re.compile(r"(docker0|docker_gwbridge|br-[0-9a-f]{12}|veth[0-9a-f]+)\Z")

# Nothing answers behind these, so a pool may lie in them; the more specific route of a pool's bridge wins.
_NO_DESTINATION = _words("blackhole broadcast multicast prohibit throw unreachable")


class DockerError(Exception):
    """daemon.json cannot be brought to the wanted state; the text says why and how to mend it."""


# --- daemon.json ---------------------------------------------------------------------------------


def parse_daemon_json(text: str, path: str = DAEMON_JSON) -> dict[str, Any]:
    """The options in a daemon.json; an empty file holds none, as for dockerd."""
    text = text.lstrip("\ufeff")
    if not text.strip():
        return {}
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise DockerError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "It was left as it is; correct or remove it, then run again"
        ) from None
    if not isinstance(options, dict):
        raise DockerError(
            f"{path} holds {_shown(options)}, not a JSON object. "
            "It was left as it is; correct or remove it, then run again"
        )
    return options


def merge_options(have: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Merge Patch (RFC 7396): objects are merged, everything else is replaced, null takes a key away."""
    merged = dict(have)
    for key, value in want.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge_options(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def render(options: Mapping[str, Any]) -> str:
    """Text of a daemon.json. Keys stay in their order, so that a diff shows only what was merged."""
    return json.dumps(options, indent=2, ensure_ascii=False) + "\n"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_kind(value: Any, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "a whole number":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "a text":
        return isinstance(value, str)
    if kind == "a list of texts":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "a dictionary":
        return isinstance(value, dict)
    return isinstance(value, list)


def _pool_problems(pools: Sequence[Any]) -> list[str]:
    problems = []
    for pool in pools:
        example = 'a pool is like {"base": "172.17.0.0/16", "size": 24}'
        if not isinstance(pool, dict) or set(pool) != {"base", "size"} or not isinstance(pool["base"], str):
            problems.append(f"{POOLS} holds {_shown(pool)}; {example}")
            continue
        base, size = pool["base"], pool["size"]
        try:
            network = ipaddress.ip_network(base, strict=False)
        except ValueError:
            problems.append(f"{POOLS}: base {base} is not a network; {example}")
            continue
        if "/" not in base or ipaddress.ip_interface(base).ip != network.network_address:
            problems.append(f"{POOLS}: base {base} is an address in a network; the network is {network}")
        if not _is_kind(size, "a whole number"):
            problems.append(f"{POOLS}: size of {base} is {_shown(size)}; allowed is a whole number without quotes")
        elif not network.prefixlen <= size <= network.max_prefixlen:
            problems.append(
                f"{POOLS}: size {size} does not fit base {base}; "
                f"allowed is {network.prefixlen} to {network.max_prefixlen}"
            )
    return problems


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """What dockerd of any version would refuse in ``options``, as far as it can be told without dockerd."""
    problems = []
    for key, value in options.items():
        kind = _KINDS.get(key)
        if kind and not _is_kind(value, kind):
            problems.append(f"{key} is {_shown(value)}; allowed is {kind}")
    if isinstance(options.get(POOLS), list):
        problems += _pool_problems(options[POOLS])
    log_opts = options.get("log-opts")
    if isinstance(log_opts, dict):
        problems += [
            f'log-opts.{key} is {_shown(value)}; allowed is a text, write "{value}" in quotes'
            for key, value in log_opts.items()
            if not isinstance(value, str)
        ]
    return problems


def unknown_keys(options: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """Keys new in ``options`` that no dockerd before 23.0 knows: such a dockerd would not start with them."""
    return sorted(key for key in options if key not in have and key not in _KINDS and key not in _OLD_KEYS)


def dockerd_arguments(systemctl_show: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """The arguments that the unit gives dockerd, from ``systemctl show --property=ExecStart docker.service``."""
    found = re.search(r"argv\[\]=(.*?) ; ", systemctl_show)
    if found is None:
        return []
    words: list[str] = []
    for word in _split(found.group(1))[1:]:
        variable = re.fullmatch(r"\$\{?(\w+)\}?", word)
        words += _split((environment or {}).get(variable.group(1), "")) if variable else [word]
    return words


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def environment_file(text: str) -> dict[str, str]:
    """The assignments in a systemd EnvironmentFile."""
    pairs = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            pairs[name] = value.strip("\"'")
    return pairs


def flag_clashes(arguments: Iterable[str], options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(flag, key)`` for what stands both on dockerd's command line and in ``options``: dockerd refuses to start."""
    clashes = []
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("-") or flag == "--":
            continue
        name = flag.lstrip("-") if flag.startswith("--") else flag[1:2]
        key = _FLAG_KEYS.get(name, name)
        if key in options and (flag, key) not in clashes:
            clashes.append((flag, key))
    return clashes


# --- address pools against routes ----------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """A network that something else uses; ``where`` says what, for a message."""

    network: Network
    where: str


def _counts(network: Network) -> bool:
    """Not for defaults (also the two halves that VPNs use) and what never leaves a link or the node."""
    return network.prefixlen > 1 and not (network.is_loopback or network.is_link_local or network.is_multicast)


def taken_by_routes(routes: Iterable[Mapping[str, Any]], own: Iterable[str] = ()) -> list[Taken]:
    """The networks that a node reaches, from ``ip -j route show table all``.

    Left out: default routes, loopback, link-local, broadcast and multicast, routes that lead nowhere, and the engine's
    own: on its bridges, or to one of ``own``, the subnets of its networks.
    """
    own_networks = {ipaddress.ip_network(subnet, strict=False) for subnet in own}
    taken: dict[Network, Taken] = {}
    for route in routes:
        destination, device = str(route.get("dst", "")), str(route.get("dev", ""))
        if destination in ("", "default") or route.get("type") in _NO_DESTINATION or _OWN_DEVICE.match(device):
            continue
        try:
            network = ipaddress.ip_network(destination, strict=False)
        except ValueError:
            continue
        if not _counts(network) or any(
            network.version == one.version and network.subnet_of(one) for one in own_networks
        ):
            continue
        # Multipath routes have their devices in their next hops.
        hops = [str(hop["dev"]) for hop in route.get("nexthops", []) if isinstance(hop, Mapping) and hop.get("dev")]
        names = " and ".join(hops) or device or "none"
        table = f", table {route['table']}" if route.get("table") not in (None, "local", "main") else ""
        taken.setdefault(network, Taken(network, f"the route {network} of this node (device {names}{table})"))
    # The widest says most: the address of an interface lies in the interface's network.
    return sorted(taken.values(), key=lambda one: (one.network.version, one.network.prefixlen, int(one.network[0])))


def taken_by_reservation(networks: Iterable[str]) -> list[Taken]:
    """The networks that the caller keeps free of pools; ValueError names what is not a network."""
    found = [ipaddress.ip_network(network, strict=False) for network in networks]
    return [Taken(network, f"{network}, which the cluster uses") for network in found if _counts(network)]


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)  # type: ignore[arg-type]


def free_pool(taken: Iterable[Network]) -> str | None:
    """A /16 that none of ``taken`` touches."""
    busy = list(taken)
    candidates = [f"172.{second}.0.0/16" for second in range(17, 32)] + [
        f"10.{second}.0.0/16" for second in range(200, 255)
    ]
    return next(
        (text for text in candidates if not any(_overlap(ipaddress.ip_network(text), one) for one in busy)), None
    )


def check_pools(options: Mapping[str, Any], taken: Sequence[Taken]) -> None:
    """Refuse a pool that covers, or lies in, a taken network: containers would answer for hosts there."""
    problems = option_problems({POOLS: options.get(POOLS) or []})
    if problems:
        raise DockerError("; ".join(problems))
    pools = [ipaddress.ip_network(pool["base"]) for pool in options.get(POOLS) or []]
    for pool in pools:
        hits = list({one.network: one for one in reversed(taken) if _overlap(pool, one.network)}.values())[::-1]
        widest = [one for one in hits if not any(_within(one.network, other.network) for other in hits)]
        problems += [f"{pool} overlaps {one.where}" for one in widest[:3]]
    if not problems:
        return
    suggestion = free_pool([one.network for one in taken] + pools)
    raise DockerError(
        f"{POOLS} was not applied, because containers on it would cut this node off from hosts that it must reach: "
        + "; ".join(problems)
        + ". Choose a base that no node routes"
        + (f", for example {suggestion}, which is free here" if suggestion else "")
    )


def _within(one: Network, other: Network) -> bool:
    return one != other and one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]


# --- the running engine --------------------------------------------------------------------------


def engine_runs(pidfile: str = "/run/docker.pid") -> bool:
    """Whether dockerd runs. Its socket is not asked: systemd would start the engine to answer."""
    try:
        pid = int(Path(pidfile).read_text(encoding="ascii"))
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == "dockerd"
    except (OSError, ValueError):
        return False


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_get(resource: str, path: str = ENGINE_SOCKET, timeout: float = 15) -> Any:
    """The engine's answer to a GET, or ``None`` where it gives none."""
    connection = _SocketConnection(path, timeout)
    try:
        connection.request("GET", resource)
        response = connection.getresponse()
        return json.load(response) if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def own_subnets(networks: Any) -> list[str]:
    """The subnets in the engine's answer to ``/networks``."""
    return [
        config["Subnet"]
        for network in networks or []
        for config in (network.get("IPAM") or {}).get("Config") or []
        if config.get("Subnet")
    ]


@dataclass(frozen=True)
class Step:
    """How a running engine takes the options on. A reload comes first where both are needed."""

    reload: bool
    restart: bool


def next_step(have: Mapping[str, Any], want: Mapping[str, Any], info: Mapping[str, Any]) -> Step:
    """What brings a running engine from the file ``have``, or from what it says of itself, to ``want``.

    ``info`` is its answer to ``/info``: it tells of a change that an earlier run wrote and did not live to apply.
    """
    changed = {key for key in {*have, *want} if have.get(key) != want.get(key)}
    restart = any(key not in RELOADABLE or key not in want for key in changed)
    if POOLS in want and info:
        restart = restart or pool_pairs(info.get("DefaultAddressPools")) != pool_pairs(want[POOLS])
    if "log-driver" in want and "LoggingDriver" in info:
        restart = restart or info["LoggingDriver"] != want["log-driver"]
    keeps = bool(want.get("live-restore", False))
    stale = "LiveRestoreEnabled" in info and bool(info["LiveRestoreEnabled"]) != keeps and "live-restore" in want
    if restart:
        # Containers survive the restart only if live-restore is in force before it.
        return Step(reload=keeps and (stale or "live-restore" in changed), restart=True)
    return Step(reload=bool(changed) or stale, restart=False)


def pool_pairs(pools: Any) -> list[tuple[str, int]]:
    """Pools in comparable form, of daemon.json (base, size) or of ``/info`` (Base, Size)."""
    pairs = []
    for pool in pools or []:
        lower = {key.lower(): value for key, value in pool.items()}
        pairs.append((str(ipaddress.ip_network(lower["base"], strict=False)), int(lower["size"])))
    return pairs
