#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: training_node_facts
short_description: Look what a node has for a run of terminal-bench-rl
version_added: 0.1.0
description:
  - Looks whether the account can use Docker, whether the base images of the tasks are there or can be fetched, which secrets
    the node has, by name, how large its shared memory is, what is free on the shared directory, and whether the model is whole.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  user:
    description: The account that runs Ray.
    type: str
    required: true
  source:
    description: The checkout of the repository, on the shared directory.
    type: path
    required: true
  model:
    description: Repository of the model, such as V(Qwen/Qwen3-32B). Empty is none.
    type: str
    default: ''
  model_endpoint:
    description: Where models come from.
    type: str
    default: https://huggingface.co
  environment:
    description: Environment for the looks into the world, such as a proxy.
    type: dict
    default: {}
  secrets_path:
    description: The file of secrets.
    type: path
    default: /etc/metalray/secrets.env
  timeout:
    description: Seconds for each answer of a registry, of Docker, and of the source of models.
    type: int
    default: 15
notes:
  - Run it with C(become). A connection that is older than the account's membership in Docker's group would tell nothing.
"""

EXAMPLES = r"""
- name: Look what the node has
  become: true
  metalray.cluster.training_node_facts:
    user: ray
    source: /mnt/shared/src/terminal-bench-rl
    model: Qwen/Qwen3-32B
"""

RETURN = r"""
ansible_facts:
  description: What was found.
  returned: success
  type: dict
  contains:
    training_node:
      description: What was found.
      returned: success
      type: dict
      contains:
        user:
          description: The account.
          type: str
        docker:
          description: Why the account cannot use Docker. Empty where it can.
          type: str
        registries:
          description: Registries that images are needed from and that do not answer, with the reason.
          type: dict
        secrets:
          description: Names of the secrets that the node has.
          type: list
          elements: str
        shm_bytes:
          description: Size of the shared memory.
          type: int
        free_bytes:
          description: What is free on the file system of O(source).
          type: int
        model:
          description: Its C(path), what it C(lacks), how many C(bytes) are there, and why it is C(unreachable).
          type: dict
"""

import getpass
import os
import subprocess
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ..module_utils._secrets import parse
from ..module_utils._training import by_registry, model_dir, model_lacks, tree_bytes, wanted_images


def docker(user: str, arguments: Sequence[str], timeout: float) -> tuple[int, str]:
    """Status and the last line of what the engine's client says to the account, with the groups that it has by now."""
    as_user = [] if getpass.getuser() == user else ["runuser", "-u", user, "--"]
    try:
        done = subprocess.run(
            [*as_user, "docker", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return 127, "docker is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {timeout:.0f} s"
    return done.returncode, ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]


def unreachable(url: str, timeout: float) -> str:
    """Why a server does not answer. That it wants to know who asks is an answer."""
    try:
        open_url(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', error)}"
    return ""


def look(options: dict[str, Any]) -> dict[str, Any]:
    source, timeout, user = Path(options["source"]), options["timeout"], options["user"]
    status, said = docker(user, ["version", "--format", "{{.Server.Version}}"], timeout)
    absent = [
        image
        for image in wanted_images(source)
        if status == 0 and docker(user, ["image", "inspect", image], timeout)[0] != 0
    ]
    registries = {name: unreachable(f"https://{name}/v2/", timeout) for name in by_registry(absent)}
    try:
        secrets = sorted(
            name for name, value in parse(Path(options["secrets_path"]).read_text(encoding="utf-8")).items() if value
        )
    except OSError:
        secrets = []
    path = Path(model_dir(str(source), options["model"])) if options["model"] else None
    lacks = model_lacks(path) if path else ""
    disk, memory = os.statvfs(source), os.statvfs("/dev/shm")
    return {
        "user": user,
        "docker": said if status else "",
        "registries": {name: why for name, why in registries.items() if why},
        "secrets": secrets,
        "shm_bytes": memory.f_frsize * memory.f_blocks,
        "free_bytes": disk.f_frsize * disk.f_bavail,
        "model": {
            "path": str(path or ""),
            "lacks": lacks,
            "bytes": tree_bytes(path) if path and lacks else 0,
            "unreachable": unreachable(options["model_endpoint"], timeout) if lacks else "",
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "source": {"type": "path", "required": True},
            "model": {"type": "str", "default": ""},
            "model_endpoint": {"type": "str", "default": "https://huggingface.co"},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "secrets_path": {"type": "path", "default": "/etc/metalray/secrets.env"},
            "timeout": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    os.environ.update({name: str(value) for name, value in module.params["environment"].items()})
    try:
        facts = look(module.params)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['source']}: {error.strerror}. Run --tags nfs,python_env first"
        )
    module.exit_json(changed=False, ansible_facts={"training_node": facts})


if __name__ == "__main__":
    main()
