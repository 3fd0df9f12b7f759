# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network plan as text: what was found, what would be written and why, what the check found, what the last proof saw.

Internal to metalray.cluster: not a public interface. Runs on the controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ._summary import describe_proof, link, table

_TRANSPORTS = {
    "none": "none: no GPUs, so NCCL has nothing to do",
    "single": "none needed: one node",
    "socket": "TCP",
    "infiniband": "InfiniBand",
    "roce": "RoCE",
    "efa": "EFA",
}
_HEADINGS = ("node", "interface", "address", "link", "GPUs", "NVLink", "RDMA", "GPUDirect", "NCCL")


def _rdma(fabric: Mapping[str, Any]) -> str:
    kinds = Counter(f"{port['link_layer']}{'' if port['active'] else ' (down)'}" for port in fabric["rdma"])
    seen = [f"{count} x {kind}" for kind, count in kinds.items()]
    return ", ".join([*seen, *["EFA"] * fabric["efa"]]) or "-"


def _gpudirect(ready: Mapping[str, bool]) -> str:
    return ", ".join(["peermem"] * ready["peermem"] + ["DMA-BUF"] * ready["dmabuf"]) or "-"


def node_rows(members: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row a node. Each has ``name``, ``interface``, ``address``, ``speed_mbps``, ``mtu`` and its ``fabric``."""
    rows = []
    for node in members:
        fabric = node["fabric"]
        models = sorted({gpu["model"] or "GPU" for gpu in fabric["gpus"]})
        rows.append(
            (
                node["name"],
                node["interface"],
                node["address"],
                link(node["speed_mbps"], node["mtu"]),
                f"{len(fabric['gpus'])} x {', '.join(models)}" if models else "-",
                fabric["nvlink"] if models else "-",
                _rdma(fabric),
                _gpudirect(fabric["gpudirect"]) if fabric["rdma"] or fabric["efa"] else "-",
                fabric["nccl"]["version"] if fabric["nccl"] else "-",
            )
        )
    return rows


def _files(part: Mapping[str, Any], leave_out: Mapping[str, Any] | None = None) -> list[str]:
    lines = []
    for path, key in (("/etc/metalray/cluster.env", "environment"), ("/etc/nccl.conf", "nccl")):
        known = (leave_out or {}).get(key, {})
        shown = {name: value for name, value in part[key].items() if known.get(name) != value}
        width = max((len(f"{name}={value}") for name, value in shown.items()), default=0)
        lines += [f"  {path}"] if shown else []
        lines += [
            f"    {f'{name}={value}'.ljust(width)}  {part['why'].get(name, 'from the inventory')}"
            for name, value in shown.items()
        ]
    return lines


def render_report(plan: Mapping[str, Any], members: Sequence[Mapping[str, Any]], records: Mapping[str, Any]) -> str:
    """The whole report; ``records`` are the nodes' own of their last proof."""
    lines = [*table([_HEADINGS, *node_rows(members)]), ""]
    if "nodes" in plan:
        lines.append(f"Transport between nodes: {_TRANSPORTS[plan['transport']]} (profile {plan['profile']})")
    lines += [f"Note: {note}" for note in plan.get("notes", ())]
    first: Mapping[str, Any] | None = None
    for name, part in plan.get("nodes", {}).items():
        title = name if first is None else f"{name}, where it differs"
        lines += ["", title, *(_files(part, first) or ["  the same"])]
        first = first or part
    # The check's own errors are in its findings.
    others = [problem for problem in plan["problems"] if problem not in plan["findings"]]
    if others:
        lines += ["", "What stops a run:", *(f"  - {problem}" for problem in others)]
    lines += ["", "Check of the variables (errors stop a run):", plan["findings"] or "  nothing to say"]
    if "fingerprint" in plan:
        lines += ["", describe_proof(records, plan["fingerprint"])]
    return "\n".join(lines)
