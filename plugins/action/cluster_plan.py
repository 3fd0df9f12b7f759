# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``cluster_plan``: collects what the inventory and the facts say, and hands it to ``_plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.utils.display import Display

from ..module_utils._plan import make_plan
from ..plugin_utils._action import ControllerAction, to_mend
from ..plugin_utils._pyproject import problems_of
from ..plugin_utils._settings import load_presets, read_settings, read_specs

_ARGUMENTS: dict[str, dict[str, Any]] = {"fact": {"type": "str", "default": "cluster_plan"}}
_display = Display()


def runs(tag: str, task_vars: Mapping[str, Any]) -> bool:
    """Whether the play with this tag, and no other, takes part in this run."""
    wanted, left_out = (set(task_vars.get(f"ansible_{kind}_tags") or ()) for kind in ("run", "skip"))
    return bool({"all", "tagged", tag} & (wanted or {"all"})) and not {"all", "tagged", tag} & left_out


class ActionModule(ControllerAction):
    arguments = _ARGUMENTS

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        specs = read_specs()
        hosts = list(dict.fromkeys([*groups.get("head", []), *groups.get("workers", []), *groups.get("cluster", [])]))
        settings = {host: read_settings(hostvars[host], specs) for host in hosts}
        nodes = {
            host: facts["metalray_node"]
            for host in hosts
            if "metalray_node" in (facts := hostvars[host].get("ansible_facts", {}))
        }
        plan, problems = make_plan(
            groups, nodes, settings, specs, _display.warning, lambda tag: runs(tag, task_vars), load_presets()
        )
        if runs("python_env", task_vars):
            problems += problems_of(settings)
        if problems:
            return to_mend("Nothing was changed", problems)
        return {"ansible_facts": {arguments["fact"]: plan}}
