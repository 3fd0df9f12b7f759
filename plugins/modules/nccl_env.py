#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nccl_env
short_description: Write the network environment of NCCL, Gloo and vLLM on a node
version_added: 0.1.0
description:
  - Writes C(/etc/metalray/cluster.env), the environment of every Ray process and login on this node, and C(/etc/nccl.conf),
    NCCL's own file in its literal syntax, as M(metalray.cluster.network_plan) has decided them.
  - Before that it makes sure that what was decided still holds on the node, the interface, its address, and the RDMA ports.
  - Lines that others wrote into C(/etc/nccl.conf) stay, after those of the module, since NCCL keeps the first value it reads.
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
  environment:
    description:
      - The variables of the environment file. Those that start with C(NCCL_) belong into O(nccl), since launchers copy such
        variables to nodes on which they are wrong. Secrets are refused, the file is world-readable.
    type: dict
    required: true
  nccl:
    description: The variables of NCCL's file. Without any the module takes its own lines out of the file.
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
    environment:
      GLOO_SOCKET_IFNAME: enp27s0f0np0
      VLLM_HOST_IP: 10.15.22.33
    nccl:
      NCCL_SOCKET_IFNAME: =enp27s0f0np0
      NCCL_SOCKET_FAMILY: AF_INET
      NCCL_NET: Socket
"""

RETURN = r"""
paths:
  description: The paths that changed, or would change in check mode.
  returned: success
  type: list
  elements: str
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._fabric import read_rdma
from ..module_utils._files import FilesError, Wanted, apply_files, as_result
from ..module_utils._nccl_env import EnvError, absent_ports, as_text, render_environment, render_nccl
from ..module_utils._tree import read_text

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
            "environment": {"type": "dict", "required": True},
            "nccl": {"type": "dict", "default": {}},
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
        process, nccl = (
            {name: as_text(name, value) for name, value in options[key].items()} for key in ("environment", "nccl")
        )
    except EnvError as error:
        module.fail_json(msg=str(error))
    over_tcp = nccl.get("NCCL_NET", "").lower() == "socket"
    gone = [] if over_tcp else absent_ports(nccl.get("NCCL_IB_HCA", ""), read_rdma("/"))
    if gone:
        module.fail_json(
            msg=f"NCCL_IB_HCA names {', '.join(gone)}, and there is no such active RDMA port on this node. Bring it up (ibstat, "
            "rdma link), and run preflight, which looks again"
        )
    try:
        conf = render_nccl(nccl, read_text(options["nccl_path"]))
        applied = apply_files(
            module,
            [
                Wanted(options["environment_path"], render_environment(process)),
                Wanted(options["nccl_path"], conf, state="file" if conf else "absent"),
                Wanted(options["profile_path"], _PROFILE.format(path=options["environment_path"])),
            ],
        )
    except FilesError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**as_result(applied))


if __name__ == "__main__":
    main()
