#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: training_model
short_description: Fetch a model to where the launcher of terminal-bench-rl looks for it
version_added: 0.1.0
description:
  - Fetches the model with C(hf download) of the virtual environment, unless it is whole already. Whole is a model whose files
    of weights all have the length that their headers tell; a C(config.json) alone, with which the launcher is content, is not.
  - The download is a transient service of systemd. It outlives the connection, goes on where it was interrupted, and reads a
    token from the file of secrets, so that no list of processes shows one.
  - The controller looks at it in short rounds and prints how much is there.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and say whether it would fetch the model.
  diff_mode:
    support: none
    description: A model is no text.
  idempotent:
    support: full
    description: A whole model is left alone.
  async:
    support: none
    description: The rounds are short.
options:
  model:
    description: Repository of the model.
    type: str
    required: true
  revision:
    description: Branch, tag or commit of it.
    type: str
    default: main
  source:
    description: The checkout of terminal-bench-rl; the model goes below its C(models).
    type: path
    required: true
  venv:
    description: The virtual environment, which has C(hf).
    type: path
    required: true
  user:
    description: The account that the model will belong to.
    type: str
    required: true
  endpoint:
    description: Where models come from.
    type: str
    default: https://huggingface.co
  environment:
    description: Environment of the download, such as a proxy.
    type: dict
    default: {}
  reconnect_timeout:
    description: How many seconds in a row the host may be out of reach between two rounds.
    type: int
    default: 600
  follow:
    description: Where to go on. For the action plugin, which runs the module again and again. Not for playbooks.
    type: dict
    suboptions:
      seconds:
        description: How long to wait for the end.
        type: float
        default: 10
"""

EXAMPLES = r"""
- name: Fetch the model
  become: true
  metalray.cluster.training_model:
    model: Qwen/Qwen3-32B
    source: /mnt/shared/src/terminal-bench-rl
    venv: /opt/metalray/venv
    user: ray
"""

RETURN = r"""
path:
  description: Where the model is.
  returned: always
  type: str
  sample: /mnt/shared/src/terminal-bench-rl/models/Qwen_Qwen3-32B
bytes:
  description: How much of it is there.
  returned: always
  type: int
total:
  description: How long all its weights are, or 0 while that is not known.
  returned: always
  type: int
"""

import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import Wanted, apply_files
from ..module_utils._ray import mask, secret_values
from ..module_utils._secrets import merge
from ..module_utils._training import model_bytes, model_dir, model_lacks, tree_bytes

UNIT = "metalray-model"
SECRETS = "/etc/metalray/secrets.env"
ENVIRONMENT = "/run/metalray-model.env"


def service(module: AnsibleModule) -> str:
    """'active', 'failed' or 'inactive'."""
    _status, said, _err = module.run_command(
        ["systemctl", "show", "--property=ActiveState", "--value", f"{UNIT}.service"]
    )
    state = said.strip()
    return "active" if state in ("active", "activating", "deactivating", "reloading") else state


def start(module: AnsibleModule, path: Path, options: dict[str, Any]) -> None:
    tools = [Path(options["venv"]) / "bin" / name for name in ("hf", "huggingface-cli")]
    tool = next((tool for tool in tools if tool.exists()), None)
    if tool is None:
        module.fail_json(
            msg=f"there is no {tools[0]}: huggingface-hub is missing in the environment. Run --tags python_env"
        )
    given = {"HF_ENDPOINT": options["endpoint"], "HF_HUB_DISABLE_PROGRESS_BARS": "1", **options["environment"]}
    # In a file, since a proxy's address may hold an account.
    apply_files(module, [Wanted(ENVIRONMENT, merge("", given), "0600", "root")])
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    command = [
        *(
            "systemd-run",
            "--quiet",
            f"--unit={UNIT}",
            f"--uid={options['user']}",
            f"--property=EnvironmentFile=-{SECRETS}",
        ),
        *(f"--property=WorkingDirectory={options['source']}", "--property=UMask=0022"),
        f"--property=EnvironmentFile={ENVIRONMENT}",
        *(str(tool), "download", options["model"], "--revision", options["revision"], "--local-dir", str(path)),
    ]
    status, _out, err = module.run_command(command)
    if status:
        module.fail_json(msg=f"the download cannot be started: {err.strip()}")


def last_words(module: AnsibleModule, since: float) -> str:
    """What the download said at its end, without a secret in it."""
    _status, said, _err = module.run_command(
        ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={UNIT}", f"--since=@{since:.0f}", "--lines=60"]
    )
    try:
        secrets = secret_values([Path(SECRETS).read_text(encoding="utf-8", errors="replace")])
    except OSError:
        secrets = []
    lines = [
        line
        for line in said.splitlines()
        if line.strip() and not line.startswith((" ", "Traceback", f"{UNIT}.service"))
    ]
    return mask((lines or ["it said nothing"])[-1][:500], secrets)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "source": {"type": "path", "required": True},
            "venv": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "reconnect_timeout": {"type": "int", "default": 600},
            "follow": {"type": "dict", "options": {"seconds": {"type": "float", "default": 10}}},
        },
        supports_check_mode=True,
    )
    options = module.params
    path = Path(model_dir(options["source"], options["model"]))
    begun = options["follow"] is not None

    def about() -> dict[str, Any]:
        return {"path": str(path), "bytes": tree_bytes(path), "total": model_bytes(path)}

    lacks = model_lacks(path)
    state = service(module)
    if not lacks and state != "active":
        module.exit_json(changed=False, finished=True, **about())
    if module.check_mode:
        module.exit_json(changed=True, finished=True, msg=f"would fetch {options['model']}: {path} {lacks}", **about())
    since = time.time() - 3600
    if state != "active":
        if begun:
            module.fail_json(
                msg=f"the download of {options['model']} ended, and {path} {lacks}: {last_words(module, since)}. Mend what it says "
                "(a gated model wants HF_TOKEN in training_secrets) and run --tags training again: it goes on from what is there",
                **about(),
            )
        if not Path(options["source"]).is_dir():
            module.fail_json(msg=f"there is no {options['source']}. Run --tags python_env first", **about())
        start(module, path, options)
    until = time.monotonic() + (options["follow"] or {"seconds": 2})["seconds"]
    while service(module) == "active" and time.monotonic() < until:
        time.sleep(0.5)
    whole = service(module) != "active" and not model_lacks(path)
    if whole:
        os.sync()
    module.exit_json(changed=not begun, finished=whole, **about())


if __name__ == "__main__":
    main()
