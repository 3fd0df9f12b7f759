# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  files:
    description: The files and directories, handled in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path on the node.
        type: path
        required: true
      content:
        description: The whole text of the file. Written as it is, no line end is added.
        type: str
        default: ''
      mode:
        description: Permissions in octal.
        type: str
        default: '0644'
      owner:
        description: Name of the owning account. Left as it is when not given.
        type: str
      group:
        description: Name of the owning group. Left as it is when not given.
        type: str
      state:
        description: V(file) and V(directory) are made or corrected; V(absent) removes a file or a link.
        type: str
        choices: [file, directory, absent]
        default: file
      secret:
        description: Keep the text out of the diff. Set C(no_log) on the task too, so that the options stay hidden.
        type: bool
        default: false
"""
