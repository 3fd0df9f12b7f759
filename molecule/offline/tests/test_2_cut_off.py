# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that reach nothing, after the site was built on them from a bundle."""

from __future__ import annotations

import json
import socket

import pytest
from sandbox import NODES, on, site


def dropped(node: str) -> int:
    """Packets that wanted to leave the cluster."""
    listed = json.loads(on(node, "sudo nft -j list chain inet egress output"))["nftables"]
    rules = [entry["rule"]["expr"] for entry in listed if entry.get("rule", {}).get("comment") == "egress"]
    (counter,) = (part["counter"] for part in rules[0] if "counter" in part)
    return counter["packets"]


# First of all: the tests below try to leave.
@pytest.mark.parametrize("node", NODES)
def test_the_runs_did_not_even_try_to_fetch_anything(node: str) -> None:
    assert dropped(node) == 0


@pytest.mark.parametrize("node", NODES)
def test_no_node_reaches_anything(node: str) -> None:
    mirror = on(node, "grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list /etc/apt/sources.list.d | head -1").split(
        "//"
    )[1]
    try:
        address = socket.getaddrinfo(mirror, 443, socket.AF_INET)[0][4][0]
    except OSError:
        # Where this machine itself goes through a proxy.
        address = "192.0.2.1"
    before = dropped(node)
    connect = f"import socket; socket.create_connection(('{address}', 443), 1)"
    assert on(node, f'python3 -c "{connect}" 2>/dev/null || echo cut') == "cut"
    assert dropped(node) > before
    assert on(node, f"getent ahosts {mirror} || echo unknown") == "unknown"


@pytest.mark.parametrize("node", NODES)
def test_the_node_s_own_sources_are_as_they_were(node: str) -> None:
    files = on(node, "ls /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/apt/sources.list 2>/dev/null; true")
    assert "metalray" not in files and "docker" not in files
    assert on(node, "ls /var/lib/apt/lists | grep -c Packages || true") == "0"


def test_wheels_and_packages_are_where_they_are_needed() -> None:
    assert on("node1", "ls /var/cache/metalray/bundle").split() == ["apt", "wheels"]
    assert on("node2", "ls /var/cache/metalray/bundle").split() == ["apt"]


def test_a_bundle_for_something_else_is_refused_by_name_before_anything_is_changed() -> None:
    run = site("--tags", "preflight", "-e", "python_env_python=3.12.9", "-e", "docker_source=docker")
    assert run.status != 0 and run.changed == 0
    assert "python_env_python is '3.12.9', and the bundle was built for '/usr/bin/python3'" in run.said
    assert "docker_source is 'docker', and the bundle was built for 'distro'" in run.said
