#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: shared_directory
short_description: Prove that a directory is the same one on every node
version_added: 0.1.0
description:
  - On one node, writes a marker with a random identity into the directory, once, and returns it.
  - On the others, compares the marker they see with it. A local directory of the same name, which looks right until a
    checkpoint is missing, is told from a shared one by this alone.
  - In both cases the account that runs the work writes and removes a file there, so that permissions are proved too.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode, writes no marker then, and says whether it would.
  diff_mode:
    support: none
    description: The marker is one line of no meaning.
  idempotent:
    support: full
    description: The marker is written once.
options:
  path:
    description: The directory.
    type: path
    required: true
  user:
    description: The account that must be able to write there.
    type: str
    required: true
  expect:
    description: The marker that another node returned. Without it this node writes the marker.
    type: str
notes:
  - Run it with C(become). The account's rights are taken on for the test, so it also holds where root is squashed.
"""

EXAMPLES = r"""
- name: Mark the directory on the head
  become: true
  metalray.cluster.shared_directory:
    path: /mnt/shared
    user: ray
  register: marked

- name: Compare on a worker
  become: true
  metalray.cluster.shared_directory:
    path: /mnt/shared
    user: ray
    expect: "{{ hostvars[groups['head'] | first].marked.marker }}"
"""

RETURN = r"""
marker:
  description: The directory's identity.
  returned: success
  type: str
  sample: 2f1c1f0b6a0e4d6f8d3a8f0a4c9e7b11
"""

import os
import pwd
import tempfile
import uuid

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._node import read_text

_MARKER = ".metalray-shared"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "expect": {"type": "str"},
        },
        supports_check_mode=True,
    )
    path, user, expect = module.params["path"], module.params["user"], module.params["expect"]
    marker_path = os.path.join(path, _MARKER)
    if not os.path.isdir(path):
        if module.check_mode:
            module.exit_json(changed=False, marker=expect or "")
        module.fail_json(
            msg=f"{path} is not a directory on this node. Run the stage that makes it (--tags nfs), or mount it"
        )
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        module.fail_json(
            msg=f"no account named '{user}' on this node; set cluster_user to one that exists on every node"
        )

    # As the account itself: on a file system that squashes root, root's own attempt would prove nothing.
    os.initgroups(user, account.pw_gid)
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    changed = False
    try:
        marker = read_text(marker_path).strip()
        if not module.check_mode:
            with tempfile.NamedTemporaryFile(dir=path, prefix=".metalray-probe-"):
                pass
        if not marker and expect is None:
            marker, changed = uuid.uuid4().hex, True
            if not module.check_mode:
                with open(marker_path, "w", encoding="ascii") as handle:
                    handle.write(marker + "\n")
    except OSError as error:
        module.fail_json(
            msg=f"{user} cannot write to {path} on this node: {error.strerror}. Give the directory to {user} (chown {user}: {path}) where "
            "it is exported or mounted from"
        )
    finally:
        os.seteuid(0)
        os.setegid(0)

    if expect and marker != expect and not (module.check_mode and not marker):
        seen = f"carries the marker {marker}" if marker else "has no marker"
        module.fail_json(
            msg=f"{path} is not the head's directory on this node: it {seen}, the head wrote {expect}. Mount the shared file system at "
            f"{path}, or let the collection do it (cluster_shared_backend: nfs)"
        )
    module.exit_json(changed=changed, marker=marker)


if __name__ == "__main__":
    main()
