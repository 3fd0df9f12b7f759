# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Beside ufw on the head, rules for nftables on the worker, and a container that Docker publishes there."""

from __future__ import annotations

import subprocess

import pytest
from guests import ADDRESSES, NODES, PUBLIC, PUBLISHED, SHARED, as_root, knock, met_by_a_stranger, sudo
from sandbox import site

# Everything that is not the collection's, without counters.
RULES = "(nft --stateless list ruleset; ufw status verbose) | sed -E 's/counter packets [0-9]+ bytes [0-9]+//'"


def test_members_reach_one_another():
    assert set(knock("node2", ADDRESSES["node1"], [22, 2049, 6379, 6380, 6381]).values()) == {"open"}
    assert set(knock("node1", ADDRESSES["node2"], [22, 6380, 6381]).values()) == {"open"}


@pytest.mark.parametrize("node", NODES)
def test_a_stranger_finds_ssh_and_what_is_published_and_nothing_else(stranger, node):
    assert met_by_a_stranger(node) == ""


def mount(guest: str) -> subprocess.CompletedProcess[str]:
    """The kernel's own mount: the guest has no NFS tools."""
    options = f"addr={PUBLIC['node1']},clientaddr={PUBLIC[guest]},vers=4.2,soft,timeo=30,retrans=1"
    return sudo(guest, f"mount -i -t nfs4 -o {options} {PUBLIC['node1']}:{SHARED} /mnt")


def test_a_stranger_cannot_mount_the_share(stranger):
    done = mount(stranger)
    assert done.returncode != 0 and "timed out" in done.stderr, done


def test_taking_ours_away_leaves_theirs(stranger):
    with_ours = {node: as_root(node, RULES) for node in NODES}
    gone = site("--tags", "firewall", "-e", "firewall_state=absent")
    assert gone.status == 0, gone.text[-4000:]
    try:
        for node in NODES:
            left = as_root(node, RULES)
            assert "metalray" in with_ours[node] and "metalray" not in left
            # What is gone is ours: not a line was added, and every other chain is still there.
            theirs = "chain ufw-user-input" if node == "node1" else "table inet provider"
            assert theirs in left and set(left.splitlines()) <= set(with_ours[node].splitlines())
        # So it is ours that closes Ray's ports where the provider's rules do not.
        assert knock(stranger, PUBLIC["node2"], [PUBLISHED, 6380]) == {PUBLISHED: "open", 6380: "open"}
        # And where no firewall helps, the export still names its clients.
        as_root("node1", f"ufw allow from {PUBLIC[stranger]}")
        assert knock(stranger, PUBLIC["node1"], [2049]) == {2049: "open"}
        done = mount(stranger)
        assert done.returncode != 0 and "timed out" not in done.stderr, done
    finally:
        # Not there where it came to nothing: what is left over shows below.
        sudo("node1", f"ufw delete allow from {PUBLIC[stranger]}")
        back = site("--tags", "firewall")
    assert back.status == 0, back.text[-4000:]
    for node in NODES:
        assert sorted(as_root(node, RULES).splitlines()) == sorted(with_ours[node].splitlines())
        assert met_by_a_stranger(node) == ""
