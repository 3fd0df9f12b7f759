#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ray_node
short_description: Ray's service on a node, started again only when what it depends on has changed
version_added: 0.1.0
description:
  - Writes the unit and its files, enables it, and starts it. A started unit is one whose raylet answers, which the unit's
    main process watches from then on.
  - A running unit remembers what it was started with, the text of O(depends) and where the links among them lead. It is
    restarted when that differs from what is on the node now, and never otherwise, whichever run or hand changed it.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.files
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: full
    description: Returns the differences of every file, except secret ones.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  unit:
    description: Name of the systemd service.
    type: str
    required: true
  token:
    description: The cluster's token; written to O(token_path) when given.
    type: str
  token_path:
    description: Where the token is kept.
    type: path
    default: /etc/metalray/ray_token
  token_owner:
    description: The account that runs Ray.
    type: str
  depends:
    description:
      - Paths that a start of the unit depends on. Without one of them that is not among O(files) the module refuses, and
        changes nothing.
    type: list
    elements: path
    required: true
  depends_if_there:
    description: Paths that a start depends on too, and that need not be there. C(/etc/nccl.conf) is not, without GPUs.
    type: list
    elements: path
    default: []
  state_path:
    description: Where the running unit keeps the fingerprint of what it was started with.
    type: path
    default: /run/metalray/ray.started-with
  restart:
    description: Restart in any case, on a worker whose head has just been restarted, say.
    type: bool
    default: false
  running_jobs:
    description:
      - Names of jobs that run on the cluster. While there are any, a running unit is not restarted, which would end them. The
        module refuses, and changes nothing.
    type: list
    elements: str
    default: []
  attempts:
    description:
      - How often a start is tried before it counts as failed.
      - A raylet ends when its agent is not there after 15 seconds, and Ray has no setting for that. On a node that has just
        booted, with nothing in memory yet or much to do, the first start may need longer; the second one finds all in memory.
    type: int
    default: 2
"""

EXAMPLES = r"""
- name: Run Ray on a worker
  become: true
  metalray.cluster.ray_node:
    unit: metalray-worker.service
    files:
      - path: /etc/systemd/system/metalray-worker.service
        content: "{{ lookup('ansible.builtin.template', 'ray.service.j2') }}"
    depends:
      - /etc/systemd/system/metalray-worker.service
      - /etc/metalray/cluster.env
      - /opt/metalray/venv
"""

RETURN = r"""
paths:
  description: The files that changed, or would change in check mode.
  returned: success
  type: list
  elements: str
started:
  description: Whether the unit was started or restarted.
  returned: success
  type: bool
reason:
  description: Why it was, empty when it was not.
  returned: success
  type: str
  sample: what it was started with has changed
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FILES_OPTION, FilesError, Wanted, apply_files
from ..module_utils._ray_supervisor import fingerprint
from ..module_utils._tree import read_text


class Look:
    """A host that nothing is written on."""

    check_mode = True

    def atomic_move(self, src: str, dest: str) -> None:
        raise NotImplementedError


def last_words(journal: str, limit: int = 8) -> str:
    """The last lines of a journal that a reader needs: no frames of a Python traceback."""
    told = [line for line in journal.splitlines() if line.strip() and not line.startswith((" ", "Traceback "))]
    return "\n".join(told[-limit:])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "files": FILES_OPTION,
            "token": {"type": "str", "no_log": True},
            "token_path": {"type": "path", "default": "/etc/metalray/ray_token", "no_log": False},
            "token_owner": {"type": "str", "no_log": False},
            "depends": {"type": "list", "elements": "path", "required": True},
            "depends_if_there": {"type": "list", "elements": "path", "default": []},
            "state_path": {"type": "path", "default": "/run/metalray/ray.started-with"},
            "restart": {"type": "bool", "default": False},
            "running_jobs": {"type": "list", "elements": "str", "default": []},
            "attempts": {"type": "int", "default": 2},
        },
        required_by={"token": ["token_owner"]},
        supports_check_mode=True,
    )
    options = module.params
    unit = options["unit"]
    wanted = [Wanted(**item) for item in options["files"]]
    if options["token"]:
        wanted.append(
            Wanted(options["token_path"], options["token"] + "\n", "0600", options["token_owner"], secret=True)
        )
    depends = options["depends"] + options["depends_if_there"]
    ours = {item.path for item in wanted}
    missing = [path for path in options["depends"] if path not in ours and not os.path.exists(path)]
    if missing and not module.check_mode:
        module.fail_json(
            msg=f"{unit} cannot run without {', '.join(missing)}. Run the stages that make them first "
            "(--tags python_env,network_env)"
        )

    systemctl = module.get_bin_path("systemctl", required=True)

    def ask(*arguments: str) -> str:
        return module.run_command([systemctl, *arguments])[1].strip()

    state = ask("is-active", unit)
    running = state == "active"
    enabled = ask("is-enabled", unit) == "enabled"

    def why(changed: list[str]) -> str:
        """Why a start is due, once or when these files have changed."""
        if not running:
            return f"it was {state or 'not there'}"
        if read_text(options["state_path"]) != fingerprint(depends) or set(changed) & set(depends):
            return "what it was started with has changed"
        return "a restart was asked for" if options["restart"] else ""

    try:
        if running and options["running_jobs"]:
            reason = why(apply_files(Look(), wanted).paths)
            if reason:
                module.fail_json(
                    msg=f"Ray must be restarted on this node ({reason}), which would end what runs on the cluster: "
                    f"{', '.join(options['running_jobs'])}. Nothing was changed here. Wait for it, stop it (playbooks/stop.yml), or "
                    "restart all the same with -e ray_restart_running_jobs=true"
                )
        applied = apply_files(module, wanted)
    except FilesError as error:
        module.fail_json(msg=str(error))
    reason = why(applied.paths if module.check_mode else [])

    result = {
        "changed": applied.changed or bool(reason) or not enabled,
        "paths": applied.paths,
        "diff": applied.diff,
        "started": bool(reason),
        "reason": reason,
    }
    if module.check_mode:
        module.exit_json(**result)

    if applied.changed:
        module.run_command([systemctl, "daemon-reload"], check_rc=True)
    if not enabled:
        module.run_command([systemctl, "enable", "--quiet", unit], check_rc=True)
    if reason:
        for _attempt in range(max(1, options["attempts"])):
            rc, _out, err = module.run_command([systemctl, "restart", unit])
            if rc == 0:
                break
        else:
            # What its processes say tells more than what systemd says about them, where they have said anything.
            journal = ["journalctl", "--lines", "60", "--no-pager", "--output", "cat"]
            own = last_words(module.run_command([*journal, f"_SYSTEMD_UNIT={unit}"])[1])
            words = own or last_words(module.run_command([*journal, "--unit", unit])[1]) or err.strip()
            module.fail_json(
                msg=f"{unit} did not start. Its last words:\n{words}\n"
                f"All of them: journalctl -u {unit}. Mend the cause and run the stage again (--tags ray)",
                **{key: result[key] for key in ("paths", "reason")},
            )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
