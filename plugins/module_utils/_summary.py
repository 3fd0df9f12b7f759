# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster at a glance, as text.

Internal to metalray.cluster: not a public interface. Runs on the controller.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_HEADINGS = ("node", "part", "address", "interface", "link", "CPUs", "GPUs", "python", "ray", "torch", "state")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def link(speed_mbps: int | None, mtu: int) -> str:
    speed = f"{speed_mbps / 1000:g} Gb/s" if speed_mbps else "speed unknown"
    return f"{speed}, MTU {mtu}"


def _count(seen: Mapping[str, Any], name: str, fallback: int) -> str:
    value = seen.get("resources", {}).get("total", {}).get(name)
    return f"{value:g}" if value is not None else ("0" if seen else str(fallback))


def node_rows(
    plan: Mapping[str, Any], cluster: Mapping[str, Any], versions: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """A row a node: the head, the other nodes of the plan, and those that did not answer."""
    by_address = {node["address"]: node for node in cluster.get("nodes", [])}
    rows = []
    for name, node in plan["nodes"].items():
        seen = by_address.get(node["address"], {})
        packages = versions.get(name, {}).get("packages", {})
        rows.append(
            (
                name,
                "head" if name == plan["head"] else "worker",
                node["address"],
                node["interface"],
                link(node["speed_mbps"], node["mtu"]),
                _count(seen, "CPU", node["cpus"]),
                _count(seen, "GPU", node["gpus"]),
                versions.get(name, {}).get("python", "-"),
                packages.get("ray", "-"),
                packages.get("torch", "-"),
                "alive" if seen.get("alive") else ("dead" if seen else "not in Ray"),
            )
        )
    rows += [(name, "worker", *("-" * 8), "no answer") for name in plan["missing"]]
    return rows


def describe_training(training: Mapping[str, Any] | None) -> list[str]:
    """The job's outcome in a few lines; ``training`` is what the role ``training`` leaves behind."""
    if not training or training.get("status") in (None, "ABSENT"):
        return ["No job has been run."]
    lines = [f"Job {training.get('submission_id', '?')}: {training.get('status', 'unknown')}"]
    if "first_loss" in training and "last_loss" in training:
        lines.append(
            f"  loss {training['first_loss']:.4g} -> {training['last_loss']:.4g}, {training.get('samples_per_second', 0):,.0f} samples/s, "
            f"{training.get('world_size', '?')} workers over {training.get('backend', '?')}"
        )
    for rank in training.get("ranks", []):
        ways = [
            f"{way['interface']} {way['address']} ({way['bytes_sent'] / 1e6:,.1f} MB sent)"
            for way in rank.get("traffic", [])
        ]
        lines.append(f"  rank {rank['rank']} on {rank['hostname']}: {', '.join(ways) or 'alone, no traffic'}")
    if training.get("checkpoint"):
        lines.append(f"  checkpoint {training['checkpoint']}")
    return lines


def describe_proof(records: Mapping[str, Mapping[str, Any]], fingerprint: str) -> str:
    """The last proof of the network in one line; ``records`` are what the nodes keep of it, the head's first."""
    current = [record for record in records.values() if record.get("fingerprint") == fingerprint]
    if not current:
        return "Network: not proved as it is now, --tags network_env does"
    lacking = [name for name, record in records.items() if record.get("fingerprint") != fingerprint]
    but = f"; not proved on {', '.join(lacking)}, --tags network_env does or says why" if lacking else ""
    return f"Network: {current[0]['text']} ({current[0]['when']}{but})"


def tunnel(host: str, user: str | None, port: int | None, key: str | None, dashboard_port: int) -> str:
    """The command that brings the dashboard, which listens on the head's loopback interface only, to this machine."""
    command = ["ssh", "-N", "-L", f"{dashboard_port}:127.0.0.1:{dashboard_port}"]
    if key:
        command += ["-i", key]
    if port and int(port) != 22:
        command += ["-p", str(port)]
    return shlex.join([*command, f"{user}@{host}" if user else host])


def render(
    plan: Mapping[str, Any],
    cluster: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Any] | None,
    network: str,
    tunnel_command: str,
    dashboard_port: int,
) -> str:
    """The whole summary."""
    rows = node_rows(plan, cluster, versions)
    alive = sum(row[-1] == "alive" for row in rows)
    total = cluster.get("resources", {}).get("total", {})
    place = f"network {plan['cidr']}, shared directory {plan['shared_dir']}"
    if not cluster:
        missing = (
            f"Ray: does not answer on {plan['head']}, the head; --tags ray starts it. {place[0].upper()}{place[1:]}"
        )
        return "\n".join([*table([_HEADINGS, *rows]), "", missing, network])
    return "\n".join(
        [
            *table([_HEADINGS, *rows]),
            "",
            f"Ray: {alive} of {len(rows)} nodes alive, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs, {place}",
            network,
            *describe_training(training),
            "",
            f"Dashboard: http://localhost:{dashboard_port} after",
            f"  {tunnel_command}",
            "It asks for the token:",
            f"  {tunnel_command.replace(f'-N -L {dashboard_port}:127.0.0.1:{dashboard_port} ', '')} sudo cat /etc/metalray/ray_token",
        ]
    )
