# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network environment of all nodes: decided, rendered, the user's own variables on top, and all of it checked.

Internal to metalray.cluster: not a public interface. Runs on the controller.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._env_catalogue import Catalogue, seed_values
from ._env_lint import Assignment, Context, Finding, belongs_to_nccl, describe, lint
from ._interfaces import Candidate
from ._nccl_env import EnvError, as_text, split, with_extra
from ._network_env import Decision, Member, check_nccl, decide, expectation, render
from ._plan import check_same

_SAME = ("network_env_profile", "network_env_strict", "network_env_prove")
_FABRIC = ("interfaces", "gpus", "nvlink", "rdma", "efa", "gpudirect", "plugins", "nccl", "versions", "shm_bytes", "acs_bridges",
           "environment", "problems")  # fmt: skip
_NODE = ("candidates", "boot_id", "environment_path", "network_proof", "fabric")


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


def check_facts(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Facts that another release of the collection has left in a cache."""
    problems = []
    for name, node in nodes.items():
        lacks = [key for key in _NODE if key not in node]
        lacks += [f"fabric.{key}" for key in _FABRIC if key not in node.get("fabric", {})] if not lacks else []
        if lacks:
            problems.append(
                f"{name}: its facts lack {', '.join(lacks)}, so another release of this collection has read them. Run "
                "metalray.cluster.node_facts on it again (--flush-cache)"
            )
    return problems


def make_members(
    nodes: Mapping[str, Mapping[str, Any]],
    picked: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Any]],
) -> list[Member]:
    """The nodes for the decision. ``picked`` has each one's ``interface``, ``address``, ``mtu`` and ``speed_mbps``."""
    return [_member(name, nodes[name], chosen, values[name]) for name, chosen in picked.items()]


def _member(name: str, node: Mapping[str, Any], chosen: Mapping[str, Any], values: Mapping[str, Any]) -> Member:
    candidates = [Candidate.from_dict(item) for item in node["candidates"]]
    networks: dict[str, list[str]] = {}
    for candidate in candidates:
        networks.setdefault(candidate.interface, []).append(candidate.network)
    return Member(
        name=name,
        interface=chosen["interface"],
        address=chosen["address"],
        mtu=chosen["mtu"],
        speed_mbps=values["network_env_link_mbps"] or chosen["speed_mbps"],
        default_interfaces=tuple(dict.fromkeys(c.interface for c in candidates if c.default_route)),
        networks=networks,
        first_address=all(c.first for c in candidates if c.address == chosen["address"]),
        hcas=str(values["network_env_extra"].get("NCCL_IB_HCA") or ""),
        fabric=node["fabric"],
    )


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
        nics=len(decision.adapters.get(member.name, ())),
        plugins=bool(fabric["plugins"]),
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


def _part(
    member: Member, decision: Decision, catalogue: Catalogue, extra: Mapping[str, Any], seed: Mapping[str, str]
) -> _Part:
    settings = [setting for file in render(member, decision) for setting in file]
    variables = seed or {setting.name: setting.value for setting in settings}
    why = dict.fromkeys(seed, "the guide's value") or {setting.name: setting.why for setting in settings}
    process, nccl = split(with_extra(variables, extra), lambda name: belongs_to_nccl(name, catalogue))
    if not member.gpus:
        # One list for all nodes is no mistake: this one takes no part.
        nccl.pop("NCCL_IB_HCA", None)
    assignments = [
        Assignment(name, value, "inventory", "network_env_profile 'seed'", member.name)
        for name, value in seed.items()
        if name not in extra
    ]
    assignments += [
        Assignment(name, as_text(name, value), "inventory", "network_env_extra", member.name)
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


def _refused(values: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """The user's own variables that cannot be written at all."""
    hosts: dict[tuple[Any, str], list[str]] = {}
    for host, host_values in values.items():
        for name, value in host_values["network_env_extra"].items():
            try:
                if value is not None:
                    as_text(name, value)
            except EnvError as error:
                hosts.setdefault((name, str(error)), []).append(host)
    return [Finding("error", str(name), "network_env_extra", tuple(on), text) for (name, text), on in hosts.items()]


def _accepted_in_vain(
    accepted: Iterable[str], names: set[str], catalogue: Catalogue, hosts: list[str]
) -> list[Finding]:
    """Names in network_env_accept that are no variable's: of one that is known nobody may make use yet."""
    findings = []
    for name in accepted:
        if name not in names and not catalogue.known(name):
            close = difflib.get_close_matches(name, names, n=1) or [catalogue.closest(name)]
            mend = f"Did you mean {close[0]}? Correct it or remove it" if close[0] else "Remove it"
            message = f"{name} is accepted, which is not the name of a variable that is known or set. {mend}"
            findings.append(Finding("warning", name, "network_env_accept", tuple(hosts), message))
    return findings


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
    problems += check_same(values, _SAME)
    if problems:
        return NetworkPlan({}, problems, [])
    head, first = members[0], values[members[0].name]
    profile, strict = first["network_env_profile"], first["network_env_strict"]
    decision, problems = decide(members, profile, strict)
    problems += check_nccl(members) if compare_nccl else []
    plan: dict[str, Any] = {"profile": profile, "transport": decision.transport, "notes": list(decision.notes)}
    if problems:
        return NetworkPlan(plan, problems, [])

    refused = _refused(values)
    if refused:
        return NetworkPlan(plan, [describe(f, values) for f in refused], refused)

    parts: dict[str, _Part] = {}
    for member in members:
        seed = seed_values(catalogue, member.interface, head.address, source_dir) if profile == "seed" else {}
        parts[member.name] = _part(member, decision, catalogue, values[member.name]["network_env_extra"], seed)

    assignments = [assignment for part in parts.values() for assignment in part.assignments]
    accepted = dict.fromkeys(name for host in values.values() for name in host["network_env_accept"])
    findings = lint(
        assignments,
        {member.name: _context(member, decision, len(members)) for member in members},
        catalogue,
        accepted,
        rendered={name: {**part.process, **part.nccl} for name, part in parts.items()},
    )
    findings += _accepted_in_vain(accepted, {assignment.name for assignment in assignments}, catalogue, list(parts))
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
