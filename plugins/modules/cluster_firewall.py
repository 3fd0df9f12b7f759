#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_firewall
short_description: Close a node's ports to strangers and keep the node open to the members of its cluster
version_added: 0.1.0
description:
  - B(Closing) is one nftables table of its own, C(inet metalray). It drops the first packet of a TCP connection to a
    closed port unless it comes from the node itself, from a member or from an allowed network. A drop in any base
    chain is final, so this holds beside ufw, firewalld, iptables and Docker, and none of their rules is touched. It
    uses no connection tracking and cuts no connection that is already open.
  - B(SSH is never closed.) Ports on which an SSH daemon listens, that systemd holds for it, that the present
    connection uses, those of O(ssh_ports), and 22 are left out of every range. A port of SSH that is named by itself
    is refused.
  - B(Opening) is done only where something else filters the node's input, in its own terms. Active ufw gets rules
    with the comment C(metalray). Running firewalld gets rich rules of a priority of their own in every zone in use,
    without a reload. An iptables C(INPUT) that drops or rejects jumps to the chain C(METALRAY-INPUT). Any other
    nftables chain on the input hook that drops or rejects gets an accept rule with the comment C(metalray) at its
    head.
  - Where Docker restricts forwarding, C(DOCKER-USER) jumps to C(METALRAY-FORWARD), which accepts what one member
    sends to another, and replies from and to members.
  - C(metalray-firewall.service) puts all of it in force again at boot and after the system's own rules are loaded
    anew.
  - O(state=absent) takes away exactly these objects.
notes:
  - Needs root, and the package C(nftables), which is installed with apt where it is missing.
  - UDP ports are closed without regard to who began the exchange.
  - Only chains on the input hook are opened. Nothing is done about rules for outgoing packets or on other hooks.
  - What flushes all nftables rules takes these with it. They come back with C(systemctl restart) or C(reload) of
    C(nftables); after C(systemctl stop nftables) with its next start; after C(nft flush ruleset) or C(nft -f) by hand with
    C(systemctl restart metalray-firewall).
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it.
  diff_mode:
    support: full
    description: Returns the rules before and after.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  state:
    description:
      - V(present) puts the rules in force and keeps them over a reboot.
      - V(absent) removes them all; the other options are not used then.
      - V(proved) changes nothing. It opens a connection from this node to O(probe_port) of every member, and fails if
        one of them does not answer. A refused connection is an answer.
    type: str
    choices: [present, absent, proved]
    default: present
  members:
    description: Addresses of the cluster's nodes. They reach every port. Required unless O(state=absent).
    type: list
    elements: str
    default: []
  keep_members:
    description: Let in the members of the last run too. For a run in which not every node of the cluster answered.
    type: bool
    default: false
  allowed_networks:
    description: Other addresses and networks that reach the closed ports, as far as other firewalls let them.
    type: list
    elements: str
    default: []
  closed_ports:
    description: TCP ports that only members and O(allowed_networks) reach, as numbers or ranges such as V(10002-19999).
    type: list
    elements: str
    default: []
  closed_udp_ports:
    description: The same for UDP.
    type: list
    elements: str
    default: []
  close_ephemeral:
    description:
      - Close the node's C(net.ipv4.ip_local_port_range) for TCP too. NCCL, Gloo and vLLM listen there, on ports that
        are not known beforehand, and without authentication.
    type: bool
    default: true
  ssh_ports:
    description: More ports that are never closed.
    type: list
    elements: int
    default: []
  probe_port:
    description: The TCP port that O(state=proved) tries.
    type: int
    default: 6379
  probe_timeout:
    description: Seconds that O(state=proved) waits for all members together.
    type: float
    default: 3
"""

EXAMPLES = r"""
- name: Keep Ray's ports for the cluster
  become: true
  metalray.cluster.cluster_firewall:
    members: [10.77.0.11, 10.77.0.12]
    closed_ports: [6379-6384, 8265, 10001-19999]

- name: Prove that the members reach one another
  metalray.cluster.cluster_firewall:
    state: proved
    members: [10.77.0.11, 10.77.0.12]

- name: Take the rules away
  become: true
  metalray.cluster.cluster_firewall:
    state: absent
"""

RETURN = r"""
changes:
  description: What changed, or would change in check mode.
  returned: when O(state) is not V(proved)
  type: list
  elements: str
  sample: ["nftables: table inet metalray", "ufw: rules of the members"]
closed_tcp:
  description: The closed TCP ports, without those of SSH.
  returned: when O(state=present)
  type: list
  elements: str
  sample: ["6379-6384", "8265", "10001-19999", "32768-60999"]
members:
  description: The members that are let in.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [10.77.0.11, 10.77.0.12]
opened:
  description: Which of ufw and firewalld are active on the node and know the members.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [ufw]
ssh_ports:
  description: The ports that are never closed on this node.
  returned: when O(state=present)
  type: list
  elements: int
  sample: [22]
answers:
  description: What came from every member.
  returned: when O(state=proved)
  type: dict
  sample: {10.77.0.12: open}
"""

import contextlib
import inspect
import os
import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _firewall as fw
from ..module_utils._files import FilesError, Wanted, apply_files


def install_nftables(module: AnsibleModule) -> None:
    """nftables from the distribution, waiting for whoever holds dpkg's lock."""
    if not fw.which("apt-get"):
        raise fw.FirewallError("nft is missing on this node and there is no apt-get; install nftables")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-y", "--no-install-recommends", "install", "nftables"]
    status, _out, err = module.run_command(install, environ_update=environment)
    if status != 0:  # the lists of packages may be missing or too old
        module.run_command(["apt-get", "-o", "DPkg::Lock::Timeout=600", "update"], environ_update=environment)
        status, _out, err = module.run_command(install, environ_update=environment)
    if status != 0:
        raise fw.FirewallError(f"nft is missing on this node and apt-get cannot install nftables: {err.strip()}")


def files(closing: fw.Closing, members: list[fw.Network], forward: list[str]) -> list[Wanted]:
    """What keeps the rules over a reboot."""
    return [
        Wanted(fw.RULES, fw.render_table(closing)),
        Wanted(fw.CONFIG, fw.config_text(members, forward)),
        # Secret only in that a diff of the whole program would bury the rest.
        Wanted(fw.PROGRAM, inspect.getsource(fw), secret=True),
        Wanted(fw.UNIT, fw.unit_text(fw.which("nft") or "/usr/sbin/nft", fw.which("python3") or sys.executable)),
    ]


def systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system")


def unit_changes(run: fw.Run) -> list[str]:
    """What must happen to the unit for it to be in force now and at boot."""
    out = run(["systemctl", "show", "-p", "UnitFileState,ActiveState", fw.UNIT_NAME])[1].splitlines()
    return [
        f"{fw.UNIT_NAME}: {change}"
        for line, change in (("UnitFileState=enabled", "enabled"), ("ActiveState=active", "started"))
        if line not in out
    ]


def present(module: AnsibleModule, run: fw.Run) -> dict[str, Any]:
    params = module.params
    members = fw.parse_networks(params["members"], "members")
    if not members:
        raise fw.FirewallError("members is empty: that would close the node to its own cluster. Name its nodes")
    before, forwarded = fw.read_config()
    if params["keep_members"]:
        members = fw.parse_networks([*members, *before], "members")
    ssh = sorted(fw.find_ssh_ports(run) | set(params["ssh_ports"]))
    closing = fw.Closing(
        allowed=fw.parse_networks([*members, *params["allowed_networks"]], "allowed_networks"),
        tcp=fw.closed_ports(params["closed_ports"], fw.ephemeral_ports() if params["close_ephemeral"] else None, ssh),
        udp=fw.merge(fw.parse_port(value) for value in params["closed_udp_ports"]),
    )
    changes = []
    if not fw.which("nft"):
        changes.append("package nftables: installed")
        if not module.check_mode:
            install_nftables(module)

    kernel = fw.observe(run)
    forward = fw.forward_tools(kernel, forwarded)
    ufw, in_ufw = fw.ufw_steps(run, members)
    firewalld, in_firewalld = fw.firewalld_steps(run, members)
    # Opened before closed: no member is shut out in between.
    steps = [*in_ufw, *in_firewalld, *fw.plan_kernel(kernel, members, forward), *fw.plan_table(kernel.ruleset, closing)]
    if not module.check_mode:
        for step in steps:
            fw.apply_step(run, step)
    written = apply_files(module, files(closing, members, forward))
    changes += [step.what for step in steps] + written.paths

    if systemd_runs():
        pending = unit_changes(run)
        if (pending or fw.UNIT in written.paths) and not module.check_mode:
            commands = [["systemctl", "daemon-reload"], ["systemctl", "--quiet", "reenable", fw.UNIT_NAME]]
            fw.apply_step(run, fw.Step(fw.UNIT_NAME, [*commands, ["systemctl", "restart", fw.UNIT_NAME]]))
        changes += pending
    else:
        module.warn("systemd does not run here: the rules are in force, but nothing brings them back after a reboot")
    return {
        "changed": bool(changes),
        "changes": changes,
        "diff": [step.as_diff() for step in steps] + written.diff,
        "closed_tcp": fw.port_text(closing.tcp),
        "members": [fw.address_text(network) for network in members],
        "opened": [name for name, active in (("ufw", ufw), ("firewalld", firewalld)) if active],
        "ssh_ports": ssh,
    }


def absent(module: AnsibleModule, run: fw.Run) -> dict[str, Any]:
    kernel = fw.observe(run)
    steps = [*fw.plan_table(kernel.ruleset, None), *fw.plan_kernel(kernel, [], [])]
    steps += [*fw.firewalld_steps(run, [])[1], *fw.ufw_steps(run, [])[1]]
    had_unit = os.path.exists(fw.UNIT) and systemd_runs()
    if not module.check_mode:
        if had_unit:  # first: it would put the rules back
            fw.apply_step(run, fw.Step(fw.UNIT_NAME, [["systemctl", "--quiet", "disable", "--now", fw.UNIT_NAME]]))
        for step in steps:
            fw.apply_step(run, step)
    paths = (fw.UNIT, fw.PROGRAM, fw.CONFIG, fw.RULES)
    written = apply_files(module, [Wanted(path, state="absent", secret=path == fw.PROGRAM) for path in paths])
    if not module.check_mode:
        if had_unit:
            fw.apply_step(run, fw.Step("systemd", [["systemctl", "daemon-reload"]]))
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(fw.PROGRAM))
    for path in fw.saved_copies():
        module.warn(f"{path} holds a saved copy of this module's rules and would bring them back at boot; save it anew")
    changes = [step.what for step in steps] + written.paths
    return {"changed": bool(changes), "changes": changes, "diff": [step.as_diff() for step in steps] + written.diff}


def proved(module: AnsibleModule) -> dict[str, Any]:
    addresses = [fw.address_text(network) for network in fw.parse_networks(module.params["members"], "members")]
    port, timeout = module.params["probe_port"], module.params["probe_timeout"]
    answers = fw.probe(addresses, port, timeout)
    bad = [f"{address}: {answer}" for address, answer in answers.items() if answer != fw.OPEN]
    if bad:
        module.fail_json(
            msg=f"this node does not get through to TCP port {port} of {'; '.join(bad)}. Either that node is down, "
            "or something that this module does not manage filters between them: rules for outgoing packets here, rules on "
            "other hooks there, a cloud's security group, a switch. The members must reach one another on every port",
            answers=answers,
        )
    return {"changed": False, "answers": answers}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "proved"], "default": "present"},
            "members": {"type": "list", "elements": "str", "default": []},
            "keep_members": {"type": "bool", "default": False},
            "allowed_networks": {"type": "list", "elements": "str", "default": []},
            "closed_ports": {"type": "list", "elements": "str", "default": []},
            "closed_udp_ports": {"type": "list", "elements": "str", "default": []},
            "close_ephemeral": {"type": "bool", "default": True},
            "ssh_ports": {"type": "list", "elements": "int", "default": []},
            "probe_port": {"type": "int", "default": 6379},
            "probe_timeout": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C", "LANG": "C"}

    def run(argv: list[str], stdin: str | None = None) -> tuple[int, str, str]:
        return module.run_command([fw.which(argv[0]) or argv[0], *argv[1:]], data=stdin)

    state = module.params["state"]
    try:
        if state == "proved":
            result = proved(module)
        elif os.geteuid() != 0:
            raise fw.FirewallError("the rules of a node are root's: run this task with become")
        else:
            result = present(module, run) if state == "present" else absent(module, run)
    except (fw.FirewallError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
