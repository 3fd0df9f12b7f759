# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import pwd

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._node import (
    can_raise_limits,
    count_gpus,
    free_bytes,
    mount_of,
    parse_limits,
    parse_meminfo,
    parse_os_release,
)

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 20000                files
Max locked memory         8388608              unlimited            bytes
"""


def test_os_release_with_and_without_quotes():
    text = 'PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
    assert parse_os_release(text) == {
        "id": "ubuntu",
        "version": "24.04",
        "codename": "noble",
        "name": "Ubuntu 24.04 LTS",
    }
    assert parse_os_release("") == {"id": "", "version": "", "codename": "", "name": ""}


def test_hard_limits_and_the_right_to_raise_them():
    assert parse_limits(LIMITS) == {"nofile": 20000, "memlock": None}
    assert can_raise_limits("CapEff:\t0\nCapBnd:\t000001ffffffffff\n")
    assert not can_raise_limits("CapBnd:\t00000000a82c35fb\n")


def test_memory_gpus_and_mounts(tmp_path):
    assert parse_meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n") == 2048 * 1024
    assert count_gpus(str(tmp_path)) == 0
    for bus in ("0000:18:00.0", "0000:2a:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert count_gpus(str(tmp_path)) == 2
    mounts = "/dev/sda1 / ext4 rw 0 0\nhead:/x /mnt/shared nfs4 rw 0 0\ntmpfs /mnt/sharedness tmpfs rw 0 0\n"
    assert mount_of(mounts, "/mnt/shared/src") == {"source": "head:/x", "point": "/mnt/shared", "type": "nfs4"}
    assert mount_of(mounts, "/mnt/other")["point"] == "/"


def test_free_space_of_what_is_not_there_yet(tmp_path):
    # Others write to that disk too, between the two looks.
    assert free_bytes(str(tmp_path / "a/b/c")) == pytest.approx(free_bytes(str(tmp_path)), rel=0.05)


def test_this_machine(run_module):
    """The module on a real kernel."""
    facts = run_module("node_facts", shared_dir="/no/such/directory")["ansible_facts"]["metalray_node"]
    assert facts["cpus"] == len(os.sched_getaffinity(0)) and facts["memory_bytes"] > 2**28
    assert facts["os"]["id"] and facts["kernel"] == os.uname().release
    assert facts["shared_dir"]["exists"] is False
    account = pwd.getpwnam(facts["user"]["name"])
    assert (facts["user"]["uid"], facts["user"]["home"]) == (account.pw_uid, account.pw_dir)
    assert run_module("node_facts", user="no-such-account")["ansible_facts"]["metalray_node"]["user"] is None
