# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``network_report``: prints the network plan, whatever callback is in use."""

from __future__ import annotations

from typing import Any

from ansible.utils.display import Display

from ..module_utils._network_report import render_report
from ..plugin_utils._action import ControllerAction

_display = Display()


class ActionModule(ControllerAction):
    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        facts = task_vars["ansible_facts"]
        nodes = {
            name: task_vars["hostvars"][name]["ansible_facts"]["metalray_node"]
            for name in facts["cluster_plan"]["nodes"]
        }
        members = [
            {"name": name, "fabric": nodes[name]["fabric"], **part}
            for name, part in facts["cluster_plan"]["nodes"].items()
        ]
        records = {name: node["network_proof"] for name, node in nodes.items()}
        text = render_report(facts["network_plan"], members, records)
        _display.display("\n" + text + "\n")
        return {"report": text.splitlines()}
