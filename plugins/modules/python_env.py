#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: python_env
short_description: Build a virtual environment from a lock and switch to it
version_added: 0.1.0
description:
  - Installs a pinned uv, builds a virtual environment from a lock with hashes beside the one in use, checks it, and
    then lets a link lead to it in one step. All in one remote call.
  - A build that fails or is interrupted leaves the environment in use alone and nothing in the way of the next run.
  - Each run compares what is installed with what was built. An environment that was changed by other hands since is
    built anew, beside the changed one, which stays until the next build. Seen are packages added, removed, installed
    again or in another version, edits of installed files (by their size, or where a file is newer than its
    installation), another version of Python, stray modules, and wrong ownership.
  - An environment is named by a hash of its lock (without comments and order), Python's full version and uv's
    version, so that equal names mean equal environments on all nodes. One that is still there from before is switched
    to without a build.
extends_documentation_fragment:
  - metalray.cluster.uv
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description:
      - Can run in check mode and report what it would build. The list of packages is then worked out from the lock.
  diff_mode:
    support: full
    description: Returns the list of packages with their versions before and after.
  idempotent:
    support: full
    description: A second run with the same options changes nothing and starts neither uv nor pip.
options:
  lock:
    description:
      - The text of the lock, in the format of requirements files. Every package is pinned to one version and has
        hashes, or to the whole commit of a git repository.
      - Kept out of logs for its size.
    type: str
    required: true
  wheelhouse:
    description:
      - Directory with all packages of O(lock) as wheels, and with uv's, as M(metalray.cluster.wheelhouse) makes it. Packages
        are then taken from there alone, and no index is asked. Empty is none.
    type: str
    default: ''
  wheels:
    description:
      - RV(metalray.cluster.wheelhouse#module:lock), the lock of the wheels that are in O(wheelhouse). Nothing else is
        installed from there, whatever lies there.
      - May be empty in check mode only.
    type: str
    default: ''
  python:
    description:
      - The Python that the environment is based on, as an absolute path or as a version such as V(3.12.16).
      - For a version, the node's own Python is taken where it fits; else uv fetches one below O(root), from where the
        environment variables E(UV_PYTHON_INSTALL_MIRROR) and E(UV_PYTHON_DOWNLOADS_JSON_URL) say if they are set.
      - V(3.12), without a patch, is whatever 3.12 the node has, or the newest that uv knows; nodes may differ in it.
    type: str
    default: /usr/bin/python3
  root:
    description: Directory on the node's own disk for the environments, uv and its cache. It will belong to root.
    type: path
    default: /opt/metalray
  venv:
    description: The link that leads to the environment in use.
    type: path
    default: /opt/metalray/venv
  offline:
    description:
      - Use no index and no network. Needs O(find_links).
      - Python is fetched only where one of the two environment variables named at O(python) leads to files on the node.
    type: bool
    default: false
  allow_builds:
    description:
      - Build packages that have no wheel from their source, on each node. What such a build fetches for itself is not
        locked.
    type: bool
    default: false
  compile:
    description:
      - Compile all modules ahead. Nobody but root can write into the environment later, so that without it every start
        of a process compiles anew what O(imports) has not touched.
    type: bool
    default: true
  imports:
    description: Modules to import at the end of a build, before the switch, as a proof that they load on this node.
    type: list
    elements: str
    default: []
  source_paths:
    description:
      - Directories where Python finds modules besides the packages, as absolute paths, such as those of a training source on the
        shared directory. They come after the packages, and need not be there yet.
      - They are part of what names the environment. Where they end up is one file C(.pth).
    type: list
    elements: str
    default: []
  keep:
    description:
      - How many environments are kept beside the one in use, last used first. With V(0) one that processes still run
        from is removed under them.
    type: int
    default: 1
  rollback:
    description:
      - Instead of an environment of O(lock), use the one that was in use last before it. A second run leaves that alone; a run
        without it goes back to the one of O(lock), which is still there.
      - Fails where there is none of another lock. Nothing is built, fetched or removed.
    type: bool
    default: false
  min_free_bytes:
    description: Free bytes on the disk of O(root) below which no build starts.
    type: int
    default: 0
  timeout:
    description: Seconds for a whole build.
    type: int
    default: 1800
  environment:
    description: Environment variables for uv and pip, such as V(https_proxy). Accounts in them are not shown.
    type: dict
    default: {}
notes:
  - Needs the module venv of the system's Python (Debian's package python3-venv) to install uv.
"""

EXAMPLES = r"""
- name: Bring the node to the lock
  become: true
  metalray.cluster.python_env:
    lock: "{{ lookup('ansible.builtin.file', 'locks/smoke.txt') }}"
    lock_name: locks/smoke.txt
    uv_version: 0.13.9
    uv_lock: "{{ lookup('ansible.builtin.file', 'uv.txt') }}"
    min_free_bytes: 10737418240

- name: Install from a directory of wheels, without a network
  become: true
  metalray.cluster.python_env:
    lock: "{{ lookup('ansible.builtin.file', 'locks/smoke.txt') }}"
    uv_version: 0.13.9
    uv_lock: "{{ lookup('ansible.builtin.file', 'uv.txt') }}"
    find_links: [/mnt/shared/wheels]
    offline: true
"""

RETURN = r"""
path:
  description: The link.
  returned: success
  type: str
  sample: /opt/metalray/venv
target:
  description: The environment that the link leads to, or would lead to.
  returned: success
  type: str
  sample: /opt/metalray/venvs/3f0c9a1be2d4
hash:
  description: Hash of the lock, Python's and uv's version.
  returned: success
  type: str
python:
  description: Full version of Python.
  returned: success
  type: str
  sample: 3.11.2
packages:
  description: Versions of the installed packages by name.
  returned: success
  type: dict
  sample: {ray: 2.60.0}
built:
  description: Whether an environment was built. A switch to one that was there is a change without a build.
  returned: success
  type: bool
drift:
  description: How the environment that was in use differed from what had been built, one sentence each.
  returned: success
  type: list
  elements: str
  sample: [six 1.17.0 was removed]
removed:
  description: Environments that were removed.
  returned: success
  type: list
  elements: str
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._access import apply_environment, hide_accounts
from ..module_utils._lock import EnvError
from ..module_utils._python_env import Settings, ensure
from ..module_utils._uv import ARGUMENTS


def main() -> None:
    strings = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            # No secret, but hundreds of kilobytes that no log of the node should carry on every run.
            "lock": {"type": "str", "required": True, "no_log": True},
            "wheelhouse": {"type": "str", "default": ""},
            "wheels": {"type": "str", "default": "", "no_log": True},
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "root": {"type": "path", "default": "/opt/metalray"},
            "venv": {"type": "path", "default": "/opt/metalray/venv"},
            "uv_lock": {**ARGUMENTS["uv_lock"], "no_log": True},
            "offline": {"type": "bool", "default": False},
            "allow_builds": {"type": "bool", "default": False},
            "compile": {"type": "bool", "default": True},
            "imports": strings,
            "source_paths": strings,
            "keep": {"type": "int", "default": 1},
            "rollback": {"type": "bool", "default": False},
            "min_free_bytes": {"type": "int", "default": 0},
            "timeout": {"type": "int", "default": 1800},
            "environment": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    for name, least in (("keep", 0), ("min_free_bytes", 0), ("timeout", 1)):
        if module.params[name] < least:
            module.fail_json(msg=f"python_env_{name} is {module.params[name]}: allowed is {least} or more")
    if module.params["wheelhouse"] and not (module.params["wheels"] or module.params["rollback"] or module.check_mode):
        module.fail_json(
            msg="wheelhouse is set, and wheels is empty: give it the lock that metalray.cluster.wheelhouse returned"
        )
    apply_environment(module)
    hide_accounts(module, [module.params["index_url"], *module.params["extra_index_urls"]])
    values = {**module.params, "root": Path(module.params["root"]), "venv": Path(module.params["venv"])}
    del values["environment"]
    try:
        outcome = ensure(Settings(**values), module.check_mode)
    except EnvError as error:
        module.fail_json(msg=str(error))
    result = {name: value for name, value in asdict(outcome).items() if value is not None}
    module.exit_json(path=str(values["venv"]), **result)


if __name__ == "__main__":
    main()
