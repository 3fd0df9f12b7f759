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
  - A directory that does not answer, since its server is gone, fails after O(timeout) seconds instead of hanging for as long.
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
  timeout:
    description: Seconds that the directory has for its answer.
    type: int
    default: 30
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
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._bounded import NoAnswer, bounded
from ..module_utils._tree import read_text

_MARKER = ".metalray-shared"


def become(account: pwd.struct_passwd) -> None:
    """Take the account on for good: where root is squashed, root's own attempt would prove nothing."""
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def probe(path: str, account: pwd.struct_passwd, mark: bool, write: bool) -> dict[str, Any]:
    """What the account sees and can do there; with ``mark`` it writes the marker where there is none."""
    if os.geteuid() == 0:
        become(account)
    marker_path = os.path.join(path, _MARKER)
    if not os.path.isdir(path):
        return {"directory": False, "marker": "", "changed": False}
    marker, changed = read_text(marker_path).strip(), False
    if write:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".metalray-probe-"):
            pass
    if not marker and mark:
        marker, changed = uuid.uuid4().hex, True
        if write:
            # UTF-8 is loaded already: the account may not be able to read where Python has its other encodings.
            with open(marker_path, "w", encoding="utf-8") as handle:
                handle.write(marker + "\n")
    return {"directory": True, "marker": marker, "changed": changed}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "expect": {"type": "str"},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    path, user, expect = module.params["path"], module.params["user"], module.params["expect"]
    timeout = module.params["timeout"]
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        module.fail_json(
            msg=f"no account named '{user}' on this node; set cluster_user to one that exists on every node"
        )
    if os.geteuid() not in (0, account.pw_uid):
        module.fail_json(msg=f"only root can take on the rights of {user}. Run the task with become")
    try:
        seen = bounded(lambda: probe(path, account, expect is None, not module.check_mode), timeout)
    except NoAnswer:
        module.fail_json(
            msg=f"{path} does not answer on this node ({timeout} s). Its server is down, or a firewall is between: see "
            f"'findmnt {path}' for the server, mend it, then run again"
        )
    except OSError as error:
        module.fail_json(
            msg=f"{user} cannot write to {path} on this node: {error.strerror}. Give the directory to {user} (chown {user}: {path}) where "
            "it is exported or mounted from"
        )
    if not seen["directory"]:
        if module.check_mode:
            module.exit_json(changed=False, marker=expect or "")
        module.fail_json(
            msg=f"{path} is not a directory on this node, or {user} may not see it. Run the stage that makes it (--tags nfs), or mount it"
        )
    marker = seen["marker"]
    if expect and marker != expect and not (module.check_mode and not marker):
        carries = f"carries the marker {marker}" if marker else "has no marker"
        module.fail_json(
            msg=f"{path} is not the head's directory on this node: it {carries}, the head wrote {expect}. Mount the shared file system at "
            f"{path}, or let the collection do it (cluster_shared_backend: nfs)"
        )
    module.exit_json(changed=seen["changed"], marker=marker)


if __name__ == "__main__":
    main()
