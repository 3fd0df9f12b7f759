#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: network_report
short_description: Print what was found of the network and what would be written
version_added: 0.1.0
description:
  - Prints what each node has (link, RDMA ports, GPUs, NVLink, NCCL), the transport that was chosen, every variable with the
    reason for its value, what the check of the variables found, and what the last proof saw.
  - Runs on the controller and calls no host. It reads the facts of M(metalray.cluster.node_facts),
    M(metalray.cluster.cluster_plan) and M(metalray.cluster.network_plan).
  - The playbook C(metalray.cluster.network_report) does all of this.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options: {}
"""

EXAMPLES = r"""
- name: Print the report
  metalray.cluster.network_report:
  run_once: true
"""

RETURN = r"""
report:
  description: The printed lines.
  returned: success
  type: list
  elements: str
"""
