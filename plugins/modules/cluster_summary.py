#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_summary
short_description: Print the cluster at a glance
version_added: 0.1.0
description:
  - Prints one table of the nodes (address, interface, CPUs, GPUs, versions, state in Ray), the job's outcome, and the SSH
    command that brings the dashboard to the controller.
  - Runs on the controller and calls no host. It reads the facts of M(metalray.cluster.cluster_plan) and
    M(metalray.cluster.package_versions_facts).
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  cluster:
    description: What M(metalray.cluster.ray_cluster_info) returned.
    type: dict
    default: {}
  training:
    description: What the role C(training) left in C(training_result).
    type: dict
    default: {}
  dashboard_port:
    description: Port of the dashboard on the head's loopback interface.
    type: int
    default: 8265
"""

EXAMPLES = r"""
- name: Print the cluster at a glance
  metalray.cluster.cluster_summary:
    cluster: "{{ ray_cluster }}"
  run_once: true
"""

RETURN = r"""
summary:
  description: The printed lines.
  returned: success
  type: list
  elements: str
"""
