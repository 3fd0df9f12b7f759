# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``training_model``: looks at the download in short rounds, with the bytes that are there."""

from __future__ import annotations

from typing import Any

from ..plugin_utils._rounds import RoundsAction


class ActionModule(RoundsAction):
    module = "metalray.cluster.training_model"

    def goes_on_with(self, news: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": 10}

    def progress(self, news: dict[str, Any]) -> str:
        total = f" of {news['total'] / 2**30:.1f}" if news.get("total") else ""
        return f"model: {news['bytes'] / 2**30:.1f}{total} GiB"

    def public(self, result: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in result.items() if name != "finished"}
