# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A long piece of work in short rounds of one module, with progress, over a connection that may drop.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Without news, say at least this often that the work goes on.
HEARTBEAT_SECONDS = 30


class RoundsAction(ActionBase):
    """Runs ``module`` until it says ``finished``. What a round leaves to the next one goes through its option ``follow``."""

    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False
    TRANSFERS_FILES = False
    module = ""

    def goes_on_with(self, news: dict[str, Any]) -> dict[str, Any]:
        """The option ``follow`` of the next round."""
        raise NotImplementedError

    def progress(self, news: dict[str, Any]) -> str:
        raise NotImplementedError

    def public(self, result: dict[str, Any]) -> dict[str, Any]:
        return result

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = {name: value for name, value in self._task.args.items() if name != "follow"}
        patience = float(arguments.get("reconnect_timeout") or 600)
        host = str(task_vars.get("inventory_hostname", ""))
        changed, said, said_at = False, "", time.monotonic()
        follow: dict[str, Any] = {}
        lost_at: float | None = None
        while True:
            try:
                news = self._execute_module(
                    module_name=self.module,
                    module_args={**arguments, **({"follow": follow} if follow else {})},
                    task_vars=task_vars,
                )
            except AnsibleConnectionFailure as error:
                news = {"unreachable": True, "msg": str(error)}
            if news.get("unreachable") and follow:
                lost_at = time.monotonic() if lost_at is None else lost_at
                if time.monotonic() - lost_at < patience:
                    Display().display(f"[{host}] out of reach, trying for {patience:.0f} s")
                    self._reconnect()
                    time.sleep(5)
                    continue
            lost_at = None
            changed = changed or bool(news.get("changed"))
            if news.get("failed") or news.get("unreachable") or news.get("finished", True):
                if news.get("finished"):
                    self.goes_on_with(news)
                return self.public({**news, "changed": changed})
            follow = self.goes_on_with(news)
            line = self.progress(news)
            if line != said or time.monotonic() - said_at >= HEARTBEAT_SECONDS:
                Display().display(f"[{host}] {line}")
                said, said_at = line, time.monotonic()

    def _reconnect(self) -> None:
        # A broken master connection would be used again otherwise, and its temporary directory may be gone.
        with contextlib.suppress(Exception):
            self._connection.reset()
        with contextlib.suppress(AttributeError):
            self._connection._shell.tmpdir = None
