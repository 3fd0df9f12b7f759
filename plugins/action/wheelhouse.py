# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``wheelhouse``: follows the work in short module runs and shows how far it is."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

ROUND_SECONDS = 10


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = {**self._task.args, "wait": ROUND_SECONDS}
        host = self._task.delegate_to or task_vars.get("inventory_hostname", "")
        begun = time.monotonic()
        answer = self._round(arguments, task_vars)
        while not (answer.get("finished", True) or answer.get("failed") or answer.get("unreachable")):
            elapsed = int(time.monotonic() - begun)
            Display().display(f"[{host}] {elapsed // 60}:{elapsed % 60:02} {answer.get('progress') or 'starting'}")
            answer = self._round({**arguments, "follow": answer["attempt"]}, task_vars)
        return {name: value for name, value in answer.items() if name not in ("finished", "attempt", "progress")}

    def _round(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return self._execute_module(
            module_name="metalray.cluster.wheelhouse", module_args=arguments, task_vars=task_vars
        )
