# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``bundle``: notes what of the inventory decides what belongs into one."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils._bundle import deciding_settings, lock_text
from ..plugin_utils._settings import read_specs, with_defaults


class ActionModule(ActionBase):
    _supports_check_mode = False
    _supports_diff = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        values = with_defaults(task_vars["hostvars"][task_vars["inventory_hostname"]], read_specs())
        settings = deciding_settings(values, lock_text(values))
        return self._execute_module(module_args={**self._task.args, "settings": settings}, task_vars=task_vars)
