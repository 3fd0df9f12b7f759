#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nfs_export
short_description: Export a directory over NFS to some clients and to nobody else
version_added: 0.1.0
description:
  - Makes the directory, writes its export to a file of its own, C(/etc/exports.d/metalray.exports), and the server's settings to
    C(/etc/nfs.conf.d/metalray.conf). Starts C(nfs-server.service), now and at each boot.
  - A running server is told by C(exportfs -ra), and takes a new number of threads on at once. It is never restarted, which would
    stop its clients for a while.
  - Then reads what the server exports, and fails unless that is the directory to exactly these clients. A right file that is not
    in force is brought into force.
  - Refuses a directory that another line of C(/etc/exports) or C(/etc/exports.d) exports too, one that is a network file system
    itself, a symbolic link, and a line of another that moves the root of all NFSv4 paths. Exports of other directories are left
    alone.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it, also where no server is installed yet.
  diff_mode:
    support: full
    description: Returns the differences of the files.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  path:
    description:
      - The directory. It is made if it is not there, and given to O(owner) while it is empty and root's. Otherwise its owner and
        mode stay.
    type: path
    required: true
  clients:
    description:
      - Addresses and networks that may mount the directory, of IPv4 and IPv6. Names and wildcards are refused, since whoever
        answers their look-up would be let in.
      - Without any nothing is exported, an earlier export by this module is withdrawn, and no server is started.
    type: list
    elements: str
    required: true
  options:
    description:
      - Options of the export, see C(exports(5)). V(rw) must be among them, V(fsid=0) must not.
      - Root squashing is the option O(root_squash)'s.
    type: list
    elements: str
    default: [rw, sync, no_subtree_check, sec=sys]
  root_squash:
    description:
      - Take away the rights of root on the clients. Without it whoever is root on a client is root on the directory.
    type: bool
    default: true
  owner:
    description: The account that a new directory belongs to.
    type: str
    required: true
  group:
    description: The group that a new directory belongs to.
    type: str
    required: true
  threads:
    description:
      - Threads of the server. A thread is busy with one request until the disk has answered.
      - With V(0) twice the CPUs of the machine, at least 8 and at most 128.
    type: int
    default: 0
notes:
  - The package C(nfs-kernel-server) must be installed, except in check mode.
seealso:
  - module: metalray.cluster.nfs_mount
"""

EXAMPLES = r"""
- name: Export to two nodes
  become: true
  metalray.cluster.nfs_export:
    path: /mnt/shared
    clients: [10.77.0.12, 10.77.0.13]
    owner: ray
    group: ray
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode. Paths of files, the service, the exports in force, the threads.
  returned: success
  type: list
  elements: str
  sample: [/etc/exports.d/metalray.exports, exports in force]
clients:
  description: Who may mount the directory, as the file has them.
  returned: success
  type: list
  elements: str
  sample: [10.77.0.12, 10.77.0.13]
threads:
  description: Threads of the server; V(0) where there is no client.
  returned: success
  type: int
  sample: 16
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._fabric import run_bounded
from ..module_utils._files import FilesError
from ..module_utils._nfs import NfsError, export_options
from ..module_utils._nfs_server import Share, export


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "clients": {"type": "list", "elements": "str", "required": True},
            "options": {"type": "list", "elements": "str", "default": ["rw", "sync", "no_subtree_check", "sec=sys"]},
            "root_squash": {"type": "bool", "default": True},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "threads": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    if wanted["threads"] < 0:
        module.fail_json(
            msg=f"threads is {wanted['threads']}; allowed are 0, which sizes them to the machine, and more"
        )
    # Not every way to become root brings the system's own commands.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    try:
        share = Share(
            path=wanted["path"],
            clients=wanted["clients"],
            options=export_options(wanted["options"], wanted["root_squash"]),
            owner=wanted["owner"],
            group=wanted["group"],
            threads=wanted["threads"],
        )
        result = export(module, share, run_bounded, module.warn)
    except (NfsError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
