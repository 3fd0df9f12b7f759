#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_secrets
short_description: Keep the secrets of the jobs in a file that Ray's service reads
version_added: 0.1.0
description:
  - Writes names and values into one file, readable by its owner alone, that systemd gives to the Ray service as environment.
  - No value is in the result, in the difference, in the node's log or in the list of processes.
  - Without any secret the file is left as it is, but for its owner and mode.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: partial
    description: Says that the file differs, and never how.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  secrets:
    description:
      - Names of environment variables and their values.
      - A name with an empty value keeps the value that the node has. One that is no longer named is removed.
      - Names that begin with C(RAY_) or C(LD_), and those that a service needs, such as C(PATH), are refused.
    type: dict
    required: true
  path:
    description: The file.
    type: path
    default: /etc/metalray/secrets.env
  owner:
    description: The account that runs Ray. The service compares the file with what it was started with.
    type: str
    required: true
notes:
  - Set C(no_log) on the task too. Callback plugins that print a task's arguments know nothing of a module's own options.
  - A running service has what it was started with. Ray is restarted by M(metalray.cluster.ray_node) where the file is among
    what it depends on.
"""

EXAMPLES = r"""
- name: Give the jobs their keys
  become: true
  metalray.cluster.node_secrets:
    secrets:
      WANDB_API_KEY: "{{ lookup('ansible.builtin.env', 'WANDB_API_KEY') }}"
      HF_TOKEN: "{{ vault_hf_token }}"
    owner: ray
  no_log: true
"""

RETURN = r"""
names:
  description: Names of the secrets that the file has, or would have in check mode.
  returned: success
  type: list
  elements: str
  sample: [HF_TOKEN, WANDB_API_KEY]
paths:
  description: The file, where it changed or would change in check mode.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FilesError, Wanted, apply_files, as_result
from ..module_utils._secrets import check, merge, parse


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "secrets": {"type": "dict", "required": True, "no_log": True},
            "path": {"type": "path", "default": "/etc/metalray/secrets.env"},
            "owner": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    problems = check(options["secrets"])
    if problems:
        module.fail_json(msg="; ".join(f"training_secrets {problem}" for problem in problems))
    path = Path(options["path"])
    try:
        before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        text = merge(before, options["secrets"])
        wanted = [Wanted(str(path), text, mode="0600", owner=options["owner"], secret=True)] if text else []
        applied = apply_files(module, wanted)
    except (FilesError, OSError) as error:
        module.fail_json(msg=f"the secrets cannot be written: {error}")
    module.exit_json(names=sorted(parse(text)), **as_result(applied))


if __name__ == "__main__":
    main()
