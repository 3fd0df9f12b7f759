#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: training_needs
short_description: Compare the cluster with what a preset of terminal-bench-rl needs
version_added: 0.1.0
description:
  - Compares nodes alive, GPUs and CPUs free, disk, shared memory, Docker, registries, secrets and the model with the preset,
    and refuses with one message that lists all that is missing.
  - Runs on the controller and calls no host.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  name:
    description: Name of the preset.
    type: str
    required: true
  preset:
    description: What it needs, as in C(roles/training/files/presets.yml).
    type: dict
    required: true
  cluster:
    description: What M(metalray.cluster.ray_cluster_info) returned.
    type: dict
    required: true
  nodes:
    description: What M(metalray.cluster.training_node_facts) found on each host, by its name.
    type: dict
    required: true
  head:
    description: Name of the head among O(nodes).
    type: str
    required: true
  checkpoints_keep:
    description: How many checkpoints are kept. V(0) is all of them.
    type: int
    default: 2
  judge:
    description: The model that judges, whose service wants a key.
    type: str
    default: anthropic/claude-sonnet-4-20250514
"""

EXAMPLES = r"""
- name: Compare the cluster with the preset
  metalray.cluster.training_needs:
    name: prod_32b_2x8_h100
    preset: {model: Qwen/Qwen3-32B, parameters: 32762123264, nodes: 1, gpus: 8}
    cluster: "{{ found }}"
    nodes: {gpu1: "{{ hostvars['gpu1']['ansible_facts']['training_node'] }}"}
    head: gpu1
"""

RETURN = r"""
"""
