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
    the account, CPUs, memory, GPUs, limits, disks, every address that could carry cluster traffic, and the fabric
    (interfaces, RDMA ports, NVLink, the way from GPUs to network cards, NCCL, and what environment files set).
  - Addresses come from the Python module C(netifaces) where the node has it (C(python3-netifaces), or C(netifaces2) from
    PyPI), and from C(ip -j address) where it has not; both give the same answer.
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
  venv:
    description: The Python environment whose NCCL is reported.
    type: path
    default: /opt/metalray/venv
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
          description:
            - Addresses that could carry cluster traffic, the likeliest first.
            - C(first) is false where another address of the interface and family is listed before it, which Gloo and NCCL
              would take instead.
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
        fabric:
          description: How processes on this node can talk to one another and to other nodes.
          type: dict
          contains:
            interfaces:
              description: Every network interface, also those that cannot be used. V(null) is unknown.
              type: list
              elements: dict
              sample: [{name: enp27s0f0np0, up: true, arp_type: 1, mtu: 9000, speed_mbps: 100000, driver: mlx5_core,
                physical: true}]
            gpus:
              description: NVIDIA GPUs on the PCI bus, also those that no driver has taken.
              type: list
              elements: dict
              sample: [{bdf: "0000:18:00.0", model: NVIDIA H200, numa: 0, driver: true}]
            nvlink:
              description:
                - Whether NVLink joins V(all), V(some) or V(none) of the pairs of GPUs. V(none) too for fewer than two.
                - V(unknown) where nvidia-smi is not there or does not tell, and where GPUs are split (MIG).
              type: str
            rdma:
              description:
                - Every port of an RDMA device, those of EFA excepted.
                - C(roce_gids) are those of RoCE v2 with an IPv4 or a global IPv6 address. C(distance) is that to the nearest
                  GPU on the PCI bus, V(PIX), V(PXB), V(PHB) or V(SYS) in NCCL's words, or V(null) if unknown.
              type: list
              elements: dict
              sample: [{device: mlx5_0, port: 1, driver: mlx5_core, active: true, state: ACTIVE, physical_state: LinkUp,
                link_layer: Ethernet, rate_mbps: 400000, interfaces: [enp27s0f0np0], roce_gids: [{index: 3,
                address: 10.15.22.33, interface: enp27s0f0np0}], bdf: "0000:1b:00.0", numa: 0, distance: PIX}]
            efa:
              description: Whether an Elastic Fabric Adapter is there.
              type: bool
            gpudirect:
              description: Whether network cards may reach the memory of GPUs, by C(peermem) or by C(dmabuf).
              type: dict
            imex:
              description: Whether there is a channel for NVLink between nodes.
              type: bool
            plugins:
              description: External network plugins for NCCL.
              type: list
              elements: str
            nccl:
              description: C(version) and C(path) of the NCCL in O(venv), or else of the system's. V(null) without any.
              type: dict
            versions:
              description: Versions of C(nccl), C(torch) and C(vllm), each V(null) where it is not there.
              type: dict
            shm_bytes:
              description: Size of /dev/shm in bytes.
              type: int
            acs_bridges:
              description: PCI bridges above a GPU whose ACS sends what GPUs write to one another through the CPU.
              type: list
              elements: str
            environment:
              description:
                - Variables of NCCL, Gloo, torch, vLLM and what lies below them, as environment files, login scripts, systemd and
                  nccl.conf set them; what this collection wrote is left out. Names that look like secrets are never returned.
                - In nccl.conf a name is what NCCL takes for it, C(export NCCL_DEBUG) for instance.
              type: list
              elements: dict
              sample: [{file: /etc/environment, line: 3, name: NCCL_P2P_DISABLE, value: "1"}]
            netifaces:
              description: Whether addresses came from netifaces.
              type: bool
            problems:
              description: What is broken, a sentence each. A command that hangs, a file that cannot be right.
              type: list
              elements: str
        boot_id:
          description: Changes with every boot.
          type: str
        environment_path:
          description: Where O(venv) leads to, or nothing where there is no environment.
          type: str
        network_proof:
          description: The record of the last proof of the network that M(metalray.cluster.network_proof) left, or nothing.
          type: dict
"""

import os
import pwd

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._addresses import find_netifaces
from ..module_utils._fabric import run_bounded
from ..module_utils._node import read_node


def connecting_user() -> str:
    """Who connected, also after sudo or another become plugin that keeps the login's name."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str"},
            "shared_dir": {"type": "path", "default": "/mnt/shared"},
            "venv": {"type": "path", "default": "/opt/metalray/venv"},
        },
        supports_check_mode=True,
    )
    ip = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])

    def run_ip(arguments: list[str]) -> str:
        rc, out, err = module.run_command([ip, *arguments], environ_update={"LC_ALL": "C"})
        if rc != 0:
            module.fail_json(msg=f"'ip {' '.join(arguments)}' failed: {err.strip()}. The package iproute2 is needed.")
        return out

    node = read_node(
        run_ip,
        run_bounded,
        find_netifaces(),
        module.params["user"] or connecting_user(),
        module.params["shared_dir"],
        module.params["venv"],
    )
    module.exit_json(changed=False, ansible_facts={"metalray_node": node})


if __name__ == "__main__":
    main()
