#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: package_state
short_description: See which packages are missing, and make apt ready to install them
version_added: 0.1.0
description:
  - Tells which packages of the distribution a node lacks. Where it has all of them, that is all, in one remote call.
  - Where something is to be installed or removed, it waits until no other process holds a lock of apt or dpkg, and brings
    to its end what an interrupted dpkg left (a power cut, a process that was killed) with C(dpkg --configure -a) and, if
    that is not enough, C(apt-get --fix-broken install). No question is asked, changed configuration files stay, and no
    package is removed.
  - It installs nothing by itself. Run it with C(become).
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would mend. It waits for no lock then.
  diff_mode:
    support: none
    description: What is mended is in RV(mended).
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  names:
    description: Packages that are wanted, as C(name), C(name:architecture) or C(name=version) with a version or a pattern.
    type: list
    elements: str
    default: []
  absent:
    description: Packages that are to be removed.
    type: list
    elements: str
    default: []
  lock_timeout:
    description: Seconds to wait for another process that holds a lock of apt or dpkg.
    type: int
    default: 600
  lock_variable:
    description: The name that messages give to O(lock_timeout).
    type: str
    default: lock_timeout
notes:
  - Packages that others left half configured are mended only where something is to be installed or removed.
"""

EXAMPLES = r"""
- name: See what is missing
  become: true
  metalray.cluster.package_state:
    names: [ca-certificates, python3-venv]
  register: packages

- name: Install it
  become: true
  ansible.builtin.apt:
    name: "{{ packages.missing }}"
    update_cache: true
  when: packages.missing | length > 0
"""

RETURN = r"""
missing:
  description: Those of O(names) that are not installed.
  returned: success
  type: list
  elements: str
  sample: [python3-venv]
present:
  description: Those of O(absent) that are installed.
  returned: success
  type: list
  elements: str
mended:
  description: What an interrupted dpkg had left and was brought to its end, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [nfs-common (half-configured)]
locks:
  description: Which processes hold a lock of apt or dpkg now, a sentence each.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._dpkg import DpkgError, describe_holder, lock_holders, prepare


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "names": names,
            "absent": names,
            "lock_timeout": {"type": "int", "default": 600},
            "lock_variable": {"type": "str", "default": "lock_timeout"},
        },
        supports_check_mode=True,
    )

    def run(argv: list[str]) -> tuple[int, str, str]:
        return module.run_command(list(argv), environ_update={"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})

    try:
        outcome = prepare(
            run,
            module.params["names"],
            module.params["absent"],
            module.params["lock_timeout"],
            module.params["lock_variable"],
            module.check_mode,
        )
    except DpkgError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(outcome.mended),
        missing=outcome.missing,
        present=outcome.present,
        mended=outcome.mended,
        locks=[describe_holder(holder) for holder in lock_holders()],
    )


if __name__ == "__main__":
    main()
