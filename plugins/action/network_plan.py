# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``network_plan``: collects the nodes' facts and variables, and hands them to ``_network_plan``."""

from __future__ import annotations

import secrets
from os.path import basename, splitext
from typing import Any

from ansible.utils.display import Display

from ..module_utils._env_lint import render_findings
from ..module_utils._network_plan import check_facts, fingerprint, make_members, make_network_plan
from ..module_utils._plan import plan_addresses
from ..plugin_utils._action import ControllerAction, refused, to_mend
from ..plugin_utils._settings import load_catalogue, read_settings, read_specs, with_defaults

_VARIABLES = ("network_env_", "cluster_interface", "cluster_cidr")
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "compare_nccl": {"type": "bool", "default": False},
    "enforce": {"type": "bool", "default": True},
}
_display = Display()


def _source_name(hostvars: Any) -> str:
    """As the role ``python_env`` names the source's directory."""
    names = ("python_env_profile", "python_env_source_url", "python_env_source_name")
    values = read_settings(hostvars, {name: spec for name, spec in read_specs().items() if name in names}).values
    return str(
        values.get("python_env_source_name") or splitext(basename(str(values.get("python_env_source_url") or "")))[0]
    )


class ActionModule(ControllerAction):
    arguments = _ARGUMENTS

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        hostvars = task_vars["hostvars"]
        plan = task_vars.get("ansible_facts", {}).get("cluster_plan")
        hosts = list(plan["nodes"]) if plan else task_vars["ansible_play_hosts"]
        facts = {host: hostvars[host].get("ansible_facts", {}) for host in hosts}
        lacking = [host for host in hosts if "metalray_node" not in facts[host]]
        if lacking:
            return refused(
                f"no facts of {', '.join(lacking)}. Run metalray.cluster.node_facts on every node before this task"
            )
        nodes = {host: facts[host]["metalray_node"] for host in hosts}
        specs = {name: spec for name, spec in read_specs().items() if name.startswith(_VARIABLES)}
        values = {host: with_defaults(hostvars[host], specs) for host in hosts}
        problems = check_facts(nodes)
        if plan:
            picked = plan["nodes"]
        elif not problems:
            found, _network, problems = plan_addresses(nodes, values, hosts[0])
            picked = {host: candidate.to_dict() for host, candidate in found.items()}
        if problems:
            return refused("\n".join(problems))
        source = _source_name(hostvars[hosts[0]])
        made = make_network_plan(
            make_members(nodes, picked, values),
            values,
            load_catalogue(),
            source_dir=f"{plan['shared_dir']}/src/{source}".rstrip("/") if plan else ".",
            compare_nccl=arguments["compare_nccl"],
        )
        if arguments["enforce"]:
            for warning in made.warnings:
                _display.warning(warning)
        report = render_findings(made.findings, hosts)
        if made.problems and arguments["enforce"]:
            # With compare_nccl other stages have had their turn.
            untouched = "The network environment is as it was" if arguments["compare_nccl"] else "Nothing was changed"
            return to_mend(untouched, made.problems)
        fact = {**made.plan, "problems": made.problems, "findings": report}
        if "nodes" in made.plan:
            fact["fingerprint"] = fingerprint(made.plan, nodes)
            fact["proved"] = all(
                (node["network_proof"] or {}).get("fingerprint") == fact["fingerprint"] for node in nodes.values()
            )
            # Tells the proofs of two runs apart.
            fact["nonce"] = secrets.token_hex(8)
        return {"ansible_facts": {"network_plan": fact}}
