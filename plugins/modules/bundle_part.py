#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_part
short_description: Bring a part of a bundle from the controller to a node
version_added: 0.1.0
description:
  - Unpacks a part of the archive that M(metalray.cluster.bundle) made into a directory on the node. Each file is held against
    its hash in the manifest, and the directory is there whole or not at all.
  - Where that part is there already, nothing is copied. A part of an earlier bundle goes.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report whether it would copy.
  diff_mode:
    support: none
    description: The files are packages and repositories.
  idempotent:
    support: full
    description: A second run copies nothing.
options:
  bundle:
    description: The archive on the controller.
    type: path
    required: true
  part:
    description: Which part.
    type: str
    choices: [apt, wheels, source]
    required: true
  path:
    description: Directory on the node, of this part alone. Its files will be readable by all.
    type: path
    required: true
  files:
    description: The part's files with their hashes. Set by the action.
    type: dict
    default: {}
  archive:
    description: Where the part was copied to on the node. Set by the action.
    type: path
"""

EXAMPLES = r"""
- name: Bring the packages
  become: true
  metalray.cluster.bundle_part:
    bundle: /srv/metalray-bundle-bookworm-amd64.tar
    part: apt
    path: /var/cache/metalray/bundle/apt
"""

RETURN = r"""
path:
  description: The directory.
  returned: success
  type: str
present:
  description: Whether the part was there before.
  returned: success
  type: bool
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._bundle import PARTS, BundleError, is_present, part_digest, unpack


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "part": {"type": "str", "choices": list(PARTS), "required": True},
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    files, path = module.params["files"], Path(module.params["path"])
    present = is_present(path, part_digest(files))
    if not present and module.params["archive"] and not module.check_mode:
        try:
            unpack(Path(module.params["archive"]), files, path)
        except BundleError as error:
            module.fail_json(msg=str(error))
        except OSError as error:
            module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    module.exit_json(changed=not present, path=str(path), present=present)


if __name__ == "__main__":
    main()
