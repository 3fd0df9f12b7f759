# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._node import (
    can_raise_limits,
    count_gpus,
    parse_limits,
    parse_meminfo,
    parse_os_release,
    read_node,
)
from namespaces import COLLECTIONS, needs_namespaces
from trees import FakeRoot

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


def test_memory_and_gpus(tmp_path):
    assert parse_meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n") == 2048 * 1024
    assert count_gpus(str(tmp_path)) == 0
    for bus in ("0000:18:00.0", "0000:2a:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert count_gpus(str(tmp_path)) == 2


def test_the_fabric_is_part_of_a_node(tmp_path):
    root = FakeRoot(tmp_path)
    root.net("eth0", "/sys/devices/pci0000:00/0000:00:03.0", speed=100000)
    root.write("/etc/environment", "NCCL_P2P_DISABLE=1").write("/root/.profile", "export GLOO_X=1")
    listed = json.dumps([{"ifname": "eth0", "addr_info": [{"local": "10.0.0.5", "prefixlen": 24, "label": "eth0"}]}])

    def run_ip(arguments):
        return listed if "address" in arguments else ""

    def run(argv, seconds):
        raise AssertionError(argv)

    node = read_node(run_ip, run, None, "root", "/mnt/shared", root=root.path)
    assert [(c["interface"], c["speed_mbps"], c["first"]) for c in node["candidates"]] == [("eth0", 100000, True)]
    assert node["fabric"]["netifaces"] is False
    assert [(item["file"], item["name"]) for item in node["fabric"]["environment"]] == [
        ("/etc/environment", "NCCL_P2P_DISABLE"),
        ("/root/.profile", "GLOO_X"),
    ]
    # The account is not there, so neither are its files.
    other = read_node(run_ip, run, None, "no-such-account", "/mnt/shared", root=root.path)
    assert [item["file"] for item in other["fabric"]["environment"]] == ["/etc/environment"]


@needs_namespaces
@pytest.mark.parametrize(("raw", "shown"), [(b"knoten-\xc3\xa4", "knoten-\xe4"), (b"knoten-\xe4", "knoten-\ufffd")])
def test_a_host_name_that_is_no_ascii(raw, shown):
    code = (
        f"import runpy, socket; socket.sethostname({raw!r}); runpy.run_module("
        "'ansible_collections.metalray.cluster.plugins.modules.node_facts', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        ["unshare", "--uts", sys.executable, "-c", code],
        input='{"ANSIBLE_MODULE_ARGS": {}}',
        capture_output=True,
        text=True,
        cwd=COLLECTIONS,
        check=False,
    )
    assert json.loads(done.stdout)["ansible_facts"]["metalray_node"]["hostname"] == shown, done.stderr


def test_this_machine(run_module):
    """The module on a real kernel."""
    facts = run_module("node_facts", shared_dir="/no/such/directory")["ansible_facts"]["metalray_node"]
    assert facts["cpus"] == len(os.sched_getaffinity(0)) and facts["memory_bytes"] > 2**28
    assert facts["os"]["id"] and facts["kernel"] == os.uname().release
    assert facts["shared_dir"]["exists"] is False
    fabric = facts["fabric"]
    assert {"lo"} <= {link["name"] for link in fabric["interfaces"]} and fabric["shm_bytes"] > 0
    contact = facts["first_contact"]
    assert contact["clock"]["started"] <= contact["clock"]["ended"] and contact["hostname"] == facts["hostname"]
    assert contact["disks"]["/"]["free_bytes"] > 0 and contact["python_version"].startswith("3.")
    account = pwd.getpwnam(facts["user"]["name"])
    assert (facts["user"]["uid"], facts["user"]["home"]) == (account.pw_uid, account.pw_dir)
    assert run_module("node_facts", user="no-such-account")["ansible_facts"]["metalray_node"]["user"] is None
