#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: async_result
short_description: Wait for a job that was started with async and poll=0
version_added: 0.1.0
description:
  - Looks at the job until it has ended, returns what its module returned, and takes its file off the node.
  - M(ansible.builtin.async_status) with C(until) does the same and prints a line that begins with FAILED for every look on
    every host.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: none
    description: There is no job to wait for in check mode.
  diff_mode:
    support: N/A
    description: Returns what the job returned.
  idempotent:
    support: none
    description: A job's result can be fetched once.
options:
  jid:
    description: C(ansible_job_id) of the task that started the job.
    type: str
    required: true
  timeout:
    description: Seconds after which waiting is a failure.
    type: int
    required: true
  interval:
    description: Seconds between two looks.
    type: float
    default: 2
"""

EXAMPLES = r"""
- name: Wait for the job
  become: true
  metalray.cluster.async_result:
    jid: "{{ started.ansible_job_id }}"
    timeout: 300
"""

RETURN = r"""
finished:
  description: Always V(true); everything else is the job's own.
  returned: success
  type: bool
"""
