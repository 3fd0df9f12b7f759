#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ray_cluster_info
short_description: Nodes, resources and health of the running Ray cluster
version_added: 0.1.0
description:
  - Asks Ray's dashboard on the head which nodes are in the cluster and what they offer.
  - With O(nodes) and O(wait_timeout) it waits until each of these nodes is alive with at least the resources it should
    have, and fails by name if one is not.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.ray
attributes:
  check_mode:
    support: full
    description: Changes nothing. In check mode it looks once and never fails because the cluster is absent or
      incomplete.
  diff_mode:
    support: none
    description: Changes nothing, so there is no difference to show.
  idempotent:
    support: full
    description: Changes nothing.
options:
  nodes:
    description: The nodes that should be in the cluster.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: How to call the node in the answer and in messages.
        type: str
        required: true
      address:
        description: Its address inside the cluster.
        type: str
        required: true
      cpus:
        description: How many CPUs it must offer at least.
        type: float
        default: 0
      gpus:
        description: How many GPUs it must offer at least.
        type: float
        default: 0
  wait_timeout:
    description: How many seconds to wait for the nodes of O(nodes). V(0) looks once and reports what there is.
    type: float
    default: 0
  poll_interval:
    description: Seconds between two looks.
    type: float
    default: 2
"""

EXAMPLES = r"""
- name: Look at the cluster
  become: true
  metalray.cluster.ray_cluster_info:
  register: cluster

- name: Wait until both nodes are there with their GPUs
  become: true
  metalray.cluster.ray_cluster_info:
    wait_timeout: 120
    nodes:
      - {name: gpu1, address: 10.15.22.33, gpus: 8}
      - {name: gpu2, address: 10.15.22.34, gpus: 8}
"""

RETURN = r"""
reachable:
  description: Whether the dashboard answered. Only in check mode V(false) is no failure.
  returned: success
  type: bool
healthy:
  description: Whether the cluster has a living node, and every node of O(nodes) is alive with the resources it should
    have.
  returned: success
  type: bool
running_jobs:
  description: What runs on the cluster now. A submitted job by its submission id, a driver that was started by hand by its process.
  returned: success
  type: list
  elements: str
  sample: [smoke-1f2e3d4c.2]
ray_version:
  description: Version of Ray on the head.
  returned: success
  type: str
  sample: 2.60.0
nodes:
  description: Every node, the head first. Of an address that left and came back only the living node is listed.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name from O(nodes), otherwise Ray's own.
      type: str
    address:
      description: Address inside the cluster.
      type: str
    node_id:
      description: Ray's identifier.
      type: str
    alive:
      description: Whether it is in the cluster now.
      type: bool
    head:
      description: Whether it is the head.
      type: bool
    state_message:
      description: Why it left, in Ray's words.
      type: str
    resources:
      description: Under C(total) what it offers, under C(available) what of C(CPU), C(GPU) and C(memory) is free.
      type: dict
    labels:
      description: Labels that it was started with.
      type: dict
  sample:
    - name: node1
      address: 10.77.0.11
      node_id: 64ac5c9cf0459594b125e3fec2f1d1ef94279f25b5831d46ad99fa55
      alive: true
      head: true
      state_message: ''
      resources: {total: {CPU: 64, GPU: 8}, available: {CPU: 64, GPU: 8}}
      labels: {}
resources:
  description: Sums over the living nodes, C(total) and C(available).
  returned: success
  type: dict
  sample: {total: {CPU: 128, GPU: 16}, available: {CPU: 127, GPU: 0}}
missing:
  description: Names of O(nodes) that never joined.
  returned: success
  type: list
  elements: str
dead:
  description: Names of nodes that were in the cluster and left it.
  returned: success
  type: list
  elements: str
short:
  description: Names of O(nodes) that offer less than they should.
  returned: success
  type: list
  elements: str
unexpected:
  description: Names of living nodes that are not in O(nodes), where it is given.
  returned: success
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._ray import CONNECTION_ARGUMENTS, RayClient, RayError, RayUnreachable, cluster_report, running_jobs

NOTHING: dict[str, Any] = {
    "reachable": False,
    "healthy": False,
    "ray_version": "",
    "nodes": [],
    "resources": {"total": {}, "available": {}},
    "missing": [],
    "dead": [],
    "short": [],
    "unexpected": [],
    "running_jobs": [],
}


def look(params: dict[str, Any], patient: bool) -> tuple[dict[str, Any], list[str]]:
    """Look until the cluster is as wanted or the time is over; the last report, and what is wrong with it."""
    deadline = time.monotonic() + (params["wait_timeout"] if patient else 0)
    while True:
        try:
            client = RayClient(params["address"], params["token_path"])
            report, problems = cluster_report(client, params["nodes"])
            if not problems or time.monotonic() >= deadline:
                jobs = running_jobs(client.all_jobs())
                version = client.version()
                return {"reachable": True, "ray_version": version, "running_jobs": jobs, **report}, problems
        except RayUnreachable:
            if time.monotonic() >= deadline:
                raise
        time.sleep(min(params["poll_interval"], max(0.0, deadline - time.monotonic())))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "nodes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "cpus": {"type": "float", "default": 0},
                    "gpus": {"type": "float", "default": 0},
                },
            },
            "wait_timeout": {"type": "float", "default": 0},
            "poll_interval": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["poll_interval"] <= 0 or params["wait_timeout"] < 0:
        module.fail_json(msg="poll_interval must be more than 0 seconds, and wait_timeout at least 0")
    try:
        report, problems = look(params, patient=not module.check_mode)
    except RayUnreachable as error:
        if module.check_mode:
            module.exit_json(changed=False, **{**NOTHING, "missing": [node["name"] for node in params["nodes"]]})
        module.fail_json(msg=str(error))
    except RayError as error:
        module.fail_json(msg=str(error))
    if problems and params["wait_timeout"] and not module.check_mode:
        module.fail_json(
            msg=f"The Ray cluster is not complete after {params['wait_timeout']:g} seconds: {'; '.join(problems)}. "
            f"On each of these nodes look at: journalctl -u metalray-worker -n 50 (metalray-head on the head); "
            f"start them again with --tags ray",
            **report,
        )
    module.exit_json(changed=False, **report)


if __name__ == "__main__":
    main()
