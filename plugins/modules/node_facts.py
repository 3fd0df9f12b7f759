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
  - The shared directory is looked at for a few seconds at most, since a mount whose server is gone never answers.
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
  environment_root:
    description: Directory of the environments; the disk that it is or will be on is reported.
    type: path
    default: /opt/metalray
  environment_python:
    description: The Python that environments are based on, as an absolute path or a version.
    type: str
    default: /usr/bin/python3
  tmpdir:
    description: Where processes put what they compile and load.
    type: path
    default: /tmp
  ca_bundles:
    description: Files with certificates that are looked into.
    type: list
    elements: str
    default: []
  defer_failures:
    description:
      - Do not fail where the node cannot be read (sudo, Python, the account's home), but return why in the fact's C(failure).
        M(metalray.cluster.cluster_plan) then names all such nodes at once, each with the mend.
      - A node that cannot be reached is unreachable all the same.
    type: bool
    default: false
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
        nvcc:
          description: Whether CUDA's compiler is there.
          type: bool
        cuda_architectures:
          description: Compute capabilities of the GPUs.
          type: list
          elements: str
          sample: ["9.0"]
        shared_dir:
          description: The shared directory.
          type: dict
          contains:
            answers:
              description: Whether a look at it came to an end, within 5 seconds.
              type: bool
            error:
              description: What the look failed with, or nothing.
              type: str
            exists:
              description: Whether it is a directory.
              type: bool
            kind:
              description: V(directory), V(file), or nothing where there is nothing.
              type: str
            real:
              description: Where the path leads, links followed.
              type: str
            empty:
              description: Whether it holds nothing but C(lost+found). V(null) if unknown.
              type: bool
            owner:
              description: Its C(uid), C(gid) and C(mode). V(null) if unknown.
              type: dict
            mount:
              description: C(source), C(point) and C(type) of the file system that it lies on.
              type: dict
            mounts:
              description: C(source), C(type) and C(options) of what is mounted on the path itself, the lowest first.
              type: list
              elements: dict
            unit:
              description: What the mount unit that this collection wrote mounts, or nothing.
              type: str
            fstab:
              description: Lines of fstab for the path.
              type: list
              elements: dict
              sample: [{file: /etc/fstab, line: 9, source: "head:/mnt/shared", type: nfs, text: "head:/mnt/shared /mnt/shared nfs"}]
            exports:
              description:
                - Lines of exports(5) files that concern the path, those of this collection left out.
                - C(relation) is that of what is exported to the path, V(same), V(parent), V(child) or V(other).
              type: list
              elements: dict
              sample: [{file: /etc/exports, line: 3, text: "/mnt/shared *(rw)", path: /mnt/shared, relation: same,
                clients: ["*"], root: false}]
            server_threads:
              description: Threads of the running NFS server; V(0) where none runs.
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
        ssh_port:
          description: The node's own port of SSH, also where another one leads to it from outside.
          type: int
        boot_id:
          description: Changes with every boot.
          type: str
        environment_path:
          description: Where O(venv) leads to, or nothing where there is no environment.
          type: str
        network_proof:
          description: The record of the last proof of the network that M(metalray.cluster.network_proof) left, or nothing.
          type: dict
        ca_bundles:
          description: By path, how many certificates each of O(ca_bundles) holds; V(null) where there is no such file.
          type: dict
        first_contact:
          description: What M(metalray.cluster.cluster_plan) judges before the first change.
          type: dict
          contains:
            locks:
              description: Processes that hold a lock of apt or dpkg, with C(path), C(pid), C(command) and C(seconds) since their start.
              type: list
              elements: dict
            unfinished:
              description: Packages that an interrupted dpkg left, with their states.
              type: list
              elements: str
            journal:
              description: Whether an interrupted dpkg left its journal, with which apt refuses to work.
              type: bool
            engine:
              description: Whether a Docker engine is installed.
              type: bool
            hostname:
              description: The node's own name.
              type: str
            own_addresses:
              description: The addresses that /etc/hosts gives to it.
              type: list
              elements: str
            clock:
              description:
                - C(synchronised) is the kernel's word, V(null) where it does not tell. C(started) and C(ended) are the node's time at
                  the begin and the end of this module.
                - C(ahead) holds the least and the most seconds that the node's clock is ahead of the controller's.
              type: dict
            ipv6:
              description: C(host) and C(port) of what IPv4 reaches and IPv6 does not, with the C(reason).
              type: list
              elements: dict
            disks:
              description:
                - By directory, C(device), C(free_bytes), C(free_inodes) (V(null) where the file system has no fixed number),
                  C(read_only) and C(noexec) of the file system below.
              type: dict
            python_version:
              description:
                - Version of the Python that O(environment_python) leads to; only major and minor where uv would have to fetch it
                  or nothing tells more, and nothing where there is none.
              type: str
            environment_root:
              description: O(environment_root).
              type: str
            tmpdir:
              description: O(tmpdir).
              type: str
            python:
              description: O(environment_python).
              type: str
        failure:
          description: Why the node could not be read, and the mend. The only key then.
          returned: with O(defer_failures), where it could not
          type: str
"""

import os
import pwd
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._access import count_certificates
from ..module_utils._addresses import find_netifaces
from ..module_utils._fabric import run_bounded
from ..module_utils._node import read_node


def connecting_user() -> str:
    """Who connected, also after sudo or another become plugin that keeps the login's name."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def main() -> None:
    started = time.time()
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str"},
            "shared_dir": {"type": "path", "default": "/mnt/shared"},
            "venv": {"type": "path", "default": "/opt/metalray/venv"},
            "environment_root": {"type": "path", "default": "/opt/metalray"},
            "environment_python": {"type": "str", "default": "/usr/bin/python3"},
            "tmpdir": {"type": "path", "default": "/tmp"},
            "ca_bundles": {"type": "list", "elements": "str", "default": []},
            # The action's, on the controller.
            "defer_failures": {"type": "bool", "default": False},
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
        environment_root=module.params["environment_root"],
        python=module.params["environment_python"],
        tmpdir=module.params["tmpdir"],
    )
    node["ca_bundles"] = {path: count_certificates(path) for path in module.params["ca_bundles"]}
    node["first_contact"]["clock"].update(started=started, ended=time.time())
    module.exit_json(changed=False, ansible_facts={"metalray_node": node})


if __name__ == "__main__":
    main()
