#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: default_interface_facts
short_description: The interface that carries cluster traffic on a node
version_added: 0.1.0
description:
  - Finds the interface, address, prefix, MTU and speed by which this node reaches the other nodes of its cluster.
  - With O(peers) the kernel's own routing answer for each of them decides, and one answer must hold for all. The default
    route, which often leads to a public network, decides nothing then.
  - The route to each peer is read twice, first and last. Where the answers differ the module fails, since a route that comes
    and goes breaks every job.
  - Without peers the likeliest interface is reported, a real device on a private network that does not carry the default
    route being preferred.
  - Loopback, bridges without a real device below them, C(veth) ends of containers, tunnels and overlays are never chosen.
  - Changes nothing.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.read_only
options:
  peers:
    description: Addresses of the other nodes inside the cluster.
    type: list
    elements: str
    default: []
  interface:
    description: The interface that it has to be. With O(peers) the module fails when the kernel uses another one.
    type: str
  cidr:
    description: The network, in CIDR notation, that the address has to lie in.
    type: str
  connect_port:
    description:
      - Also open a TCP connection to this port of every peer. An answer, a refusal too, proves that packets pass. A peer that
        does not answer is a warning, since a firewall that a later stage opens may be the cause.
      - V(0) does not connect.
    type: int
    default: 0
  connect_timeout:
    description: Seconds to wait for each peer; all are asked at once.
    type: float
    default: 5
"""

EXAMPLES = r"""
- name: Which interface leads to the other nodes
  metalray.cluster.default_interface_facts:
    peers: [10.15.22.33, 10.15.22.34]

- name: The same, for a node whose network is known
  metalray.cluster.default_interface_facts:
    cidr: 10.15.22.0/24
"""

RETURN = r"""
ansible_facts:
  description: The facts, under one name.
  returned: success
  type: dict
  contains:
    default_interface:
      description: What carries cluster traffic on this node.
      type: dict
      sample: {interface: enp27s0f0np0, address: 10.15.22.33, prefix: 24, network: 10.15.22.0/24, mtu: 1500,
        speed_mbps: 100000, physical: true, default_route: false, first: true, version: 4}
unreached:
  description: Peers that did not answer on O(connect_port), each with the reason.
  returned: success
  type: dict
  sample: {10.15.22.34: timed out}
"""

import errno
import ipaddress
import json
import socket
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._addresses import IF_INET6, find_netifaces, read_addresses
from ..module_utils._interfaces import (
    InterfaceError,
    check_routes,
    check_steady,
    choose,
    describe,
    find_candidates,
    narrow,
    parse_routes,
    read_links,
    route_batch,
)
from ..module_utils._tree import read_text


def try_connect(address: str, port: int, timeout: float) -> str | None:
    """Why no packet came back from a peer, or None when one did."""
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return None
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return error.strerror or str(error)
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "peers": {"type": "list", "elements": "str", "default": []},
            "interface": {"type": "str"},
            "cidr": {"type": "str"},
            "connect_port": {"type": "int", "default": 0},
            "connect_timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    wanted = module.params["interface"]
    ip = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])

    def ask(*arguments: str) -> list[dict]:
        rc, out, err = module.run_command([ip, "-j", *arguments], environ_update={"LC_ALL": "C"})
        if rc != 0:
            module.fail_json(msg=f"'ip {' '.join(arguments)}' failed: {err.strip() or errno.errorcode.get(rc, rc)}")
        return json.loads(out or "[]")

    def ask_ways() -> dict[str, dict]:
        """One process for all peers. Its status says nothing that its answers and errors do not."""
        command = [ip, "-j", "-force", "-batch", "-"]
        _rc, out, err = module.run_command(command, data=route_batch(peers), environ_update={"LC_ALL": "C"})
        return parse_routes(peers, out, err)

    peers = module.params["peers"]
    for peer in peers:
        try:
            ipaddress.ip_address(peer)
        except ValueError:
            module.fail_json(msg=f"peers must be IP addresses, '{peer}' is not one")

    problems: list[str] = []
    netifaces = find_netifaces()
    links = read_links(problems=problems)
    addresses = read_addresses(netifaces, read_text(IF_INET6), [] if netifaces else ask("address"))
    have = find_candidates(links, addresses, ask("route") + ask("-6", "route"))
    for problem in problems:
        module.warn(problem)
    ways: dict[str, dict] = {}
    try:
        candidates = narrow(have, wanted, module.params["cidr"])
        if peers:
            ways = ask_ways()
            device, source = check_routes(ways, wanted)
            candidates = [c for c in candidates if c.interface == device and c.address == source]
            if not candidates:
                raise InterfaceError(
                    f"this node reaches its peers by {device} (from {source}), which cannot carry the cluster; it has {describe(have)}"
                )
        picked, _network = choose({"this node": candidates}, "this node")
    except InterfaceError as error:
        module.fail_json(msg=" ".join([str(error), *problems]))

    unreached = {}
    if module.params["connect_port"] and peers:
        with ThreadPoolExecutor(max_workers=64) as pool:
            tries = {
                peer: pool.submit(try_connect, peer, module.params["connect_port"], module.params["connect_timeout"])
                for peer in peers
            }
            unreached = {peer: reason for peer, attempt in tries.items() if (reason := attempt.result())}

    for peer, reason in unreached.items():
        module.warn(
            f"no answer from {peer} on port {module.params['connect_port']} by {device}: {reason}. Unless a later stage opens that "
            "peer's firewall, the cluster cannot work over this network; name another one in cluster_cidr"
        )

    if peers:
        try:
            check_steady(ways, ask_ways())
        except InterfaceError as error:
            module.fail_json(msg=str(error))

    chosen = picked["this node"]
    facts = {**chosen.to_dict(), "network": chosen.network, "version": chosen.version}
    module.exit_json(changed=False, ansible_facts={"default_interface": facts}, unreached=unreached)


if __name__ == "__main__":
    main()
