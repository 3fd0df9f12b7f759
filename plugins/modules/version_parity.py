#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: version_parity
short_description: Stop the run where hosts differ in their versions
version_added: 0.1.0
description:
  - Compares the facts of M(metalray.cluster.package_versions_facts) across hosts, item by item. What most hosts have
    is taken to be right; the message names the odd hosts, and has one table of what differs, and the mend.
  - Compared are the lock that the environment was built from, Python, all packages with what was changed of them by
    hand, the commits of sources that the environment leads to, and items of the system.
  - Runs on the controller and calls no host. Use it with C(run_once), after the facts of all hosts have been read.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and compares the same. Hosts whose fact is empty are left out.
  diff_mode:
    support: N/A
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
options:
  hosts:
    description:
      - The hosts to compare. Each must have the fact.
      - Left out, all hosts of the play that have it.
    type: list
    elements: str
  fact:
    description: Name of the fact.
    type: str
    default: package_versions
  packages:
    description:
      - Packages to compare, with C(python) among them if wanted, and nothing else of the environment.
      - Empty is all of them, Python, and the rest of the environment.
    type: list
    elements: str
    default: []
  system:
    description: Items of the system that have to be the same.
    type: list
    elements: str
    choices: [os, kernel, glibc, driver, cuda, nccl, nccl_system, nccl_library]
    default: [driver, cuda, nccl, nccl_library]
  system_warned:
    description: Items of the system in which a difference gives a warning only.
    type: list
    elements: str
    choices: [os, kernel, glibc, driver, cuda, nccl, nccl_system, nccl_library]
    default: [kernel, glibc]
  reference:
    description:
      - The host that is taken to be right where as many hosts have one version as another. Left out, the first host
        of the group C(head), or else the first of O(hosts).
    type: str
seealso:
  - module: metalray.cluster.package_versions_facts
"""

EXAMPLES = r"""
- name: Read the versions
  metalray.cluster.package_versions_facts:

- name: Refuse to train on nodes that differ
  metalray.cluster.version_parity:
  run_once: true
"""

RETURN = r"""
hosts:
  description: The hosts that were compared.
  returned: success or difference
  type: list
  elements: str
groups:
  description: Hosts that are equal in all that stops the run, the largest group first.
  returned: success or difference
  type: list
  elements: list
  sample: [[node1, node2], [node3]]
differences:
  description: All differences, those that only warn among them.
  returned: success or difference
  type: list
  elements: dict
  contains:
    item:
      description: The package, C(python), C(lock), the source, or the item of the system.
      type: str
      sample: torch
    kind:
      description:
        - C(environment) (the lock, the wheels), C(python), C(package), C(files) (equal versions made of other files),
          C(stray), C(source), C(edits) (of a source), or C(system).
      type: str
    strict:
      description: Whether the difference stops the run.
      type: bool
    expected:
      description: The version that is taken to be right, or C(missing).
      type: str
      sample: 2.13.0
    expected_on:
      description: How many hosts have it.
      type: int
    odd:
      description: Every other version, or C(missing), with the hosts that have it.
      type: dict
      sample: {2.12.0: [node3]}
    tie:
      description: The host that decided which version is right where no version has more hosts; else empty.
      type: str
    where:
      description: Path of the source; else empty.
      type: str
"""
