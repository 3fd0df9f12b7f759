#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: wheelhouse
short_description: Fetch or build every package of a lock once, for all nodes
version_added: 0.1.0
description:
  - Brings a directory to hold every package of a lock as a wheel, and uv's own, so that all nodes install from there with
    M(metalray.cluster.python_env) and ask no index.
  - Run it on one node, the builder. The directory is named by a hash of the lock and of Python, below O(path) on a file system
    that all nodes share.
  - Files are fetched side by side and checked against the hashes of the lock. An interrupted run goes on where it broke off;
    a file that has gone, was cut short or was changed is fetched again.
  - A package that has no wheel, or that the lock names by the commit of a git repository, is built once, from the packages of
    the lock and nothing else, where O(allow_builds) permits it. What was built is used again until its source, Python, the GPUs
    or a package that it depends on change.
  - Whoever may write to the shared directory could change the wheels. So the module keeps a record of them below O(root), and
    returns the lock of exactly these wheels, by which nodes install.
  - Fetching and building go on in the background on the node, and how far they are is shown. A lost connection, or a run that
    is stopped, does not end them; the next run finds them again.
extends_documentation_fragment:
  - metalray.cluster.uv
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would fetch, as far as the lock tells without asking an index.
  diff_mode:
    support: full
    description: Returns the list of wheels before and after.
  idempotent:
    support: full
    description: Where all wheels are there as they were put there, nothing is asked, started or written.
options:
  lock:
    description:
      - The text of the lock, in the format of requirements files. Every package is pinned to one version and has
        hashes, or to the whole commit of a git repository.
    type: str
    required: true
  path:
    description: Directory for wheelhouses. The one above it must be there.
    type: path
    required: true
  user:
    description:
      - The account that writes there, for root may not on NFS. Without it, the account that runs the module.
    type: str
    default: ''
  wheels:
    description:
      - Wheels that stand for entries of the lock, each as an address or a path on the builder, followed by C(#sha256=) and its
        hash. Its name and version must be those of the entry, whatever the name of its file adds.
    type: list
    elements: str
    default: []
  allow_builds:
    description: Build packages that have no wheel.
    type: bool
    default: false
  build:
    description:
      - With V(false), nothing is built, and RV(to_build) names what is left to build, so that a compiler is installed only where it is
        needed.
    type: bool
    default: true
  cuda_architectures:
    description: Compute capabilities of the GPUs to build for, such as V(9.0). A build chooses for itself without them.
    type: list
    elements: str
    default: []
  python:
    description: The Python that environments are based on, as in M(metalray.cluster.python_env).
    type: str
    default: /usr/bin/python3
  root:
    description: Directory on the node's own disk for uv, its cache, and the record.
    type: path
    default: /opt/metalray
  offline:
    description: Use no index and no network. Needs O(find_links).
    type: bool
    default: false
  keep:
    description: How many wheelhouses that this node made are kept beside the one asked for.
    type: int
    default: 1
  timeout:
    description: Seconds for all fetching and building.
    type: int
    default: 14400
  environment:
    description: Environment variables for uv, pip, git and what builds, such as V(https_proxy). Accounts in them are not shown.
    type: dict
    default: {}
  follow:
    description: The run to follow. Used by the action, which calls the module in short rounds.
    type: str
    default: ''
  wait:
    description: Seconds after which the module returns and leaves the work to the background. Used by the action.
    type: int
    default: 0
notes:
  - Needs the module venv of the system's Python (Debian's package python3-venv) to install uv, and a compiler to build.
"""

EXAMPLES = r"""
- name: Fetch what the lock names, once
  become: true
  run_once: true
  delegate_to: node1
  metalray.cluster.wheelhouse:
    lock: "{{ lookup('ansible.builtin.file', 'locks/smoke.txt') }}"
    lock_name: locks/smoke.txt
    path: /mnt/shared/wheels
    user: ray
    uv_version: 0.13.9
    uv_lock: "{{ lookup('ansible.builtin.file', 'uv.txt') }}"
  register: wheels

- name: Install it on every node
  become: true
  metalray.cluster.python_env:
    lock: "{{ lookup('ansible.builtin.file', 'locks/smoke.txt') }}"
    lock_name: locks/smoke.txt
    wheelhouse: "{{ wheels.path }}"
    wheels: "{{ wheels.lock }}"
    uv_version: 0.13.9
    uv_lock: "{{ lookup('ansible.builtin.file', 'uv.txt') }}"
"""

RETURN = r"""
path:
  description: The wheelhouse.
  returned: success
  type: str
  sample: /mnt/shared/wheels/3f0c9a1be2d4
lock:
  description:
    - The lock of the wheels that are there, one hash a package. Empty in check mode and with O(build=false), where something is
      still to do.
  returned: success
  type: str
python:
  description: Full version of Python.
  returned: success
  type: str
  sample: 3.11.2
files:
  description:
    - The wheels by file name, each with C(name), C(version), C(sha256), C(size), C(origin) (V(index), V(given) or V(built)) and
      C(source).
  returned: success
  type: dict
fetched:
  description: Files that were fetched, or in check mode the packages that would be.
  returned: success
  type: list
  elements: str
built:
  description: Wheels that were built.
  returned: success
  type: list
  elements: str
to_build:
  description: Packages that are left to build.
  returned: success
  type: list
  elements: str
removed:
  description: Wheelhouses that were removed.
  returned: success
  type: list
  elements: str
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _detached as detached
from ..module_utils._access import apply_environment, hide_accounts
from ..module_utils._lock import EnvError
from ..module_utils._uv import ARGUMENTS
from ..module_utils._wheelhouse import Settings, current, ensure


def result_of(settings: Settings, check_mode: bool, show: Callable[[str], None]) -> dict[str, Any]:
    try:
        outcome = ensure(settings, check_mode, show)
    except EnvError as error:
        return {"failed": True, "msg": str(error)}
    return {name: value for name, value in asdict(outcome).items() if value is not None}


def run(settings: Settings, check_mode: bool, follow: str, wait: int) -> dict[str, Any]:
    """Everything at once, or a round of it where the action asks in rounds."""
    runs = settings.root / "wheels" / "runs"
    if follow:
        return detached.follow(runs, follow, wait)
    if check_mode or not wait or current(settings) is not None:
        return {**result_of(settings, check_mode, lambda said: None), "finished": True}
    about = repr(settings)
    name = detached.running(runs, about) or detached.start(runs, about, lambda show: result_of(settings, False, show))
    return detached.follow(runs, name, wait)


def main() -> None:
    strings = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "lock": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "user": {"type": "str", "default": ""},
            "wheels": strings,
            "allow_builds": {"type": "bool", "default": False},
            "build": {"type": "bool", "default": True},
            "cuda_architectures": strings,
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "root": {"type": "path", "default": "/opt/metalray"},
            "offline": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 1},
            "timeout": {"type": "int", "default": 14400},
            "environment": {"type": "dict", "default": {}},
            "follow": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
        # Hundreds of kilobytes that no log of the node should carry on every run; as a secret, the lock would be cut out of what
        # is returned.
        no_log=True,
    )
    apply_environment(module)
    hide_accounts(module, [module.params["index_url"], *module.params["extra_index_urls"], *module.params["wheels"]])
    values = {name: value for name, value in module.params.items() if name != "environment"}
    follow, wait = values.pop("follow"), values.pop("wait")
    settings = Settings(**{**values, "root": Path(values["root"]), "path": Path(values["path"])})
    try:
        result = run(settings, module.check_mode, follow, wait)
    except (EnvError, OSError) as error:
        module.fail_json(msg=str(error))
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
