# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``node_facts``: how far the clocks are apart, and failures that can wait until all nodes have answered."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..plugin_utils._failures import explain_failure, was_reached


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = False
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        defers = boolean(self._task.args.get("defer_failures", False), strict=False)
        sent = time.time()
        try:
            result = self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val)
        except AnsibleConnectionFailure as error:
            if not defers or not was_reached(str(error)):
                raise
            return self._deferred(str(error))
        except AnsibleError as error:
            if not defers:
                raise
            return self._deferred(str(error))
        if result.get("failed") and defers:
            return self._deferred(
                "\n".join(str(result.get(key, "")) for key in ("msg", "module_stderr", "module_stdout"))
            )
        node = (result.get("ansible_facts") or {}).get("metalray_node")
        if node:
            # What the way there and back took is not known apart from the difference of the clocks, but bounds it.
            clock = node["first_contact"]["clock"]
            clock["ahead"] = [clock["ended"] - time.time(), clock["started"] - sent]
        return result

    def _deferred(self, said: str) -> dict[str, Any]:
        account = self._get_remote_user() or "the connecting account"
        become = self._connection.become.name.rpartition(".")[2] if self._connection.become else "sudo"
        return {
            "changed": False,
            "ansible_facts": {"metalray_node": {"failure": explain_failure(said, account, become)}},
        }
