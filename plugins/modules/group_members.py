#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: group_members
short_description: Add accounts to a group in one call
version_added: 0.1.0
description:
  - Adds every named account to a group and leaves the group's other members alone.
  - Makes no account. An account that the node does not know, also not from a directory service, is refused by name,
    before any other is added.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it, also where the group does
      not exist yet.
  diff_mode:
    support: full
    description: Returns the members of the group before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  group:
    description: Name of the group. It must exist, except in check mode.
    type: str
    required: true
  users:
    description: The accounts that shall be members.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Let two people use the engine
  become: true
  metalray.cluster.group_members:
    group: docker
    users: [alice, bob]
"""

RETURN = r"""
added:
  description: The accounts that were added, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [alice]
"""

import grp
import pwd

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "group": {"type": "str", "required": True},
            "users": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    group, users = module.params["group"], list(dict.fromkeys(module.params["users"]))
    primary = {}
    for user in users:
        try:
            primary[user] = pwd.getpwnam(user).pw_gid
        except KeyError:
            module.fail_json(
                msg=f"no account named '{user}' on this node, so it cannot join the group {group}. Nobody was added"
            )
    try:
        entry = grp.getgrnam(group)
        members, gid = sorted(entry.gr_mem), entry.gr_gid
    except KeyError:
        if not module.check_mode:
            module.fail_json(msg=f"no group named '{group}' on this node")
        members, gid = [], -1
    added = [user for user in users if user not in members and primary[user] != gid]
    if added and not module.check_mode:
        gpasswd = module.get_bin_path("gpasswd", required=True)
        for user in added:
            # usermod knows only the accounts of /etc/passwd; gpasswd takes those of a directory service too.
            rc, _out, err = module.run_command([gpasswd, "--add", user, group])
            if rc != 0:
                module.fail_json(msg=f"{user} cannot be added to the group {group}: {err.strip()}")
    lines = ["".join(f"{name}\n" for name in names) for names in (members, sorted([*members, *added]))]
    header = f"members of group {group}"
    diff = [{"before_header": header, "after_header": header, "before": lines[0], "after": lines[1]}] if added else []
    module.exit_json(changed=bool(added), added=added, diff=diff)


if __name__ == "__main__":
    main()
