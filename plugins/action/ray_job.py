# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``ray_job``: follows a job in short module runs, shows how it does, outlives a lost connection."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._ray import clock

ROUND_SECONDS = 10
# At least this often the status, the time and the job's own progress are said, whatever its log says.
STATUS_SECONDS = 30
# Keys that the module tells this plugin, and nobody else.
INTERNAL = ("finished", "offset", "lines", "unshown", "reason", "unreachable_dashboard")


class Reporter:
    """Prints how a job does."""

    def __init__(self, show: Callable[[str], None], host: str, show_log: bool, now: Callable[[], float]) -> None:
        self._show, self._host, self._show_log, self._now = show, host, show_log, now
        self._told_at, self._status, self.progress = -float("inf"), "", ""

    def say(self, text: str) -> None:
        self._show(f"[{self._host}] {text}")

    def round(self, news: dict[str, Any]) -> None:
        self.progress = news.get("progress") or self.progress
        lines = news.get("lines") or []
        if self._show_log:
            if news.get("unshown"):
                self.say(f"  | ... {news['unshown']} lines more")
            for line in lines:
                self.say(f"  | {line}")
        moved = news["status"] != self._status or (lines and self.progress and not self._show_log)
        if moved or self._now() - self._told_at >= STATUS_SECONDS:
            self._told_at, self._status = self._now(), news["status"]
            tail = f"  {self.progress}" if self.progress else ""
            self.say(f"{news.get('submission_id', '')} {news['status']} {clock(news.get('elapsed') or 0)}{tail}")


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        arguments.pop("follow", None)
        first = self._module(arguments, task_vars)
        over = any(first.get(key) for key in ("failed", "unreachable", "finished"))
        waits = _option(arguments, "wait", True) and _option(arguments, "state", "present") in ("present", "attached")
        if over or self._task.check_mode or not waits:
            return _public(first)
        ended = self._follow(first, arguments, task_vars)
        return _public({**ended, **{key: first[key] for key in ("diff",) if key in first}})

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return self._execute_module(module_name="metalray.cluster.ray_job", module_args=arguments, task_vars=task_vars)

    def _follow(self, first: dict[str, Any], arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        attempt, offset = first["submission_id"], first.get("offset")
        changed = bool(first.get("changed"))
        limit = int(_option(arguments, "wait_timeout", 0))
        patience = int(_option(arguments, "reconnect_timeout", 600))
        host = str(task_vars.get("inventory_hostname", ""))
        reporter = Reporter(Display().display, host, bool(_option(arguments, "show_log", True)), time.monotonic)
        reporter.say(f"{attempt} {'submitted' if changed else 'attached'}: {first.get('reason') or 'following it'}")
        started = time.monotonic()
        lost_at: float | None = None
        news = first
        while True:
            left = limit - (time.monotonic() - started) if limit else ROUND_SECONDS
            if left <= 0:
                return {
                    **news,
                    "changed": changed,
                    "failed": True,
                    "progress": reporter.progress,
                    "msg": f"The job {attempt} is still {news['status']} after {limit} seconds (wait_timeout). It "
                    f"goes on; run the same again to attach to it, or stop it with state: stopped",
                }
            follow = {"attempt": attempt, "offset": offset, "seconds": min(ROUND_SECONDS, max(0.0, left))}
            try:
                answer = self._module({**arguments, "follow": follow}, task_vars)
                problem = None if "finished" in answer else answer
            except AnsibleConnectionFailure as error:
                answer, problem = {}, {"msg": str(error), "unreachable_dashboard": True, "unreachable": True}
            if problem is not None:
                temporary = problem.get("unreachable") or problem.get("unreachable_dashboard")
                lost_at = lost_at if lost_at is not None else time.monotonic()
                away = time.monotonic() - lost_at
                if not temporary or away >= patience:
                    return self._given_up(news, problem, attempt, changed, away if temporary else None)
                waited = f"for {clock(away)}, trying for {clock(patience)}"
                reporter.say(f"{attempt}: out of reach {waited}: {_first_line(problem)}")
                self._reconnect()
                time.sleep(min(15.0, 2.0 + away / 4))
                continue
            if lost_at is not None:
                reporter.say(f"{attempt}: reached again")
                lost_at = None
            news, offset = answer, answer.get("offset", offset)
            reporter.round(answer)
            if answer["finished"]:
                return {**answer, "changed": changed, "progress": answer.get("progress") or reporter.progress}

    def _reconnect(self) -> None:
        # A broken master connection would be used again otherwise, and its temporary directory may be gone.
        with contextlib.suppress(Exception):
            self._connection.reset()
        with contextlib.suppress(AttributeError):
            self._connection._shell.tmpdir = None

    @staticmethod
    def _given_up(
        news: dict[str, Any], problem: dict[str, Any], attempt: str, changed: bool, away: float | None
    ) -> dict[str, Any]:
        how_long = f" for {clock(away)}" if away is not None else ""
        return {
            **{key: value for key, value in news.items() if key != "failed"},
            "changed": changed,
            "failed": True,
            "msg": f"The job {attempt} could not be followed any more{how_long}: {_first_line(problem)}. It was "
            f"{news['status']} when last seen and does not depend on this; run the same again to attach to it",
        }


def _option(arguments: dict[str, Any], name: str, default: Any) -> Any:
    """An option as the module will read it: booleans may come as words."""
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(default, bool) and isinstance(value, str):
        return value.strip().lower() in ("yes", "true", "on", "y", "t", "1")
    return value


def _first_line(problem: dict[str, Any]) -> str:
    return (str(problem.get("msg") or "no answer").strip().splitlines() or ["no answer"])[0]


def _public(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in INTERNAL}
