#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: package_versions_facts
short_description: Versions in a virtual environment and of the system below it
version_added: 0.1.0
description:
  - Reads the versions of all packages of a virtual environment from its metadata, without importing them, and those of
    Python, the NVIDIA driver, CUDA, NCCL, the kernel and glibc.
  - Finds what was changed by hand although no version tells of it, by comparing each file with the list of its package
    (its size, and its hash where it is newer than its installation), and the commits of sources that the environment
    leads to.
  - Ends within a minute, also where the environment or a source lies on a share whose server is gone. A source there
    says C(no answer).
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode. An environment that is not there yet then gives an empty fact.
  diff_mode:
    support: N/A
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
  facts:
    support: full
    description: Returns an C(ansible_facts) dictionary that is merged with the existing host facts.
options:
  venv:
    description: The virtual environment, or a link to it.
    type: path
    default: /opt/metalray/venv
  fact:
    description: Name of the fact.
    type: str
    default: package_versions
seealso:
  - module: metalray.cluster.version_parity
"""

EXAMPLES = r"""
- name: Read the versions
  metalray.cluster.package_versions_facts:

- name: Show one of them
  ansible.builtin.debug:
    msg: "{{ ansible_facts['package_versions']['packages']['torch'] }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts, under one name.
  returned: success
  type: dict
  contains:
    package_versions:
      description: The versions. Empty in check mode where there is no environment yet.
      type: dict
      contains:
        venv:
          description: The path asked for.
          type: str
          sample: /opt/metalray/venv
        path:
          description: The environment that it leads to.
          type: str
          sample: /opt/metalray/venvs/3f0c9a1be2d4
        hash:
          description:
            - The hash that M(metalray.cluster.python_env) gave it, of its lock, Python and uv. Empty for one made by other
              means.
          type: str
        lock:
          description: Name of the lock that it was built from. Empty where that is not known.
          type: str
          sample: smoke.txt
        wheels:
          description: Digest of the wheels in it that the lock has no hash of. Empty where there are none.
          type: str
        python:
          description: Full version of Python.
          type: str
          sample: 3.11.2
        interpreter:
          description: The Python that the environment is based on.
          type: str
          sample: /usr/bin/python3.11
        packages:
          description: Version of each installed package by its normalised name.
          type: dict
          sample: {ray: 2.60.0, torch: 2.13.0+cu130}
        contents:
          description: Digest of the files of each package, as its list has them. Equal where the same file was installed.
          type: dict
          sample: {ray: 3f0c9a1be2d4}
        changed:
          description: Packages that other hands changed since they were installed.
          type: dict
          contains:
            how:
              description: C(edited), or C(reinstalled) in the same version.
              type: str
            digest:
              description: Equal on nodes where the same was done.
              type: str
            files:
              description: The first files that were edited or removed.
              type: list
              elements: str
        strays:
          description: What lies among the packages, belongs to none, and came after the environment was built.
          type: list
          elements: str
          sample: [sitecustomize.py]
        sources:
          description:
            - Sources that the environment leads to (editable packages and C(.pth) files), and packages installed from git,
              by the name of the package or by the path.
          type: dict
          contains:
            path:
              description: Where it lies. Empty for a package that was installed from git.
              type: str
            commit:
              description: The commit that is checked out, or C(no git), C(unknown), C(missing), C(no answer).
              type: str
            edits:
              description:
                - Digest of the edits of tracked files, empty for none. Null where git is not on the node, or refuses since the
                  repository is another account's.
              type: str
        system:
          description: What lies below it. An empty text stands for what the node does not have.
          type: dict
          contains:
            os:
              description: Name and version of the distribution.
              type: str
            kernel:
              description: Release of the kernel.
              type: str
            glibc:
              description: Version of the C library.
              type: str
            driver:
              description: Version of the NVIDIA driver that is loaded.
              type: str
            cuda:
              description: Version of the CUDA toolkit in C(/usr/local/cuda).
              type: str
            nccl:
              description: Version of the NCCL that torch loads, from its package.
              type: str
            nccl_system:
              description: Version of the NCCL library of the system.
              type: str
            nccl_library:
              description:
                - The file that torch loads as NCCL, its package's or else the system's. Empty for a torch without CUDA.
                - Not seen is what C(LD_PRELOAD) or C(VLLM_NCCL_SO_PATH) put in its place.
              type: str
              sample: site-packages/nvidia/nccl/lib/libnccl.so.2
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._versions import VersionsError, read_bounded


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path", "default": "/opt/metalray/venv"},
            "fact": {"type": "str", "default": "package_versions"},
        },
        supports_check_mode=True,
    )
    venv = Path(module.params["venv"])
    try:
        versions = read_bounded(venv)
    except VersionsError as error:
        module.fail_json(msg=f"the versions in {venv} cannot be read: {error}")
    if not versions and not module.check_mode:
        module.fail_json(
            msg=f"there is no virtual environment at {venv}. Build it first: "
            "ansible-playbook -i INVENTORY metalray.cluster.site --tags python_env"
        )
    module.exit_json(ansible_facts={module.params["fact"]: versions})


if __name__ == "__main__":
    main()
