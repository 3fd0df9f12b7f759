# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``training_dataset``: one short round after the other, with the number of tasks done."""

from __future__ import annotations

from typing import Any

from ..module_utils._training_dataset import failure
from ..plugin_utils._rounds import RoundsAction


class ActionModule(RoundsAction):
    module = "metalray.cluster.training_dataset"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self.unmade: dict[str, str] = {}
        return super().run(tmp, task_vars)

    def goes_on_with(self, news: dict[str, Any]) -> dict[str, Any]:
        self.unmade.update(news.get("unmade") or {})
        return {"skip": sorted(self.unmade)}

    def progress(self, news: dict[str, Any]) -> str:
        wrong = f", {len(self.unmade)} failed" if self.unmade else ""
        return f"dataset: {news['done']} of {news['total']} tasks{wrong}"

    def public(self, result: dict[str, Any]) -> dict[str, Any]:
        if self.unmade and result.get("finished"):
            attempts = int(self._task.args.get("attempts") or 3)
            told = failure(result["done"], result["total"], self.unmade, attempts)
            result = {**result, "failed": True, "msg": told}
        return {name: value for name, value in result.items() if name not in ("finished", "made", "removed", "unmade")}
