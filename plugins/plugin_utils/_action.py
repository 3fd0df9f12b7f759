# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the actions share that decide, compare or print.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase


class ControllerAction(ActionBase):
    """An action that runs on the controller, calls no host and changes nothing.

    ``arguments`` is its argument spec; ``work`` returns what it has to say.
    """

    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False
    TRANSFERS_FILES = False
    arguments: ClassVar[dict[str, dict[str, Any]]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(self.arguments)
        return {**result, "changed": False, **self.work(arguments, task_vars or {})}

    def work(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


def refused(message: str) -> dict[str, Any]:
    return {"failed": True, "msg": message}


def to_mend(untouched: str, problems: Sequence[str]) -> dict[str, Any]:
    """A refusal that lists everything that is wrong, and says first what it has left alone."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return refused(f"{untouched}. {len(problems)} to mend:\n{lines}")
