#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Bring a set of small text files on a node to a wanted state in one call
version_added: 0.1.0
description:
  - Writes, corrects or removes any number of files and directories in one remote call. A stage that writes five files costs
    as much as one that writes one.
  - Each file is replaced atomically. Missing parent directories are made with mode V(0755).
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: full
    description: Returns the differences of every file, except those with O(files[].secret=true).
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
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

EXAMPLES = r"""
- name: Raise the limit of open files for logins and services
  become: true
  metalray.cluster.node_files:
    files:
      - path: /etc/security/limits.d/90-site.conf
        content: |
          * - nofile 65536
      - path: /etc/systemd/system.conf.d/90-site.conf
        content: |
          [Manager]
          DefaultLimitNOFILE=65536
"""

RETURN = r"""
paths:
  description: The paths that changed, or would change in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/security/limits.d/90-site.conf]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FilesError, Wanted, apply_files, as_result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "default": ""},
                    "mode": {"type": "str", "default": "0644"},
                    "owner": {"type": "str"},
                    "group": {"type": "str"},
                    "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
                    "secret": {"type": "bool", "default": False, "no_log": False},
                },
            }
        },
        supports_check_mode=True,
    )
    try:
        applied = apply_files(module, [Wanted(**item) for item in module.params["files"]])
    except FilesError as error:
        module.fail_json(msg=str(error))
    except ValueError as error:
        module.fail_json(msg=f"mode must be octal digits such as '0644': {error}")
    module.exit_json(**as_result(applied))


if __name__ == "__main__":
    main()
