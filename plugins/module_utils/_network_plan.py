# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network environment of all nodes: decided, rendered, the user's own variables on top, and all of it checked.

Internal to metalray.cluster: not a public interface. Runs on the controller.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._env_catalogue import Catalogue, seed_values
from ._env_lint import Assignment, Context, Finding, describe, lint
from ._nccl_env import EnvError, split, with_extra
from ._network_env import Decision, Member, check_nccl, decide, expectation, render

_SAME = ("network_env_profile", "network_env_strict", "network_env_prove")


@dataclass(frozen=True)
class NetworkPlan:
    """``plan`` is what the roles read; ``problems`` stop a run; ``findings`` are those of the lint, problems included."""

    plan: dict[str, Any]
    problems: list[str]
    findings: list[Finding]

    @property
    def warnings(self) -> list[str]:
        return [
            *self.plan.get("notes", ()),
            *(describe(f, self.plan.get("nodes", ())) for f in self.findings if f.level == "warning"),
        ]


def make_members(
    nodes: Mapping[str, Mapping[str, Any]],
    picked: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Any]],
) -> list[Member]:
    """The nodes for the decision. ``picked`` has each one's ``interface``, ``address``, ``mtu`` and ``speed_mbps``."""
    members = []
    for name, chosen in picked.items():
        candidates = nodes[name]["candidates"]
        networks: dict[str, list[str]] = {}
        for candidate in candidates:
            networks.setdefault(candidate["interface"], []).append(_network(candidate))
        members.append(
            Member(
                name=name,
                interface=chosen["interface"],
                address=chosen["address"],
                mtu=chosen["mtu"],
                speed_mbps=values[name].get("network_env_link_mbps") or chosen["speed_mbps"],
                default_interfaces=tuple(dict.fromkeys(c["interface"] for c in candidates if c["default_route"])),
                networks=networks,
                first_address=all(
                    candidate["first"] for candidate in candidates if candidate["address"] == chosen["address"]
                ),
                fabric=nodes[name]["fabric"],
            )
        )
    return members


def _network(candidate: Mapping[str, Any]) -> str:
    return str(ipaddress.ip_interface(f"{candidate['address']}/{candidate['prefix']}").network)


def _differ(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    for name in _SAME:
        seen: dict[str, list[str]] = {}
        for host, host_values in values.items():
            seen.setdefault(str(host_values[name]), []).append(host)
        if len(seen) > 1:
            listed = "; ".join(f"'{value}' on {', '.join(hosts)}" for value, hosts in seen.items())
            problems.append(f"{name} differs between hosts: {listed}. Set it once for the group 'cluster'")
    return problems


def _context(member: Member, decision: Decision, count: int) -> Context:
    fabric = member.fabric
    return Context(
        host=member.name,
        transport=decision.transport,
        nodes=count,
        gpus=member.gpus,
        nvlink=fabric["nvlink"],
        rdma_visible=bool(fabric["rdma"]),
        rdma_ports=[port.name for port in member.active_ports],
        nics=len(decision.adapters.get(member.name, ())) or 1,
        plugins=bool(fabric["plugins"]),
        efa=fabric["efa"],
        interfaces=[interface["name"] for interface in fabric["interfaces"]],
        addresses=[member.address],
        interface=member.interface,
        address=member.address,
        versions=fabric["versions"],
    )


def _place(file: str) -> str:
    return "nccl_conf" if file.endswith("nccl.conf") else "environment"


@dataclass(frozen=True)
class _Part:
    """One node's share of the plan: the two files, and everything that somebody else has set."""

    process: dict[str, str]
    nccl: dict[str, str]
    why: dict[str, str]
    assignments: list[Assignment]


def _part(member: Member, decision: Decision, extra: Mapping[str, Any], seed: Mapping[str, str]) -> _Part:
    """Raises EnvError for a variable of the user's own that cannot be written."""
    settings = render(member, decision)
    if seed:
        process, nccl = split(seed)
        why = dict.fromkeys(seed, "the guide's value")
    else:
        process, nccl = ({setting.name: setting.value for setting in file} for file in settings)
        why = {setting.name: setting.why for file in settings for setting in file}
    process, nccl = with_extra(process, nccl, extra)
    assignments = [
        Assignment(name, value, "inventory", "network_env_profile 'seed'", member.name)
        for name, value in seed.items()
        if name not in extra
    ]
    assignments += [
        Assignment(name, str(value), "inventory", "network_env_extra", member.name)
        for name, value in extra.items()
        if value is not None
    ]
    assignments += [
        Assignment(
            found["name"], found["value"], _place(found["file"]), f"{found['file']} line {found['line']}", member.name
        )
        for found in member.fabric["environment"]
    ]
    return _Part(process, nccl, {name: text for name, text in why.items() if name not in extra}, assignments)


def make_network_plan(
    members: Sequence[Member],
    values: Mapping[str, Mapping[str, Any]],
    catalogue: Catalogue,
    *,
    source_dir: str = "",
    compare_nccl: bool = False,
) -> NetworkPlan:
    """The plan of the nodes in ``members``, the head first.

    ``values`` are the variables of the role ``network_env``. ``compare_nccl`` stops where the NCCL that is there differs
    between nodes: before the environments are built it may.
    """
    problems = [f"{member.name}: {problem}" for member in members for problem in member.fabric["problems"]]
    problems += _differ(values)
    if problems:
        return NetworkPlan({}, problems, [])
    head, first = members[0], values[members[0].name]
    profile, strict = first["network_env_profile"], first["network_env_strict"]
    # The guide's settings are those of TCP; what the nodes could do beside them changes nothing.
    decision, problems = decide(members, "ethernet" if profile == "seed" else profile, strict)
    problems += check_nccl(members) if compare_nccl else []
    plan: dict[str, Any] = {"profile": profile, "transport": decision.transport, "notes": list(decision.notes)}
    if problems:
        return NetworkPlan(plan, problems, [])

    parts: dict[str, _Part] = {}
    for member in members:
        seed = seed_values(catalogue, member.interface, head.address, source_dir) if profile == "seed" else {}
        try:
            parts[member.name] = _part(member, decision, values[member.name]["network_env_extra"], seed)
        except EnvError as error:
            problems.append(f"{member.name}: network_env_extra: {error}")
    if problems:
        return NetworkPlan(plan, problems, [])

    findings = lint(
        [assignment for part in parts.values() for assignment in part.assignments],
        {member.name: _context(member, decision, len(members)) for member in members},
        catalogue,
        {name for host in values.values() for name in host["network_env_accept"]},
        rendered={name: {**part.process, **part.nccl} for name, part in parts.items()},
    )
    plan["peers"] = [{"name": member.name, "address": member.address} for member in members]
    plan["nodes"] = {
        member.name: {
            "interface": member.interface,
            "address": member.address,
            "mtu": member.mtu,
            "gpus": member.gpus,
            "environment": (part := parts[member.name]).process,
            "nccl": part.nccl,
            "why": part.why,
            "expect": expectation(member, decision, part.nccl),
        }
        for member in members
    }
    return NetworkPlan(plan, [describe(f, parts) for f in findings if f.level == "error"], findings)


def fingerprint(plan: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """What a proof proved: it holds until a node's settings, environment or boot change, or a node comes or goes."""
    proved = {
        name: [
            part["interface"],
            part["address"],
            part["mtu"],
            part["gpus"],
            part["environment"],
            part["nccl"],
            nodes[name]["boot_id"],
            nodes[name]["environment_path"],
        ]
        for name, part in plan["nodes"].items()
    }
    return hashlib.sha256(json.dumps(proved, sort_keys=True).encode()).hexdigest()[:16]
