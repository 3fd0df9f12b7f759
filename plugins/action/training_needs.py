# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``training_needs``: hands what was found to ``_training``, and lists what is missing."""

from __future__ import annotations

from typing import Any

from ..module_utils._training import JUDGE, shortfall
from ..plugin_utils._action import ControllerAction, to_mend


class ActionModule(ControllerAction):
    arguments = {  # noqa: RUF012
        "name": {"type": "str", "required": True},
        "preset": {"type": "dict", "required": True},
        "cluster": {"type": "dict", "required": True},
        "nodes": {"type": "dict", "required": True},
        "head": {"type": "str", "required": True},
        "checkpoints_keep": {"type": "int", "default": 2},
        "judge": {"type": "str", "default": JUDGE},
    }

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        problems = shortfall(
            arguments["name"],
            arguments["preset"],
            arguments["cluster"],
            arguments["nodes"],
            arguments["head"],
            arguments["checkpoints_keep"],
            arguments["judge"],
        )
        if problems:
            return to_mend(f"The cluster is not ready for {arguments['name']}, and no job was started", problems)
        return {}
