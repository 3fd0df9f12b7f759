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
  environment:
    description:
      - Environment variables that tell how the node reaches the world, as the filter P(metalray.cluster.site_environment#filter)
        makes them. The addresses of proxies go into a configuration of apt that root alone reads, since every account
        sees a process's environment.
    type: dict
    default: {}
  repository:
    description:
      - Directory on the node with a flat repository, from which alone apt is to install. Empty is the node's own sources.
      - It is trusted as it is, without a signature.
    type: str
    default: ''
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
  environment: "{{ packages.environment }}"
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
environment:
  description:
    - The environment for apt. C(APT_CONFIG) in it leads to a configuration for the runs of this collection alone, which is
      written where something is missing and O(environment) or O(repository) ask for it.
  returned: success
  type: dict
  sample: {APT_CONFIG: /run/metalray-apt/apt.conf}
locks:
  description: Which processes hold a lock of apt or dpkg now, a sentence each.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._access import apply_environment, apt_configuration, without_addresses
from ..module_utils._dpkg import DpkgError, describe_holder, lock_holders, prepare
from ..module_utils._files import FilesError, Wanted, apply_files

# Gone with the next boot: apt of nobody else reads it.
_DIRECTORY = "/run/metalray-apt"
_CONFIGURATION = f"{_DIRECTORY}/apt.conf"
_SOURCES = f"{_DIRECTORY}/apt.list"


def apt_environment(module: AnsibleModule) -> dict[str, str]:
    """What apt needs in its environment, its configuration written where it needs one."""
    values = {name: str(value) for name, value in module.params["environment"].items()}
    left = without_addresses(values)
    repository = module.params["repository"]
    text = apt_configuration(values, _SOURCES if repository else "")
    if not text:
        return left
    if not module.check_mode:
        files = [Wanted(_CONFIGURATION, text, "0600", secret=True)]
        if repository:
            # What is in it was held against the bundle's manifest, which is the signature here.
            files.append(Wanted(_SOURCES, f"deb [trusted=yes] file:{repository} ./\n"))
            files.append(Wanted(f"{_DIRECTORY}/lists/partial", state="directory", mode="0755"))
        apply_files(module, files)
    return {**left, "APT_CONFIG": _CONFIGURATION}


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "names": names,
            "absent": names,
            "lock_timeout": {"type": "int", "default": 600},
            "lock_variable": {"type": "str", "default": "lock_timeout"},
            "environment": {"type": "dict", "default": {}},
            "repository": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )

    apply_environment(module)

    def run(argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "apt-get":
            os.environ.update(apt_environment(module))
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
        environment = apt_environment(module) if outcome.missing else {}
    except (DpkgError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(outcome.mended),
        missing=outcome.missing,
        present=outcome.present,
        mended=outcome.mended,
        environment=environment,
        locks=[describe_holder(holder) for holder in lock_holders()],
    )


if __name__ == "__main__":
    main()
