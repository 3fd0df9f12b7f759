#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: async_result
short_description: Wait for a job that was started with async and poll=0
version_added: 0.1.0
description:
  - Waits on the node until the job has ended, returns what its module returned, and takes its file off the node.
  - M(ansible.builtin.async_status) with C(until) asks over SSH again and again, prints a line that begins with FAILED for
    every time on every host, and waits in vain for a job whose node was restarted.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: none
    description: There is no job to wait for in check mode.
  diff_mode:
    support: N/A
    description: Returns what the job returned.
  idempotent:
    support: none
    description: A job's result can be fetched once.
options:
  results_file:
    description: C(results_file) of the task that started the job.
    type: path
    required: true
  timeout:
    description: Seconds after which waiting is a failure.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Wait for the job
  become: true
  metalray.cluster.async_result:
    results_file: "{{ started.results_file }}"
    timeout: 300
"""

RETURN = r"""
msg:
  description: Why there is no result. Everything else is the job's own.
  returned: failure
  type: str
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def runs(job: str) -> bool:
    """Whether Ansible's wrapper of the job lives: the job's number is one of its words."""
    number = job.partition(".")[0].encode()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and number in Path("/proc", entry, "cmdline").read_bytes().split(b"\0"):
                return True
    return False


def read_result(file: Path) -> dict[str, Any] | None:
    """None while there is none: the wrapper writes a file with C(started) first."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and "started" not in result else None


def no_result(job: str, result: dict[str, Any]) -> str:
    """What to say where the words are the wrapper's and not a module's; empty where they are a module's."""
    said = str(result.get("msg", ""))
    if "child_pid" in result and said == "Timeout exceeded":
        return f"the job {job} was killed, because it had not ended in the time that its task gives it (async)"
    if "cmd" in result and said.startswith("Traceback"):
        words = str(result.get("stderr") or result.get("data") or "it printed nothing").strip().splitlines()
        return f"the job {job} was killed or crashed: {words[-1][:300]}"
    return ""


def wait_for(file: Path, seconds: float) -> dict[str, Any] | str:
    """The job's result, or why there is none."""
    deadline = time.monotonic() + seconds
    while True:
        running = runs(file.name)
        result = read_result(file)
        if result is not None:
            return result
        if not running:
            return (
                f"the job {file.name} has left no result: it was killed, or the node was restarted. Look at the node's log "
                f"(journalctl), then run this again"
            )
        if time.monotonic() > deadline:
            return f"the job {file.name} has not ended after {seconds} s. It goes on by itself; run this again later"
        time.sleep(0.5)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "results_file": {"type": "path", "required": True},
            "timeout": {"type": "int", "required": True},
        },
    )
    file = Path(module.params["results_file"])
    result = wait_for(file, module.params["timeout"])
    with contextlib.suppress(OSError):
        file.unlink()
    message = result if isinstance(result, str) else no_result(file.name, result)
    if message or isinstance(result, str):
        module.fail_json(msg=message)
    result.pop("invocation", None)
    if result.pop("failed", False):
        module.fail_json(**{"msg": "the job failed", **result})
    module.exit_json(**result)


if __name__ == "__main__":
    main()
