#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nccl_env
short_description: The network environment of NCCL, Gloo and vLLM on a node
version_added: 0.1.0
description:
  - Writes C(/etc/metalray/cluster.env), the environment of every Ray process and login on this node, and C(/etc/nccl.conf),
    NCCL's own file, so that both use the interface that leads to the other nodes.
  - The two libraries read names differently. Gloo takes an exact name, NCCL a prefix unless it starts with C(=).
  - Lines that others wrote into C(/etc/nccl.conf) stay.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: full
    description: Returns the differences of every file.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  interface:
    description: The interface that leads to the other nodes. It has to exist on the node and carry O(address).
    type: str
    required: true
  address:
    description: The node's address inside the cluster.
    type: str
    required: true
  extra:
    description:
      - Variables of your own. Names that start with C(NCCL_) go to NCCL's file, all others to the environment.
      - They win over what the module decides. Secrets are refused, both files are world-readable.
    type: dict
    default: {}
  environment_path:
    description: The environment file.
    type: path
    default: /etc/metalray/cluster.env
  nccl_path:
    description: NCCL's file.
    type: path
    default: /etc/nccl.conf
  profile_path:
    description: The file by which login shells take up the environment.
    type: path
    default: /etc/profile.d/metalray.sh
"""

EXAMPLES = r"""
- name: Bind NCCL and Gloo to the interface that leads to the peers
  become: true
  metalray.cluster.nccl_env:
    interface: enp27s0f0np0
    address: 10.15.22.33
    extra:
      NCCL_DEBUG: WARN
"""

RETURN = r"""
environment:
  description: The variables in the environment file.
  returned: success
  type: dict
  sample: {GLOO_SOCKET_IFNAME: enp27s0f0np0, VLLM_HOST_IP: 10.15.22.33}
nccl:
  description: The variables in NCCL's file.
  returned: success
  type: dict
  sample: {NCCL_SOCKET_FAMILY: AF_INET, NCCL_SOCKET_IFNAME: =enp27s0f0np0}
paths:
  description: The paths that changed, or would change in check mode.
  returned: success
  type: list
  elements: str
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FilesError, Wanted, apply_files, as_result
from ..module_utils._nccl_env import EnvError, decide, render_environment, render_nccl, with_extra
from ..module_utils._node import read_text

_PROFILE = """\
# Written by metalray.cluster: logins get the environment that Ray's processes have.
if [ -r {path} ]; then
  set -a
  . {path}
  set +a
fi
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "interface": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "extra": {"type": "dict", "default": {}},
            "environment_path": {"type": "path", "default": "/etc/metalray/cluster.env"},
            "nccl_path": {"type": "path", "default": "/etc/nccl.conf"},
            "profile_path": {"type": "path", "default": "/etc/profile.d/metalray.sh"},
        },
        supports_check_mode=True,
    )
    options = module.params
    ip = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])
    rc, out, _err = module.run_command([ip, "-j", "address", "show", "dev", options["interface"]])
    devices = json.loads(out or "[]") if rc == 0 else []
    have = [info.get("local") for device in devices for info in device.get("addr_info", [])]
    if options["address"] not in have:
        module.fail_json(
            msg=f"interface '{options['interface']}' does not carry {options['address']} on this node; it "
            + (f"carries {', '.join(filter(None, have)) or 'no address'}" if rc == 0 else "does not exist")
            + ". Run preflight, which finds the right one"
        )
    try:
        process, nccl = decide(options["interface"], options["address"])
        process, nccl = with_extra(process, nccl, {name: str(value) for name, value in options["extra"].items()})
        applied = apply_files(
            module,
            [
                Wanted(options["environment_path"], render_environment(process)),
                Wanted(options["nccl_path"], render_nccl(nccl, read_text(options["nccl_path"]))),
                Wanted(options["profile_path"], _PROFILE.format(path=options["environment_path"])),
            ],
        )
    except (EnvError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**as_result(applied), environment=process, nccl=nccl)


if __name__ == "__main__":
    main()
