# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``cluster_summary``: prints one readable table, whatever callback is in use."""

from __future__ import annotations

from typing import Any

from ansible.utils.display import Display

from ..module_utils._summary import describe_proof, render, tunnel
from ..plugin_utils._action import ControllerAction

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cluster": {"type": "dict", "default": {}},
    "training": {"type": "dict", "default": {}},
    "dashboard_port": {"type": "int", "default": 8265},
}
_display = Display()


def last_proof(facts: Any) -> dict[str, Any]:
    """Of this run, or the one that preflight found on the node."""
    return facts["network_proof"] if "network_proof" in facts else facts["metalray_node"]["network_proof"]


class ActionModule(ControllerAction):
    arguments = _ARGUMENTS

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        hostvars = task_vars["hostvars"]
        facts = task_vars["ansible_facts"]
        plan = facts["cluster_plan"]
        versions = {name: hostvars[name].get("ansible_facts", {}).get("package_versions", {}) for name in plan["nodes"]}
        head = hostvars[plan["head"]]
        port = arguments["dashboard_port"]
        command = tunnel(
            head.get("ansible_host", plan["head"]),
            head.get("ansible_user"),
            head.get("ansible_port"),
            head.get("ansible_ssh_private_key_file"),
            port,
        )
        # Of a host that this run has lost, the older facts say nothing any more.
        lost = set(task_vars["ansible_play_hosts_all"]) - set(task_vars["ansible_play_hosts"])
        records = {name: {} if name in lost else last_proof(hostvars[name]["ansible_facts"]) for name in plan["nodes"]}
        network = describe_proof(records, facts["network_plan"]["fingerprint"])
        text = render(plan, arguments["cluster"], versions, arguments["training"], network, command, port)
        _display.display("\n" + text + "\n")
        return {"summary": text.splitlines()}
