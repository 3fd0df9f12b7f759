#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: network_proof
short_description: Prove that every node reaches every other one as training will
version_added: 0.1.0
description:
  - Runs on all nodes at the same time, with the same O(peers) and O(token); one call a node does the whole proof. Start it
    with C(async) and C(poll=0), so that no node waits for another's task to end, and collect it with
    M(ansible.builtin.async_status).
  - Every node listens on its own address, and connects from it to every other node, again and again until O(timeout). So
    all pairs are proved, both ways.
  - Every node sends packets of its interface's MTU to every other one, not to be fragmented. Where they do not arrive, it
    finds the largest that do.
  - If all nodes have passed, O(user) runs an all-reduce in a fresh login, inside the node and across the nodes, with one
    process a GPU (NCCL), or one a node where no node has a GPU (Gloo). NCCL's log, or what the kernel counted on Gloo's
    connections, must show the transport, the interface and the HCAs of O(expect).
  - Fails with everything that is wrong as seen from this node. Changes nothing, and leaves no process behind.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Says what it would do, opens no port and starts nothing.
  diff_mode:
    support: N/A
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
options:
  peers:
    description: All nodes, this one too, in the same order everywhere. The first is the head.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: How to call the node.
        type: str
        required: true
      address:
        description: Its address inside the cluster.
        type: str
        required: true
  self:
    description: The name of this node in O(peers).
    type: str
    required: true
  interface:
    description: The interface that carries the cluster's traffic on this node.
    type: str
    required: true
  mtu:
    description: Its MTU. Another than the other nodes have is a problem.
    type: int
    required: true
  gpus:
    description: The GPUs of this node that take part.
    type: int
    default: 0
  port:
    description:
      - The nodes listen here, TCP and UDP; the ranks of the collective meet at the head on the next one, TCP. Both are to
        be free on all nodes and open between them.
      - The default is below the ports that Linux gives out by itself (C(net.ipv4.ip_local_port_range)), so no connection
        can hold it by chance.
    type: int
    default: 29477
  timeout:
    description: Seconds in which all nodes have to meet, counted from this node's start. They need not start together.
    type: float
    default: 60
  token:
    description: Anything that is new in every run and the same on all nodes. Whoever does not have it is refused.
    type: str
    required: true
  collective:
    description: Whether to run the collective.
    type: bool
    default: true
  collective_timeout:
    description: Seconds in which the collective has to end, loading torch included.
    type: float
    default: 180
  script:
    description: The text of the program that every rank runs, C(collective.py) of the role P(metalray.cluster.network_env#role).
      Needed with O(collective).
    type: str
  python:
    description: The environment's Python. Where it, or torch in it, is missing, the collective is not run. On all nodes that
      is no failure; on some it is theirs.
    type: path
    default: /opt/metalray/venv/bin/python
  user:
    description: The account whose fresh login runs the collective. By default the one that runs this module.
    type: str
  expect:
    description: What the environment is made for. What is not given is not judged.
    type: dict
    default: {}
    suboptions:
      transport:
        description: The network of NCCL between nodes, such as V(Socket), V(IB) or V(Libfabric).
        type: str
        default: ''
      interface:
        description: The interface of NCCL's sockets, which IB needs too, to begin with. By default O(interface).
        type: str
      hcas:
        description: The HCAs of IB, such as V(mlx5_0) or V(mlx5_0:1). Exactly these are right.
        type: list
        elements: str
        default: []
      intra:
        description:
          - How GPUs of one node talk. V(P2P) where NVLink joins all; V(SHM) and V(any) take everything but the network.
          - V(NET) judges nothing, for settings that turn the others off on purpose.
        type: str
        choices: [P2P, SHM, any, NET]
        default: any
      gpudirect:
        description: Whether GPUs must reach the network by GPUDirect RDMA.
        type: bool
        default: false
  record:
    description:
      - Keep a proof that passes under this fingerprint in C(/var/lib/metalray/network_proof.json), where
        M(metalray.cluster.node_facts) finds it. An older one is removed first; with an empty text
        nothing is kept. A log of what has been seen, which counts as no change.
    type: str
seealso:
  - module: metalray.cluster.nccl_env
"""

EXAMPLES = r"""
- name: Begin the proof on all nodes
  become: true
  metalray.cluster.network_proof:
    peers:
      - {name: node1, address: 10.77.0.11}
      - {name: node2, address: 10.77.0.12}
    self: "{{ inventory_hostname }}"
    interface: enp27s0f0np0
    mtu: 9000
    gpus: 8
    token: 6d1f0c
    user: ray
    script: "{{ lookup('ansible.builtin.file', 'collective.py') }}"
    expect:
      transport: Socket
      intra: P2P
  async: 300
  poll: 0
  register: begun

- name: Wait for it
  become: true
  ansible.builtin.async_status:
    jid: "{{ begun.ansible_job_id }}"
  register: proof
  until: proof.finished
  delay: 1
  retries: 300
"""

RETURN = r"""
ansible_facts:
  description: C(network_proof), the record, or nothing where none was kept.
  returned: success
  type: dict
reached:
  description: For each other node, V(true), or why it was not reached.
  returned: always
  type: dict
  sample: {node2: true}
mtu:
  description: For each other node, the largest packet that passes to it, or null where that is not known.
  returned: always
  type: dict
  sample: {node2: 9000}
collective:
  description: What the all-reduce showed. Where it was not run, or failed, only what is known.
  returned: always
  type: dict
  contains:
    ran:
      description: Whether it ran here and its sums were right.
      type: bool
    reason:
      description: Why it was not run, if it was not.
      type: str
    backend:
      description: V(nccl) or V(gloo).
      type: str
    world:
      description: How many processes took part on all nodes.
      type: int
    network:
      description: What carried it between nodes, in NCCL's words; V(TCP) with Gloo.
      type: str
    interface:
      description: The interface that it used.
      type: str
    hcas:
      description: The HCAs that it used.
      type: list
      elements: str
    intra:
      description: How the GPUs of this node talked, such as V(P2P/CUMEM).
      type: str
    version:
      description: NCCL's version, or torch's with Gloo.
      type: str
    gb_per_s:
      description: Bus bandwidth of one all-reduce of 64 MiB (NCCL) or 1 MiB (Gloo) in GB/s. For information.
      type: float
passed:
  description: Whether this node has no problem, and no other that it heard of.
  returned: always
  type: bool
problems:
  description: Everything that is wrong, one sentence each.
  returned: always
  type: list
  elements: str
planned:
  description: What a real run would do.
  returned: check mode
  type: list
  elements: str
seconds:
  description: How long it took.
  returned: always
  type: float
"""

import contextlib
import ipaddress
import json
import os
import pwd
import signal
import time
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import FilesError, Wanted, apply_files
from ..module_utils._network_proof import (
    NOT_RUN,
    Collective,
    Expected,
    Myself,
    Peer,
    ProofError,
    plan_text,
    prove,
    record_of,
    why_no_torch,
)
from ..module_utils._node import PROOF_RECORD


def read_peers(given: list[dict[str, Any]], name: str) -> tuple[list[Peer], Peer]:
    """All nodes and this one. Raises ProofError for a list that cannot be right."""
    peers = [Peer(**entry) for entry in given]
    for peer in peers:
        try:
            ipaddress.ip_address(peer.address)
        except ValueError:
            raise ProofError(f"the address of {peer.name} is '{peer.address}', which is no IP address") from None
    for what in ("name", "address"):
        values = [getattr(peer, what) for peer in peers]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice:
            raise ProofError(f"two nodes of peers have the {what} '{twice}'; each needs its own")
    if name not in [peer.name for peer in peers]:
        raise ProofError(f"self is '{name}', which is none of peers ({', '.join(peer.name for peer in peers)})")
    return peers, next(peer for peer in peers if peer.name == name)


def end(*_: Any) -> None:
    """Ended from outside, it ends what it has started."""
    raise ProofError("the proof was ended before it was over; run it again")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "peers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
            },
            "self": {"type": "str", "required": True},
            "interface": {"type": "str", "required": True},
            "mtu": {"type": "int", "required": True},
            "gpus": {"type": "int", "default": 0},
            "port": {"type": "int", "default": 29477},
            "timeout": {"type": "float", "default": 60},
            "token": {"type": "str", "required": True, "no_log": False},
            "collective": {"type": "bool", "default": True},
            "collective_timeout": {"type": "float", "default": 180},
            "script": {"type": "str"},
            "python": {"type": "path", "default": "/opt/metalray/venv/bin/python"},
            "user": {"type": "str"},
            "record": {"type": "str"},
            "expect": {
                "type": "dict",
                "default": {},
                "options": {
                    "transport": {"type": "str", "default": ""},
                    "interface": {"type": "str"},
                    "hcas": {"type": "list", "elements": "str", "default": []},
                    "intra": {"type": "str", "choices": ["P2P", "SHM", "any", "NET"], "default": "any"},
                    "gpudirect": {"type": "bool", "default": False},
                },
            },
        },
        required_if=[("collective", True, ("script",))],
        supports_check_mode=True,
    )
    given = module.params
    if not 1024 <= given["port"] <= 65534:
        module.fail_json(msg=f"port is {given['port']}; 1024 to 65534 are allowed, since the next one is used too")
    signal.signal(signal.SIGTERM, end)
    try:
        peers, own = read_peers(given["peers"], given["self"])
        collective = None
        if given["collective"]:
            expect = {
                "transport": "",
                "interface": None,
                "hcas": [],
                "intra": "any",
                "gpudirect": False,
                **given["expect"],
            }
            expect.update(interface=expect["interface"] or given["interface"], hcas=tuple(expect["hcas"]))
            collective = Collective(
                user=given["user"] or pwd.getpwuid(os.geteuid()).pw_name,
                python=given["python"],
                script=given["script"],
                seconds=given["collective_timeout"],
                expect=Expected(**expect),
            )
        me = Myself(own.name, own.address, given["interface"], given["mtu"], given["gpus"])
        if module.check_mode:
            empty = {
                "reached": {},
                "mtu": {},
                "collective": {**NOT_RUN, "reason": "not run: check mode"},
                "problems": [],
            }
            planned = plan_text(me, peers, given["port"], collective)
            module.exit_json(changed=False, planned=planned, seconds=0.0, **empty)
        if given["record"] is not None:
            # It holds no longer, until it has been shown again. One that cannot be removed cannot be written either.
            with contextlib.suppress(OSError):
                os.unlink(f"/{PROOF_RECORD}")
        if collective:
            me = replace(me, torch=why_no_torch(collective.user, collective.python))
        result = prove(me, peers, given["port"], given["token"], given["timeout"], collective)
    except ProofError as error:
        module.fail_json(msg=f"{error}.")
    if result["problems"]:
        module.fail_json(msg=" ".join(f"{problem}." for problem in result["problems"]), **result)
    facts: dict[str, Any] = {"network_proof": {}}
    if given["record"] and result["passed"]:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        facts = {"network_proof": record_of(result, given["record"], when)}
        try:
            apply_files(module, [Wanted(f"/{PROOF_RECORD}", json.dumps(facts["network_proof"], indent=1) + "\n")])
        except FilesError as error:
            msg = f"the proof has passed, and cannot be kept, so it would be repeated every time: {error}. Let root write there"
            module.fail_json(msg=msg, **result)
    module.exit_json(changed=False, ansible_facts=facts, **result)


if __name__ == "__main__":
    main()
