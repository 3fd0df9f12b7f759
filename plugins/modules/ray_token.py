#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ray_token
short_description: The token that every process of a Ray cluster shows
version_added: 0.1.0
description:
  - Returns the token that is on this node, or makes one from the kernel's random source and keeps it there.
  - The result holds the token. Set C(no_log) on the task.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode. Where there is no token yet, none is made and the returned one is empty.
  diff_mode:
    support: none
    description: A secret has no diff.
  idempotent:
    support: full
    description: A token is made once.
options:
  path:
    description: Where the token is kept, with mode V(0600).
    type: path
    default: /etc/metalray/ray_token
  owner:
    description: The account that runs Ray.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Read or make the cluster's token
  become: true
  metalray.cluster.ray_token:
    owner: ray
  no_log: true
  register: token
"""

RETURN = r"""
token:
  description: The token.
  returned: success
  type: str
"""

import secrets

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FilesError, Wanted, apply_files
from ..module_utils._tree import read_text


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/metalray/ray_token"},
            "owner": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    found = read_text(path).strip()
    token = found or secrets.token_hex(32)
    try:
        applied = apply_files(module, [Wanted(path, token + "\n", "0600", module.params["owner"], secret=True)])
    except FilesError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=applied.changed, token=found if module.check_mode else token)


if __name__ == "__main__":
    main()
