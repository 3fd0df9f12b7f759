#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: network_plan
short_description: Decide which transport carries the cluster, and every node's NCCL and Gloo settings
version_added: 0.1.0
description:
  - Looks at the interfaces, RDMA ports, GPUs and NVLink of all nodes, chooses one transport for the cluster, and writes it
    out for each node, whose interfaces and adapters may have other names.
  - Then checks every variable that is set, in the inventory or on the nodes themselves, against a catalogue of what each one
    does in which release and on which hardware. Errors stop, warnings are printed once.
  - Refuses with one message when nodes disagree in what must be the same on all, and names the odd one.
  - Runs on the controller and calls no host. Use it with C(run_once), after M(metalray.cluster.node_facts) on all nodes and
    M(metalray.cluster.cluster_plan). Without a cluster's plan it takes the hosts of the play, and finds their addresses in
    the same way.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  compare_nccl:
    description: Also refuse where the NCCL of the nodes' environments differs. Before these are built it may.
    type: bool
    default: false
  enforce:
    description: Warn, and fail on problems. Otherwise both are only returned.
    type: bool
    default: true
notes:
  - The variables C(network_env_*) of the role P(metalray.cluster.network_env#role) are read from the inventory.
"""

EXAMPLES = r"""
- name: Decide the network environment of every node
  metalray.cluster.network_plan:
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The facts, under one name.
  returned: success
  type: dict
  contains:
    network_plan:
      description: The plan.
      type: dict
      contains:
        transport:
          description:
            - V(none) without GPUs, V(single) on one node, V(socket) for TCP, V(infiniband), V(roce) or V(efa).
          type: str
        profile:
          description: The profile that was asked for.
          type: str
        notes:
          description: Sentences that a user should read once, such as capabilities that stay unused.
          type: list
          elements: str
        nodes:
          description:
            - By inventory name, C(environment) and C(nccl) with the variables of either file, C(why) with the reason of each,
              and C(expect) with what a proof has to see.
          type: dict
        problems:
          description: What would stop a run; empty unless O(enforce=false).
          type: list
          elements: str
        findings:
          description: What the check of the variables found, as text.
          type: str
        fingerprint:
          description: Changes with whatever makes a new proof necessary.
          type: str
        nonce:
          description: Another one in every run.
          type: str
"""
