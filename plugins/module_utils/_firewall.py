# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches a node of the cluster: close its ports to strangers, keep it open to members.

Closing is one nftables table of our own: a drop in any base chain is final, whatever other firewall there is. Opening
is done inside whatever else filters the node's input (ufw, firewalld, iptables, other nftables tables), by objects that
carry our name or mark, so that taking ours away leaves everybody else's.

This file is also the program that metalray-firewall.service runs at boot: it imports nothing but the standard library.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Union

MARK = "metalray"
RULES = "/etc/metalray/firewall.nft"
CONFIG = "/etc/metalray/firewall.json"
PROGRAM = "/usr/local/lib/metalray/firewall.py"
UNIT_NAME = "metalray-firewall.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"

Range = tuple[int, int]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class Run(Protocol):
    """Runs a command; exit status, standard output, standard error."""

    def __call__(self, argv: list[str], stdin: str | None = None) -> tuple[int, str, str]: ...


class FirewallError(Exception):
    """What is wrong, the value seen and the mend."""


@dataclass(frozen=True)
class Step:
    """One change to what is in force: ``commands`` in order, each given ``stdin``; the rest is for the diff."""

    what: str
    commands: list[list[str]]
    stdin: str | None = None
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    def as_diff(self) -> dict[str, str]:
        return {
            "before_header": self.what,
            "after_header": self.what,
            "before": "".join(f"{line}\n" for line in self.before),
            "after": "".join(f"{line}\n" for line in self.after),
        }


def which(program: str) -> str | None:
    """Where a system program is, also where PATH lacks the sbin directories."""
    return shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


def apply_step(run: Run, step: Step) -> None:
    for argv in step.commands:
        status, out, err = run(argv, step.stdin)
        if status != 0:
            raise FirewallError(f"{step.what}: '{' '.join(argv)}' failed: {(err or out).strip() or status}")


# Ports


def parse_port(value: object) -> Range:
    """``6379`` or ``'10002-19999'``."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", str(value))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise FirewallError(f"'{value}' is no port: give a number from 1 to 65535, or a range such as 10002-19999")
    return first, last


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same numbers in the fewest ranges, ascending."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def subtract(ranges: Iterable[Range], ports: Iterable[int]) -> list[Range]:
    """``ranges`` without single ``ports``."""
    left = merge(ranges)
    for port in ports:
        left = [
            piece
            for first, last in left
            for piece in ([(first, port - 1), (port + 1, last)] if first <= port <= last else [(first, last)])
            if piece[0] <= piece[1]
        ]
    return left


def port_text(ranges: Iterable[Range]) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def closed_ports(wanted: Iterable[object], ephemeral: Range | None, ssh: Iterable[int]) -> list[Range]:
    """The TCP ports to close, never one of SSH's: a range is split around it, one named by itself is refused."""
    ssh = sorted(set(ssh))
    ranges = [parse_port(value) for value in wanted]
    for first, last in ranges:
        if first == last and first in ssh:
            raise FirewallError(
                f"port {first} is asked to be closed, but it is one of SSH's on this node ({', '.join(map(str, ssh))}) "
                f"and SSH is never closed. Take {first} out of the closed ports"
            )
    return subtract(ranges + ([ephemeral] if ephemeral else []), ssh)


# Addresses


def parse_networks(values: Iterable[object], option: str) -> list[Network]:
    """Addresses and networks, ascending, without those that another one of them contains."""
    networks: set[Network] = set()
    for value in values:
        try:
            network = ipaddress.ip_network(str(value).strip(), strict=False)
        except ValueError:
            raise FirewallError(f"{option}: '{value}' is no IP address or network such as 10.77.0.0/24") from None
        if network.prefixlen == 0:
            raise FirewallError(f"{option}: '{value}' is the whole Internet; name the networks that are meant")
        networks.add(network)
    return [
        network
        for network in sorted(networks, key=lambda net: (net.version, net))
        if not any(
            network != other and network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
            for other in networks
        )
    ]


def of_version(networks: Iterable[Network], version: int) -> list[Network]:
    return [network for network in networks if network.version == version]


def address_text(network: Network) -> str:
    """As nft, ufw and firewalld write it: a single address without its prefix."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


# SSH


def ssh_listeners(ss_output: str) -> set[int]:
    """Ports on which an SSH daemon listens, from ``ss -Hltnp``."""
    ports = set()
    for line in ss_output.splitlines():
        columns = line.split()
        if len(columns) > 3 and re.search(r'"(sshd|sshd-session|dropbear|tinysshd)"', line):
            port = columns[3].rpartition(":")[2]
            ports.update({int(port)} if port.isdigit() else set())
    return ports


def ssh_sockets(show_output: str) -> set[int]:
    """Ports that systemd holds for SSH, from ``systemctl show -p Listen ssh.socket``."""
    return {int(port) for port in re.findall(r"^Listen=\S*?:?(\d+) \(Stream\)$", show_output, re.MULTILINE)}


def ssh_connection_port(pid: int, proc: str = "/proc") -> int | None:
    """The node's port of the SSH connection from which process ``pid`` descends.

    sudo hides the variable from its child; the environment of sudo itself still has it.
    """
    for _generation in range(32):
        try:
            environ = Path(proc, str(pid), "environ").read_bytes()
            found = re.search(rb"(?:^|\0)SSH_CONNECTION=\S+ \d+ \S+ (\d+)(?:\0|$)", environ)
            if found:
                return int(found[1])
            pid = int(Path(proc, str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
        if pid <= 1:
            return None
    return None


def find_ssh_ports(run: Run) -> set[int]:
    """Every port by which SSH may reach this node; 22 always."""
    ports = {22}
    if which("ss"):
        ports |= ssh_listeners(run(["ss", "-Hltnp"])[1])
    if os.path.isdir("/run/systemd/system"):
        ports |= ssh_sockets(run(["systemctl", "show", "-p", "Listen", "ssh.socket", "sshd.socket"])[1])
    present = ssh_connection_port(os.getpid())
    return ports | ({present} if present else set())


def ephemeral_ports(path: str = "/proc/sys/net/ipv4/ip_local_port_range") -> Range:
    """Where the kernel takes the port of a socket that asks for none."""
    first, last = Path(path).read_text(encoding="ascii").split()
    return int(first), int(last)


# The nftables ruleset


@dataclass
class Chain:
    """``base``: hook, type, priority and policy; empty for a chain that is only jumped to."""

    base: dict[str, Any]
    rules: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Table:
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    owned: bool = False  # another process alone may change it


Ruleset = dict[tuple[str, str], Table]


def parse_ruleset(text: str) -> Ruleset:
    """``nft -j list ruleset`` by (family, table)."""
    tables: Ruleset = {}
    for item in json.loads(text or "{}").get("nftables", []):
        kind, value = next(iter(item.items()))
        if kind == "table":
            tables[value["family"], value["name"]] = Table(owned="owner" in value.get("flags", []))
            continue
        table = tables.get((value.get("family"), value.get("table")))
        if table is None:
            continue
        if kind == "chain":
            table.chains.setdefault(value["name"], Chain({})).base = value if "hook" in value else {}
        elif kind == "rule":
            table.chains.setdefault(value["chain"], Chain({})).rules.append(value)
        elif kind in ("set", "map"):
            table.sets[value["name"]] = value.get("elem", [])
    return tables


def element_ranges(elements: Any) -> list[Range]:
    """Set elements of any of nft's spellings, as merged ranges of numbers."""
    ranges = []
    for element in elements if isinstance(elements, list) else [elements]:
        if isinstance(element, dict) and "elem" in element:
            element = element["elem"]["val"]
        if isinstance(element, dict) and "prefix" in element:
            network = ipaddress.ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}", strict=False)
            ranges.append((int(network[0]), int(network[-1])))
        elif isinstance(element, dict) and "range" in element:
            first, last = element["range"]
            ranges.append((_number(first), _number(last)))
        else:
            ranges.append((_number(element), _number(element)))
    return merge(ranges)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else int(value) if str(value).isdigit() else int(ipaddress.ip_address(value))


def network_ranges(networks: Iterable[Network]) -> list[Range]:
    return merge((int(network[0]), int(network[-1])) for network in networks)


# Our own table

# Only the first packet of a connection is judged, by its flags: that needs no connection tracking, costs an established
# connection next to nothing, and cuts nothing that is open when the table is loaded.
# (chain, match, verdict, comment)
OWN_RULES = (
    ("input", "tcp flags & (syn | ack) == syn tcp dport @closed_tcp", "goto outside", "connection to a closed port"),
    ("input", "udp dport @closed_udp", "goto outside", "packet to a closed port"),
    ("outside", 'iif "lo"', "return", "from this node itself"),
    ("outside", "ip saddr @allowed4", "return", "from a member or an allowed network"),
    ("outside", "ip6 saddr @allowed6", "return", "from a member or an allowed network"),
    ("outside", "counter", "drop", "from anybody else"),
)
OWN_SETS = {
    "allowed4": "ipv4_addr",
    "allowed6": "ipv6_addr",
    "closed_tcp": "inet_service",
    "closed_udp": "inet_service",
}
OWN_PRIORITY = -5


@dataclass(frozen=True)
class Closing:
    """What our table says: who may open connections to which ports; everybody else may not."""

    allowed: list[Network]
    tcp: list[Range]
    udp: list[Range]

    def elements(self) -> dict[str, list[str]]:
        return {
            "allowed4": [address_text(network) for network in of_version(self.allowed, 4)],
            "allowed6": [address_text(network) for network in of_version(self.allowed, 6)],
            "closed_tcp": port_text(self.tcp),
            "closed_udp": port_text(self.udp),
        }


def render_table(closing: Closing) -> str:
    """An nft file that puts our table in force, in one transaction, whether or not one is there."""
    lines = [
        "#!/usr/sbin/nft -f",
        "# Written by the role metalray.cluster.firewall; changes here are overwritten.",
        f"table inet {MARK} {{}}",
        f"delete table inet {MARK}",
        f"table inet {MARK} {{",
    ]
    for name, elements in closing.elements().items():
        lines += [f"    set {name} {{", f"        type {OWN_SETS[name]}", "        flags interval"]
        if elements:
            lines.append(f"        elements = {{ {', '.join(elements)} }}")
        lines += ["    }", ""]
    for chain in ("outside", "input"):  # a chain must be there before a rule goes to it
        lines.append(f"    chain {chain} {{")
        if chain == "input":
            lines.append(f"        type filter hook input priority filter - {-OWN_PRIORITY}; policy accept;")
        lines += [
            f'        {match} {verdict} comment "{comment}"'
            for name, match, verdict, comment in OWN_RULES
            if name == chain
        ]
        lines += ["    }", ""]
    lines[-1] = "}"
    return "\n".join(lines) + "\n"


def wanted_summary(closing: Closing) -> dict[str, Any]:
    """What `table_summary` must find for our table to be in force as wanted. It does not depend on nft's spelling."""
    return {
        "allowed4": network_ranges(of_version(closing.allowed, 4)),
        "allowed6": network_ranges(of_version(closing.allowed, 6)),
        "closed_tcp": closing.tcp,
        "closed_udp": closing.udp,
        "hook": ("input", OWN_PRIORITY, "accept"),
        "rules": sorted(
            (chain, number, comment, verdict) for number, (chain, _match, verdict, comment) in _numbered_rules()
        ),
    }


def _numbered_rules() -> Iterator[tuple[int, tuple[str, str, str, str]]]:
    """Our rules with their place in their chain."""
    for chain in ("input", "outside"):
        yield from enumerate(rule for rule in OWN_RULES if rule[0] == chain)


def table_summary(table: Table) -> dict[str, Any]:
    base = table.chains["input"].base if "input" in table.chains else {}
    summary: dict[str, Any] = {name: element_ranges(table.sets.get(name, [])) for name in OWN_SETS}
    summary["hook"] = (base.get("hook"), base.get("prio"), base.get("policy"))
    summary["rules"] = sorted(
        (name, number, rule.get("comment", ""), _verdict(rule))
        for name, chain in table.chains.items()
        for number, rule in enumerate(chain.rules)
    )
    return summary


def _verdict(rule: dict[str, Any]) -> str:
    for expression in rule.get("expr", []):
        for key, value in expression.items():
            if key in ("accept", "drop", "return"):
                return key
            if key in ("goto", "jump"):
                return f"{key} {value['target']}"
    return ""


def summary_lines(summary: dict[str, Any] | None) -> list[str]:
    """A summary for the diff."""
    if summary is None:
        return []
    lines = []
    for name in ("allowed4", "allowed6"):
        address = ipaddress.IPv4Address if name == "allowed4" else ipaddress.IPv6Address
        lines += [
            f"{name} {address(first)}" if first == last else f"{name} {address(first)}-{address(last)}"
            for first, last in summary[name]
        ]
    for name in ("closed_tcp", "closed_udp"):
        lines += [f"{name} {text}" for text in port_text(summary[name])]
    lines.append(f"hook {summary['hook']}")
    return lines + [f"{chain}: {comment}: {verdict}" for chain, _number, comment, verdict in summary["rules"]]


def plan_table(ruleset: Ruleset, closing: Closing | None) -> list[Step]:
    """Put our table in force, or with ``None`` take it away."""
    table = ruleset.get(("inet", MARK))
    have = table_summary(table) if table else None
    want = wanted_summary(closing) if closing else None
    if have == want:
        return []
    text = render_table(closing) if closing else f"delete table inet {MARK}\n"
    return [
        Step(f"nftables: table inet {MARK}", [["nft", "-f", "-"]], text, summary_lines(have), summary_lines(want)),
    ]


# Other nftables tables


def _drops(table: Table, part: Any, seen: set[str]) -> bool:
    """Whether something in a rule, or in a chain or map that it leads to, drops or rejects."""
    if isinstance(part, dict):
        if "drop" in part or "reject" in part:
            return True
        return any(
            _chain_drops(table, value["target"], seen)
            if key in ("jump", "goto") and isinstance(value, dict) and "target" in value
            else _drops(table, value, seen)
            for key, value in part.items()
            if key != "comment"
        )
    if isinstance(part, list):
        return any(_drops(table, item, seen) for item in part)
    if isinstance(part, str) and part.startswith("@") and part not in seen:
        seen.add(part)
        return _drops(table, table.sets.get(part[1:], []), seen)
    return False


def _chain_drops(table: Table, name: str, seen: set[str]) -> bool:
    if name in seen or name not in table.chains:
        return False
    seen.add(name)
    chain = table.chains[name]
    return chain.base.get("policy") == "drop" or any(_drops(table, rule.get("expr", []), seen) for rule in chain.rules)


def _is_ours(rule: dict[str, Any]) -> bool:
    return rule.get("comment") == MARK


def _accepted(rule: dict[str, Any]) -> tuple[str, list[Range]]:
    """Protocol and source addresses that one of our accept rules lets in; empty where it is not as we write them."""
    match, *rest = rule.get("expr", []) or [{}]
    match = match.get("match", {})
    left = match.get("left", {})
    right = match.get("right")
    payload = left.get("payload", {}) if isinstance(left, dict) else {}
    if payload.get("field") != "saddr" or rest != [{"accept": None}] or match.get("op") not in ("==", "in"):
        return "", []
    elements = right["set"] if isinstance(right, dict) and "set" in right else right
    return payload.get("protocol", ""), element_ranges(elements)


def plan_tables(ruleset: Ruleset, members: list[Network], managed: set[tuple[str, str]]) -> list[Step]:
    """Let the members in where another nftables table filters input; take our rules away where none is needed.

    ``managed`` are tables that another program keeps and that are opened through it.
    """
    steps = []
    for (family, name), table in ruleset.items():
        if name == MARK or family not in ("inet", "ip", "ip6") or table.owned or (family, name) in managed:
            continue
        versions = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}[family]
        for chain_name, chain in table.chains.items():
            filters = chain.base.get("hook") == "input" and _chain_drops(table, chain_name, set())
            wanted = [
                ({4: "ip", 6: "ip6"}[version], networks)
                for version in versions
                if filters
                for networks in [of_version(members, version)]
                if networks
            ]
            ours = [rule for rule in chain.rules if _is_ours(rule)]
            first_drop = next(
                (number for number, rule in enumerate(chain.rules) if _drops(table, rule.get("expr", []), set())),
                len(chain.rules),
            )
            in_force = [_accepted(rule) for rule in chain.rules[:first_drop] if _is_ours(rule)]
            if len(in_force) == len(ours) and sorted(in_force) == sorted(
                (protocol, network_ranges(networks)) for protocol, networks in wanted
            ):
                continue
            where = f"{family} {name} {chain_name}"
            new = [
                f'{protocol} saddr {{ {", ".join(map(address_text, networks))} }} accept comment "{MARK}"'
                for protocol, networks in wanted
            ]
            text = [f"delete rule {where} handle {rule['handle']}" for rule in ours]
            text += [f"insert rule {where} {rule}" for rule in new]
            before = [f"{protocol} saddr {_ranges_text(protocol, ranges)}" for protocol, ranges in map(_accepted, ours)]
            after = [f"{protocol} saddr {_ranges_text(protocol, network_ranges(nets))}" for protocol, nets in wanted]
            steps.append(Step(f"nftables: chain {where}", [["nft", "-f", "-"]], "\n".join(text) + "\n", before, after))
    return steps


def _ranges_text(protocol: str, ranges: list[Range]) -> str:
    address = ipaddress.IPv4Address if protocol == "ip" else ipaddress.IPv6Address
    return ", ".join(str(address(a)) if a == b else f"{address(a)}-{address(b)}" for a, b in ranges) + " accept"


# iptables, of either kind

TOOLS = {
    "iptables-nft": ("ip", "nft"),
    "iptables-legacy": ("ip", "legacy"),
    "ip6tables-nft": ("ip6", "nft"),
    "ip6tables-legacy": ("ip6", "legacy"),
}
INPUT, FORWARD, MEMBERS = "METALRAY-INPUT", "METALRAY-FORWARD", "METALRAY-MEMBERS"
# Who keeps the filter table where INPUT jumps to these: those are opened through their own commands.
MANAGERS = re.compile(r"ufw6?-before-input|INPUT_direct|INPUT_ZONES")


@dataclass
class IptablesChain:
    policy: str
    rules: list[str] = field(default_factory=list)


Filter = dict[str, IptablesChain]


def parse_save(text: str) -> Filter | None:
    """The filter table of ``iptables-save``; None where it has none, or one that only nft can show."""
    chains: Filter = {}
    inside = found = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line == "*filter"
            found |= inside
        elif inside and line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = IptablesChain(policy)
        elif inside and line.startswith("-A "):
            _add, name, rule = line.split(" ", 2)
            chains[name].rules.append(rule)
    return chains if found else None


def rule_target(rule: str) -> str:
    """Where a rule of ``iptables-save`` leads, not deceived by comments."""
    words = shlex.split(rule)
    return next((words[n + 1] for n, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")


def _rule_blocks(chains: Filter, rule: str) -> bool:
    target = rule_target(rule)
    return target in ("DROP", "REJECT") or (target in chains and iptables_filters(chains, target))


def iptables_filters(chains: Filter, name: str) -> bool:
    """Whether a chain, or one that it leads to, drops or rejects."""
    chain = chains.get(name)
    return chain is not None and (chain.policy == "DROP" or any(_rule_blocks(chains, rule) for rule in chain.rules))


def docker_filters(chains: Filter) -> bool:
    """Whether Docker keeps chains here, and what is forwarded must be let through by name.

    Whether it drops now does not tell: it makes DROP the policy when it starts on a node that does not forward yet, which
    is at the next boot.
    """
    return "DOCKER-USER" in chains and "FORWARD" in chains


def plan_iptables(tool: str, chains: Filter, members: list[Network], forward: bool) -> list[Step]:
    """Our chains in one filter table, jumped to before anything there can drop; none where nothing filters."""
    parents = {INPUT: "INPUT", FORWARD: "DOCKER-USER"}
    wanted: dict[str, list[str]] = {}
    foreign_input = chains.get("INPUT", IptablesChain("-"))
    managed = any(MANAGERS.fullmatch(rule_target(rule)) for rule in foreign_input.rules)
    if members and not managed and iptables_filters(chains, "INPUT"):
        wanted[INPUT] = [f"-s {network} -j ACCEPT" for network in members]
    if members and forward:
        replies = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        wanted[FORWARD] = [f"-s {network} -g {MEMBERS}" for network in members]
        wanted[FORWARD] += [f"-d {network} {replies}" for network in members]
        wanted[MEMBERS] = [f"-d {network} -j ACCEPT" for network in members] + [replies]

    def jumps(name: str) -> list[int]:
        parent = chains.get(parents.get(name, ""))
        return [n for n, rule in enumerate(parent.rules) if rule_target(rule) == name] if parent else []

    def in_force(name: str) -> bool:
        if name not in wanted:
            return name not in chains
        if name not in chains or chains[name].rules != wanted[name]:
            return False
        if name not in parents:
            return True
        places = jumps(name)
        above = chains[parents[name]].rules[: places[0]] if places else []
        return len(places) == 1 and not any(_rule_blocks(chains, rule) or rule == "-j RETURN" for rule in above)

    changed = [name for name in (INPUT, FORWARD, MEMBERS) if not in_force(name)]
    if not changed:
        return []
    lines = ["*filter"]
    if FORWARD in wanted and "DOCKER-USER" not in chains:
        lines.append(":DOCKER-USER - [0:0]")  # Docker keeps what it finds there
    lines += [f":{name} - [0:0]" for name in changed]  # makes it, or empties it
    for name in changed:
        if name in parents:
            lines += [f"-D {parents[name]} -j {name}" for _place in jumps(name)]
        if name in parents and name in wanted:
            lines.append(f"-I {parents[name]} 1 -j {name}")
        lines += [f"-A {name} {rule}" for rule in wanted.get(name, [])]
    lines += [f"-X {name}" for name in changed if name not in wanted]
    lines.append("COMMIT")
    return [
        Step(
            f"{tool}: {', '.join(changed)}",
            [[f"{tool}-restore", "--noflush", "-w", "10"]],
            "\n".join(lines) + "\n",
            [f"-A {name} {rule}" for name in changed if name in chains for rule in chains[name].rules],
            [f"-A {name} {rule}" for name in changed for rule in wanted.get(name, [])],
        )
    ]


# What the kernel filters now


@dataclass
class Kernel:
    """Rules in force: nftables' own, and iptables' filter tables by tool."""

    ruleset: Ruleset
    filters: dict[str, Filter]

    def managed(self) -> set[tuple[str, str]]:
        """nftables tables that belong to another program."""
        of_iptables = {(TOOLS[tool][0], "filter") for tool in self.filters if TOOLS[tool][1] == "nft"}
        return of_iptables | {key for key in self.ruleset if key[1] == "firewalld"}


def observe(run: Run) -> Kernel:
    """Read what is in force. Asks iptables only where it has tables: asking would make them."""
    ruleset: Ruleset = {}
    if which("nft"):
        status, out, err = run(["nft", "-j", "list", "ruleset"])
        if status != 0:
            raise FirewallError(f"'nft list ruleset' failed: {err.strip()}. The kernel of this node must have nftables")
        ruleset = parse_ruleset(out)
    filters = {}
    for tool, (family, kind) in TOOLS.items():
        in_nft = (family, "filter") in ruleset
        in_legacy = "filter" in _text(f"/proc/net/{family}_tables_names").split()
        if (in_nft if kind == "nft" else in_legacy) and which(tool):
            status, out, err = run([f"{tool}-save", "-t", "filter"])
            if status != 0:
                raise FirewallError(f"'{tool}-save' failed: {err.strip()}")
            chains = parse_save(out)
            if chains is not None:
                filters[tool] = chains
    return Kernel(ruleset, filters)


def forward_tools(kernel: Kernel, previous: Iterable[str]) -> list[str]:
    """The iptables tools by which Docker restricts forwarding; remembered while Docker has not started yet."""
    docker = which("dockerd") is not None
    return sorted(
        tool
        for tool in TOOLS
        if docker_filters(kernel.filters.get(tool, {})) or (docker and tool in previous and which(tool))
    )


def plan_kernel(kernel: Kernel, members: list[Network], forward: Iterable[str]) -> list[Step]:
    """Let the members in wherever something in the kernel filters input that no other program keeps."""
    steps = plan_tables(kernel.ruleset, members, kernel.managed())
    for tool, (family, _kind) in TOOLS.items():
        networks = of_version(members, 4 if family == "ip" else 6)
        if tool in kernel.filters or (tool in forward and networks):
            steps += plan_iptables(tool, kernel.filters.get(tool, {}), networks, tool in forward)
    return steps


# ufw


def ufw_active(run: Run, conf: str = "/etc/ufw/ufw.conf") -> bool:
    """Asked only where the configuration says that it is switched on: the question costs a quarter of a second."""
    if not which("ufw") or not re.search(r"^\s*ENABLED\s*=\s*\"?yes", _text(conf), re.MULTILINE | re.IGNORECASE):
        return False
    return run(["ufw", "status"])[1].startswith("Status: active")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_ufw(text: str) -> list[tuple[str, str]]:
    """``ufw show added`` as pairs: the rule without 'ufw' and comment, the comment."""
    rules = []
    for line in text.splitlines():
        if line.startswith("ufw "):
            words = shlex.split(line)[1:]
            place = words.index("comment") if "comment" in words else len(words)
            rules.append((" ".join(words[:place]), " ".join(words[place + 1 :])))
    return rules


def plan_ufw(rules: list[tuple[str, str]], members: list[Network]) -> list[Step]:
    """Our rules among ufw's, before its others. One that an administrator wrote in the same words serves and stays."""
    wanted = [f"allow from {address_text(network)}" for network in members]
    there = {rule for rule, _comment in rules}
    ours = [rule for rule, comment in rules if comment == MARK]
    stale = [rule for rule in ours if rule not in wanted]
    missing = [rule for rule in wanted if rule not in there]
    if not stale and not missing:
        return []
    commands = [["ufw", "--force", "delete", *rule.split()] for rule in stale]
    commands += [["ufw", "prepend", *rule.split(), "comment", MARK] for rule in reversed(missing)]
    after = [rule for rule in ours if rule not in stale] + missing
    return [Step("ufw: rules of the members", commands, None, sorted(ours), sorted(after))]


# firewalld

# Rich rules carry no comment: this priority, which comes before every other, is our mark.
RICH_PRIORITY = "-31867"
RICH_RULE = re.compile(rf'rule (?=.*priority="{RICH_PRIORITY}").*source address="([^"]+)".* accept')


@dataclass
class Zone:
    name: str
    active: bool
    target: str = "default"
    ours: list[str] = field(default_factory=list)


def parse_zones(text: str) -> dict[str, Zone]:
    """``firewall-cmd --list-all-zones``."""
    zones: dict[str, Zone] = {}
    zone = None
    for line in text.splitlines():
        if line and not line[0].isspace():
            name, _blank, state = line.partition(" ")
            zone = zones[name] = Zone(name, active="active" in state or "default" in state)
        elif zone and line.startswith("  target:"):
            zone.target = line.partition(":")[2].strip()
        elif zone and RICH_RULE.fullmatch(line.strip()):
            zone.ours.append(line.strip())
    return zones


def rich_rule(network: Network) -> str:
    source = f'family="ipv{network.version}" source address="{address_text(network)}"'
    return f'rule priority="{RICH_PRIORITY}" {source} accept'


def plan_firewalld(
    runtime: dict[str, Zone], permanent: dict[str, Zone], default: str, members: list[Network]
) -> list[Step]:
    """The members' rules in every zone in use that does not accept all, now and after a restart, without a reload."""
    used = [zone.name for zone in runtime.values() if (zone.active or zone.name == default) and zone.target != "ACCEPT"]
    steps = []
    for label, zones, flags in (("now", runtime, []), ("permanent", permanent, ["--permanent"])):
        steps += _plan_zones(label, zones, ["firewall-cmd", *flags], used, members)
    return steps


def _plan_zones(
    label: str, zones: dict[str, Zone], command: list[str], used: list[str], members: list[Network]
) -> list[Step]:
    steps = []
    for zone in zones.values():
        wanted = {address_text(network): rich_rule(network) for network in members} if zone.name in used else {}
        have = {match[1]: rule for rule in zone.ours for match in [RICH_RULE.fullmatch(rule)] if match}
        remove = [f"--remove-rich-rule={rule}" for address, rule in have.items() if address not in wanted]
        add = [f"--add-rich-rule={rule}" for address, rule in wanted.items() if address not in have]
        commands = [[*command, f"--zone={zone.name}", *change] for change in (remove, add) if change]
        if commands:
            what = f"firewalld: zone {zone.name} ({label})"
            steps.append(Step(what, commands, None, sorted(have), sorted(wanted)))
    return steps


def firewalld_steps(run: Run, members: list[Network]) -> tuple[bool, list[Step]]:
    """Whether firewalld runs here, and what is to be done in it."""
    if which("firewall-cmd") and run(["firewall-cmd", "--state"])[0] == 0:
        default = _ask(run, ["firewall-cmd", "--get-default-zone"]).strip()
        runtime = parse_zones(_ask(run, ["firewall-cmd", "--list-all-zones"]))
        permanent = parse_zones(_ask(run, ["firewall-cmd", "--permanent", "--list-all-zones"]))
        return True, plan_firewalld(runtime, permanent, default, members)
    if not members and which("firewall-offline-cmd") and os.path.isdir("/etc/firewalld/zones"):
        zones = parse_zones(_ask(run, ["firewall-offline-cmd", "--list-all-zones"]))
        return False, _plan_zones("permanent", zones, ["firewall-offline-cmd"], [], [])
    return False, []


def _ask(run: Run, argv: list[str]) -> str:
    status, out, err = run(argv)
    if status != 0:
        raise FirewallError(f"'{' '.join(argv)}' failed: {(err or out).strip()}")
    return out


def ufw_steps(run: Run, members: list[Network]) -> tuple[bool, list[Step]]:
    """Whether ufw is active here, and what is to be done in it. What we put there goes even if it is off."""
    active = ufw_active(run)
    if not active and (members or not which("ufw")):
        return active, []
    return active, plan_ufw(parse_ufw(_ask(run, ["ufw", "show", "added"])), members)


# Files

UNIT_TEXT = """\
[Unit]
Description=Firewall of the cluster: closed to strangers, open to members
Documentation=file:{program}
DefaultDependencies=no
Wants=network-pre.target
After=local-fs.target nftables.service netfilter-persistent.service ufw.service firewalld.service
Before=network-pre.target docker.service metalray-head.service metalray-worker.service
Before=shutdown.target
Conflicts=shutdown.target
# Loading the system's own rules removes ours: they come back right after.
PartOf=nftables.service netfilter-persistent.service
ReloadPropagatedFrom=nftables.service netfilter-persistent.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {rules}
ExecStart={python} -I {program}
ExecReload={nft} -f {rules}
ExecReload={python} -I {program}
# No ExecStop: a stopped service must not open the node.

[Install]
WantedBy=multi-user.target nftables.service netfilter-persistent.service
"""


def unit_text(nft: str, python: str) -> str:
    return UNIT_TEXT.format(program=PROGRAM, rules=RULES, nft=nft, python=python)


def config_text(members: list[Network], forward: list[str]) -> str:
    return json.dumps({"members": [str(network) for network in members], "forward": forward}, indent=2) + "\n"


def read_config(path: str = CONFIG) -> tuple[list[Network], list[str]]:
    """Members and forward tools of an earlier run; none where there was none."""
    try:
        config = json.loads(_text(path) or "{}")
        return parse_networks(config.get("members", []), path), list(config.get("forward", []))
    except (ValueError, AttributeError):
        return [], []


SAVED = ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6", "/etc/nftables.conf")


def saved_copies(paths: Iterable[str] = SAVED) -> list[str]:
    """Files of saved rules into which ours were saved too."""
    return [path for path in paths if re.search(rf"METALRAY-|table inet {MARK}\b", _text(path))]


# Proof

OPEN = "open"


def probe(addresses: Iterable[str], port: int, timeout: float) -> dict[str, str]:
    """Whether each address answers a connection to ``port``: `OPEN`, or what came instead.

    A refusal by the far kernel is as good an answer as a listener's: the packet arrived. An ICMP error is a firewall's.
    """
    waiting: dict[int, tuple[str, socket.socket]] = {}
    answers = {}
    poll = select.poll()
    for address in addresses:
        six = ":" in address
        connection = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        # IPV6_RECVERR, IP_RECVERR: Python has no names for them.
        connection.setsockopt(*((socket.IPPROTO_IPV6, 25) if six else (socket.IPPROTO_IP, 11)), 1)
        error = connection.connect_ex((address, port))
        if error in (0, errno.EINPROGRESS):
            answers[address] = f"no answer within {timeout:g} s"
            waiting[connection.fileno()] = address, connection
            poll.register(connection, select.POLLOUT)
        else:
            answers[address] = os.strerror(error)
            connection.close()
    deadline = time.monotonic() + timeout
    while waiting and (left := deadline - time.monotonic()) > 0:
        for number, _event in poll.poll(left * 1000):
            address, connection = waiting.pop(number)
            poll.unregister(number)
            answers[address] = _answer(connection)
            connection.close()
    for _address, connection in waiting.values():
        connection.close()
    return answers


def _answer(connection: socket.socket) -> str:
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == 0:
        return OPEN
    try:
        ancillary = connection.recvmsg(1, 512, socket.MSG_ERRQUEUE)[1]
    except OSError:
        ancillary = []
    origins = {struct.unpack_from("=IB", data)[1] for _level, _kind, data in ancillary}
    if origins & {2, 3}:  # an ICMP message, of IPv4 or IPv6
        return f"rejected on the way ({os.strerror(error)})"
    return OPEN if error == errno.ECONNREFUSED else os.strerror(error)


# The program that the service runs


def main() -> int:
    def run(argv: list[str], stdin: str | None = None) -> tuple[int, str, str]:
        argv = [which(argv[0]) or argv[0], *argv[1:]]
        # There is no AnsibleModule to run it.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            argv, input=stdin, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    os.environ["LC_ALL"] = "C"
    members, forward = read_config()
    try:
        for step in plan_kernel(observe(run), members, forward):
            apply_step(run, step)
            sys.stdout.write(f"{step.what}\n")
    except FirewallError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
