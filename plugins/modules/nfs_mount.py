#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nfs_mount
short_description: Mount a directory over NFS on first use, so that it cannot hang a boot
version_added: 0.1.0
description:
  - Writes a mount unit and an automount unit of systemd for the directory, and starts and enables the automount. A boot never
    waits for the server; whoever uses the directory waits, each attempt for at most O(timeout) seconds. When the server
    returns, so does the mount.
  - Then uses the directory, and fails unless O(server)'s O(export) is what is mounted there as NFSv4.
  - Refuses, before anything is changed, a directory on which something else is mounted, a mount that no longer answers, a line
    of C(/etc/fstab) for it, a directory with files of its own and a symbolic link.
  - Where the units have changed and the directory is mounted it is unmounted plainly, neither lazily nor by force. If it is in
    use the module fails, names the processes, and leaves everything as it was.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it, also where no client is installed yet.
  diff_mode:
    support: full
    description: Returns the differences of the units.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  path:
    description: The directory to mount on. systemd makes it.
    type: path
    required: true
  server:
    description: Address or name of the server. An IPv6 address needs no brackets.
    type: str
    required: true
  export:
    description: The directory on the server. By default O(path).
    type: path
  options:
    description:
      - Options of the mount, see C(nfs(5)).
      - With V(soft) or V(softerr) data is lost when the server does not answer for a while, which is warned of.
    type: list
    elements: str
    default: [rw, hard, vers=4.2, nconnect=8, rsize=1048576, wsize=1048576, noatime, nosuid, nodev, _netdev, nofail]
  timeout:
    description: Seconds for one attempt to mount or unmount.
    type: int
    default: 30
notes:
  - The package C(nfs-common) must be installed, except in check mode.
seealso:
  - module: metalray.cluster.nfs_export
"""

EXAMPLES = r"""
- name: Mount the head's directory
  become: true
  metalray.cluster.nfs_mount:
    path: /mnt/shared
    server: 10.77.0.11
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode. Paths of units, what was done with them, and unmounting.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/mnt-shared.mount, mnt-shared.automount (start)]
mount:
  description: What is mounted, C(source), C(type) and the C(options) in force. Empty in check mode.
  returned: success
  type: dict
  sample: {source: "10.77.0.11:/mnt/shared", type: nfs4, options: "rw,vers=4.2,hard,nconnect=8"}
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._fabric import run_bounded
from ..module_utils._files import FilesError
from ..module_utils._nfs import NfsError, soft_warning, source_of
from ..module_utils._nfs_client import Wish, mount

OPTIONS = [
    "rw",
    "hard",
    "vers=4.2",
    "nconnect=8",
    "rsize=1048576",
    "wsize=1048576",
    "noatime",
    "nosuid",
    "nodev",
    "_netdev",
    "nofail",
]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "server": {"type": "str", "required": True},
            "export": {"type": "path"},
            "options": {"type": "list", "elements": "str", "default": OPTIONS},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    server = wanted["server"].strip("[]")
    if not server or any(c.isspace() or c in "/\\" or not c.isprintable() for c in server):
        module.fail_json(msg=f"server is '{wanted['server']}'; allowed are an address or a name, such as 10.77.0.11")
    if wanted["timeout"] < 1:
        module.fail_json(
            msg=f"timeout is {wanted['timeout']}; allowed are 1 and more seconds. Without one a boot could hang"
        )
    warning = soft_warning(wanted["options"])
    if warning:
        module.warn(warning)
    # Not every way to become root brings the system's own commands.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    path = wanted["path"]
    wish = Wish(path, source_of(server, wanted["export"] or path), wanted["options"], wanted["timeout"])
    try:
        result = mount(module, wish, run_bounded)
    except (NfsError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
