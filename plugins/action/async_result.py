# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``async_result``: looks at a job again and again, without a line of output for every look."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase

_STATUS = "ansible.builtin.async_status"
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "jid": {"type": "str", "required": True},
    "timeout": {"type": "int", "required": True},
    "interval": {"type": "float", "default": 2},
}


class ActionModule(ActionBase):
    _supports_check_mode = False
    _supports_diff = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(_ARGUMENTS)
        job = {"jid": arguments["jid"], "_async_dir": self.get_shell_option("async_dir", default="~/.ansible_async")}
        deadline = time.monotonic() + arguments["timeout"]
        while True:
            seen = self._execute_module(_STATUS, {**job, "mode": "status"}, task_vars=task_vars)
            if seen.get("finished") or seen.get("unreachable"):
                break
            if time.monotonic() > deadline:
                msg = f"the job {job['jid']} has not ended after {arguments['timeout']} s. It goes on by itself"
                return {**result, "failed": True, "msg": msg}
            time.sleep(arguments["interval"])
        self._execute_module(_STATUS, {**job, "mode": "cleanup"}, task_vars=task_vars)
        return {**result, **seen}
