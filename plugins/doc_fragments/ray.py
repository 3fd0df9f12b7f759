# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that talk to Ray's dashboard."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  address:
    description:
      - URL of Ray's dashboard, as seen from the node that the module runs on.
      - The dashboard listens on the head's loopback interface, so run the module on the head.
    type: str
    default: http://127.0.0.1:8265
  token_path:
    description:
      - File with the token of the cluster, on the node. Where it does not exist no token is sent.
      - It is readable by its owner only, so run the module with C(become).
    type: path
    default: /etc/metalray/ray_token
notes:
  - Needs Python's standard library only, and no Ray, on the node.
"""
