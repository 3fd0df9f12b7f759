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
extends_documentation_fragment:
  - metalray.cluster.files
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

from ..module_utils._files import FILES_OPTION, FilesError, Wanted, apply_files, as_result


def main() -> None:
    module = AnsibleModule(
        argument_spec={"files": FILES_OPTION},
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
