# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody finds who logs in to a node of the finished cluster. Runs on all three, over SSH."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path

import pytest

PRIVATE_INTERFACES = {"node1": "enp27s0f0np0", "node2": "enp157s0f0np0", "node3": "eth1"}
# Ray's ports with their default numbers, and one of a worker.
RAY_PORTS = [6379, 6380, 6381, 6382, 6383, 6384, 8265, 10001, 10002, 44217, 44227, 52365]
NOFILE, MEMLOCK_KIB = 16384, 8192


@pytest.fixture(scope="module")
def name(host) -> str:
    return host.check_output("hostname")


@pytest.fixture(scope="module")
def unit(name) -> str:
    return "metalray-head" if name == "node1" else "metalray-worker"


@pytest.fixture(scope="module")
def private_address(host, name) -> str:
    device = json.loads(host.check_output(f"ip -j -4 address show dev {PRIVATE_INTERFACES[name]}"))[0]
    return device["addr_info"][0]["local"]


@pytest.fixture(scope="module")
def raylet(host) -> str:
    """Process id of the node's raylet."""
    with host.sudo():
        return host.check_output("pgrep -x raylet")


def login(host, command: str) -> str:
    """What a fresh login shell prints."""
    return host.check_output("bash -lc %s", command)


def test_logins_and_ray_use_the_private_interface(host, name, raylet, private_address):
    wanted = {"GLOO_SOCKET_IFNAME": PRIVATE_INTERFACES[name], "VLLM_HOST_IP": private_address}
    for variable, value in wanted.items():
        assert login(host, f"echo ${variable}") == value
    with host.sudo():
        environment = host.check_output(f"tr '\\0' '\\n' </proc/{raylet}/environ").splitlines()
    assert {f"{variable}={value}" for variable, value in wanted.items()} <= set(environment)
    # Without a GPU there is nothing for NCCL to read.
    assert not host.file("/etc/nccl.conf").exists


def test_limits_hold_in_a_login_in_a_service_and_in_ray(host, raylet):
    assert login(host, "ulimit -n; ulimit -Hn; ulimit -l").split() == [str(NOFILE), str(NOFILE), str(MEMLOCK_KIB)]
    with host.sudo():
        limits = host.check_output(f"cat /proc/{raylet}/limits")
        service = host.check_output("systemd-run --quiet --pipe --wait sh -c 'ulimit -Hn'")
    files = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert files == [str(NOFILE), str(NOFILE)]
    assert service == str(NOFILE)


def test_ray_runs_as_the_user_under_systemd_and_comes_back_by_itself(host, unit, raylet):
    service = host.service(f"{unit}.service")
    assert service.is_running and service.is_enabled
    with host.sudo():
        assert host.check_output(f"stat -c %U /proc/{raylet}") == "ops"
    assert login(host, "ray --version").startswith("ray, version 2.")


def test_the_users_own_commands_reach_the_cluster(host):
    assert login(host, "ray status").count("node_") >= 3


def test_the_token_is_the_user_s_alone_and_nothing_secret_is_in_the_environment_files(host):
    token = host.file("/etc/metalray/ray_token")
    assert (token.user, token.mode) == ("ops", 0o600)
    text = token.content_string.strip()
    assert len(text) == 64
    for path in (
        "/etc/metalray/cluster.env",
        "/etc/profile.d/metalray.sh",
        "/etc/profile.d/metalray-ray.sh",
    ):
        assert text not in host.file(path).content_string
    with host.sudo():
        assert text not in host.check_output("ps axww -o args")
        assert text not in host.check_output("journalctl --no-pager")


def test_nobody_without_the_token_gets_in(host):
    refused = host.run("env -i PATH=/opt/metalray/venv/bin:/usr/bin HOME=/tmp RAY_AUTH_MODE=disabled ray status --address=%s",
                       login(host, "echo $RAY_ADDRESS"))  # fmt: skip
    assert refused.rc != 0


def test_the_environment_cannot_be_changed_behind_the_lock(host):
    assert host.run("touch /opt/metalray/venv/bin/x").rc != 0
    assert host.run("find /opt/metalray/venv/ -writable -not -type l -print -quit").stdout == ""


def test_the_shared_directory_is_one(host, name):
    host.check_output(f"touch /mnt/shared/seen-by-{name}")
    assert host.file(f"/mnt/shared/seen-by-{name}").user == "ops"
    assert host.file("/mnt/shared/checkpoints").is_directory


def test_the_user_may_use_the_engine_with_the_guide_s_pools(host):
    assert "docker" in login(host, "id -nG").split()
    pools = login(host, "docker info --format '{{json .DefaultAddressPools}}'")
    assert {pool["Base"] for pool in json.loads(pools)} == {"172.17.0.0/16", "192.168.0.0/16"}


def test_ray_s_ports_are_closed_to_this_machine_and_ssh_is_open(host, name):
    """This machine is on the public network and no member of the cluster."""
    config = Path(__file__).parents[3] / ".sandbox/test/ssh_config"
    public = config.read_text(encoding="utf-8").split(f"Host {name}\n  HostName ")[1].split()[0]
    with host.sudo():
        listening = {int(line.split()[3].rsplit(":", 1)[1]) for line in host.check_output("ss -Hltn").splitlines()}
    assert listening & set(RAY_PORTS)
    for port in sorted(listening & set(RAY_PORTS)):
        with pytest.raises(TimeoutError):
            socket.create_connection((public, port), timeout=1).close()
    socket.create_connection((public, 22), timeout=5).close()


def test_ray_s_ports_are_open_to_members(host):
    plan = json.loads(host.check_output("cat /mnt/shared/results/*.json"))
    script = "import socket, sys\nfor a in sys.argv[1:]: socket.create_connection((a, 6380), timeout=5).close()"
    host.check_output(f"python3 -c {shlex.quote(script)} {' '.join(rank['node_ip'] for rank in plan['ranks'])}")


def test_the_dashboard_listens_on_loopback_only(host, name):
    with host.sudo():
        where = host.check_output("ss -Hltn 'sport = :8265'").split()
    assert (where[3] == "127.0.0.1:8265") if name == "node1" else (where == [])
