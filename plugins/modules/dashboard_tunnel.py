#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: dashboard_tunnel
short_description: Bring Ray's dashboard to the controller through SSH
version_added: 0.1.0
description:
  - Opens a tunnel from the controller to the dashboard on the head's loopback interface, with the SSH settings that Ansible
    reaches the head with, and prints its URL and the command that does the same by hand.
  - The tunnel outlives the run. It ends with O(state=closed), with the controller, or with the connection.
  - It asks for no password; where SSH needs one, it fails with the command to use by hand.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: none
    description: There is no text to compare.
  idempotent:
    support: full
    description: A tunnel that is open is used again.
options:
  state:
    description: Whether there is to be one.
    type: str
    choices: [open, closed]
    default: open
  port:
    description: Port of the dashboard on the head.
    type: int
    default: 8265
  local_port:
    description: Port on the controller. V(0) takes the one of O(port), or any other where that is taken.
    type: int
    default: 0
  token:
    description: The cluster's token, to be printed beside the URL. It is in no result.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Bring the dashboard here
  metalray.cluster.dashboard_tunnel:

- name: Close the tunnel
  metalray.cluster.dashboard_tunnel:
    state: closed
"""

RETURN = r"""
url:
  description: Where the dashboard is on the controller.
  returned: with O(state=open)
  type: str
  sample: http://localhost:8265
command:
  description: What opens the same tunnel by hand. Empty where the controller is the head.
  returned: with O(state=open)
  type: str
"""
