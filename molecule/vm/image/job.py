# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job for the guests: a task on every node says where it ran and what the process may use.

It stands in for the built-in training job, whose processes need minutes only to import torch on an emulated processor.
"""

import json
import os
import resource
import socket

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote
def look():
    return {
        "node": socket.gethostname(),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK),
    }


ray.init(log_to_driver=False)
alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
seen = ray.get(
    [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in alive]
)
print(f"{len(seen)} tasks, on {', '.join(sorted(task['node'] for task in seen))}")
result = {"submission_id": os.environ["METALRAY_SUBMISSION_ID"], "status": "SUCCEEDED", "tasks": seen}
with open(os.environ["METALRAY_RESULT_FILE"], "w", encoding="utf-8") as handle:
    json.dump(result, handle)
