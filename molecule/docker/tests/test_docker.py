# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody who uses the engine of a node relies on."""

from __future__ import annotations

import json
import re

import pytest


@pytest.fixture(scope="module")
def info(host):
    with host.sudo():
        return host.check_output("docker info")


def test_engine_is_up_now_and_after_a_boot(host):
    service = host.service("docker")
    assert service.is_running
    assert service.is_enabled


def test_guides_limits_are_in_force(host, info):
    pools = re.findall(r"Base: (\S+), Size: (\d+)", info)
    assert pools == [("172.17.0.0/16", "24"), ("192.168.0.0/16", "24")]
    assert "Live Restore Enabled: true" in info


def test_engines_own_bridge_takes_one_small_network(host):
    assert "172.17.0.1/24" in host.check_output("ip -4 -brief address show docker0")


def test_new_network_is_a_small_one_of_the_pools(host):
    with host.sudo():
        host.check_output("docker network create probe")
        network = json.loads(host.check_output("docker network inspect probe"))[0]
        host.check_output("docker network rm probe")
    subnet = network["IPAM"]["Config"][0]["Subnet"]
    assert subnet.endswith("/24")
    assert subnet.startswith(("172.17.", "192.168."))


def test_keys_of_others_are_still_there(host, info):
    with host.sudo():
        options = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert options["log-opts"] == {"max-size": "10m"}
    assert options["max-concurrent-uploads"] == 10
    assert re.search(r"Runtimes: .*\bnvidia\b", info)


def test_container_outlived_every_restart(host):
    with host.sudo():
        assert json.loads(host.check_output("docker inspect survivor"))[0]["State"]["Running"]


def test_fresh_login_of_a_member_reaches_the_engine(host):
    with host.sudo():
        member = host.check_output("getent group docker").split(":")[3].split(",")[0]
        assert "Server:" in host.check_output(f"su --login {member} --command 'docker version'")


def test_apt_trusts_the_repository_and_only_by_its_own_key(host):
    policy = host.check_output("apt-cache policy docker-ce")
    assert "http://127.0.0.1:8099" in policy
    assert host.package("docker-ce").is_installed
    assert host.package("docker-compose-plugin").is_installed
    with host.sudo():
        update = host.run("apt-get update")
    assert update.rc == 0
    assert "W:" not in update.stderr
    assert host.file("/etc/apt/sources.list.d/docker.sources").contains("Signed-By: /etc/apt/keyrings/docker.asc")


def test_older_entry_of_the_repository_is_gone(host):
    assert not host.file("/etc/apt/sources.list.d/docker.list").exists
