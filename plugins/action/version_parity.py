# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``version_parity``: collects the facts of the hosts and hands them to ``_parity``."""

from __future__ import annotations

from typing import Any

from ..module_utils._parity import STRICT, SYSTEM, WARNED, compare, failure, warnings
from ..plugin_utils._action import ControllerAction, refused

_SYSTEM = list(SYSTEM)
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "hosts": {"type": "list", "elements": "str"},
    "fact": {"type": "str", "default": "package_versions"},
    "packages": {"type": "list", "elements": "str", "default": []},
    "system": {"type": "list", "elements": "str", "choices": _SYSTEM, "default": list(STRICT)},
    "system_warned": {"type": "list", "elements": "str", "choices": _SYSTEM, "default": list(WARNED)},
    "reference": {"type": "str"},
}


class ActionModule(ControllerAction):
    arguments = _ARGUMENTS

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        hostvars, fact = task_vars["hostvars"], arguments["fact"]
        asked = arguments["hosts"]
        hosts = asked if asked is not None else task_vars.get("ansible_play_hosts", [])
        unknown = [host for host in hosts if host not in hostvars]
        if unknown:
            return refused(f"hosts names {', '.join(unknown)}: not in the inventory")
        facts = {host: hostvars[host].get("ansible_facts", {}).get(fact) for host in hosts}
        lacking = [host for host, value in facts.items() if not value]
        if lacking and asked is not None and not self._task.check_mode:
            return refused(
                f"no fact '{fact}' of {', '.join(lacking)}. Run metalray.cluster.package_versions_facts on every host "
                "before this task"
            )
        comparison = compare(
            {host: value for host, value in facts.items() if value},
            packages=arguments["packages"],
            strict=arguments["system"],
            warned=arguments["system_warned"],
            reference=arguments["reference"] or next(iter(task_vars.get("groups", {}).get("head", [])), ""),
        )
        result = {"hosts": comparison.hosts, "groups": comparison.groups, "differences": comparison.as_list()}
        if comparison.warned:
            result["warnings"] = warnings(comparison)
        if comparison.strict:
            return {**result, **refused(failure(comparison))}
        compared = len(comparison.hosts)
        result["msg"] = {0: "no versions to compare yet", 1: "one node only: nothing to compare"}.get(
            compared, f"{compared} nodes have the same versions"
        )
        return result
