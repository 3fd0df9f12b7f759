#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_facts
short_description: Read once what a node is
version_added: 0.1.0
description:
  - Reads everything that M(metalray.cluster.cluster_plan) needs to know of a node in one call, the operating system,
    the account, CPUs, memory, GPUs, limits, disks, and every address that could carry cluster traffic.
  - Changes nothing. Run it with C(become) so that it also proves that the connecting account may become root.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  user:
    description: The account that is to own and run the work. By default the account that Ansible connected with.
    type: str
  shared_dir:
    description: The shared directory; whether it is there and what is mounted on it is reported.
    type: path
    default: /mnt/shared
"""

EXAMPLES = r"""
- name: Read what the nodes are
  become: true
  metalray.cluster.node_facts:
"""

RETURN = r"""
ansible_facts:
  description: The facts, under one name.
  returned: success
  type: dict
  contains:
    metalray_node:
      description: What this node is.
      type: dict
      contains:
        os:
          description: C(id), C(version), C(codename) and C(name) from /etc/os-release.
          type: dict
        candidates:
          description: Addresses that could carry cluster traffic, the likeliest first.
          type: list
          elements: dict
        user:
          description: C(name), C(uid), C(gid), C(group) and C(home), or null where the account does not exist.
          type: dict
        hard_limits:
          description: C(nofile) in files and C(memlock) in bytes of the first process; null is unlimited.
          type: dict
        cpus:
          description: CPUs that processes may use.
          type: int
        memory_bytes:
          description: Installed memory in bytes.
          type: int
        gpus:
          description: NVIDIA GPUs that the driver has taken.
          type: int
"""

import os
import pwd

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._node import read_node


def connecting_user() -> str:
    """Who connected, also after sudo or another become plugin that keeps the login's name."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def main() -> None:
    module = AnsibleModule(
        argument_spec={"user": {"type": "str"}, "shared_dir": {"type": "path", "default": "/mnt/shared"}},
        supports_check_mode=True,
    )
    ip = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])

    def run_ip(arguments: list[str]) -> str:
        rc, out, err = module.run_command([ip, *arguments])
        if rc != 0:
            module.fail_json(msg=f"'ip {' '.join(arguments)}' failed: {err.strip()}. The package iproute2 is needed.")
        return out

    node = read_node(run_ip, module.params["user"] or connecting_user(), module.params["shared_dir"])
    module.exit_json(changed=False, ansible_facts={"metalray_node": node})


if __name__ == "__main__":
    main()
