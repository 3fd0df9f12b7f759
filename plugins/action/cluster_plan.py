# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``cluster_plan``: collects what the inventory and the facts say, and hands it to ``_plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._plan import Settings, make_plan

_ROLES = Path(__file__).resolve().parents[2] / "roles"
_display = Display()


def read_specs(roles: Path) -> dict[str, dict[str, Any]]:
    """Every variable of every role, from the roles' argument specs."""
    specs: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        for entry_point in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            specs.update(entry_point.get("options") or {})
    return specs


def read_settings(hostvars: Any, specs: dict[str, dict[str, Any]]) -> Settings:
    """A host's values of the known variables; one whose expression fails is kept with its reason."""
    values, unusable = {}, {}
    for name in specs:
        try:
            if name in hostvars:
                values[name] = hostvars[name]
        except AnsibleError as error:
            unusable[name] = str(error).splitlines()[0]
    return Settings(values, unusable, sorted(set(map(str, hostvars)) - set(specs)))


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec({"fact": {"type": "str", "default": "cluster_plan"}})
        task_vars = task_vars or {}
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        specs = read_specs(_ROLES)
        hosts = list(dict.fromkeys([*groups.get("head", []), *groups.get("workers", []), *groups.get("cluster", [])]))
        settings = {host: read_settings(hostvars[host], specs) for host in hosts}
        nodes = {
            host: facts["metalray_node"]
            for host in hosts
            if "metalray_node" in (facts := hostvars[host].get("ansible_facts", {}))
        }
        plan, problems = make_plan(groups, nodes, settings, specs, _display.warning)
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            return {**result, "failed": True, "msg": f"Nothing was changed. {len(problems)} to mend:\n{lines}"}
        return {**result, "changed": False, "ansible_facts": {arguments["fact"]: plan}}
