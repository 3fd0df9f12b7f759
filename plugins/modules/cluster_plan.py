#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_plan
short_description: Check the whole inventory and decide every node's part
version_added: 0.1.0
description:
  - Checks groups, every variable of every role on every host, and the facts of M(metalray.cluster.node_facts), and refuses
    with one message that lists all that is wrong, before anything has been changed.
  - Then decides once for the cluster which network carries it, and with it every node's address and interface.
  - Runs on the controller and calls no host. Use it with C(run_once), after the facts of all nodes have been read.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  fact:
    description: Name of the fact that takes the plan.
    type: str
    default: cluster_plan
notes:
  - A node that did not answer is left out of the plan and named in RV(ansible_facts.cluster_plan.missing). A head that did
    not answer is refused.
"""

EXAMPLES = r"""
- name: Decide every node's part
  metalray.cluster.cluster_plan:
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The facts, under one name.
  returned: success
  type: dict
  contains:
    cluster_plan:
      description: The plan.
      type: dict
      contains:
        cidr:
          description: The cluster's network.
          type: str
          sample: 10.15.22.0/24
        user:
          description: The account that owns and runs the work.
          type: str
        shared_dir:
          description: The shared directory.
          type: str
        shared_backend:
          description: V(nfs) or V(external).
          type: str
        shared_unit:
          description: What systemd calls the mount of the shared directory.
          type: str
        head:
          description: Inventory name of the head.
          type: str
        head_address:
          description: The head's address inside the cluster.
          type: str
        addresses:
          description: Addresses of all nodes that answered, the head's first.
          type: list
          elements: str
        ssh_port:
          description: The nodes' own port of SSH, or 0 where they differ.
          type: int
        builder:
          description: Inventory name of the node that fetches and builds the packages of the Python environment for all.
          type: str
        cuda_architectures:
          description: Compute capabilities of the GPUs of all nodes.
          type: list
          elements: str
        missing:
          description: Inventory names of the nodes that did not answer.
          type: list
          elements: str
        training:
          description: For the training job, C(working_dir) and C(environment) of Ray's processes.
          type: dict
        nodes:
          description:
            - By inventory name, C(address), C(interface), C(prefix), C(mtu), C(speed_mbps) (null where unknown), C(networks)
              (those it has routes to), C(cpus), C(memory_bytes), C(gpus), C(os), C(architecture), and the user's C(uid),
              C(gid), C(group) and C(home) there.
          type: dict
"""
