# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to the converged cluster when something is changed: as much as has to, and no more."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from sandbox import NODES, assert_unchanged, on, site


def raylets() -> dict[str, str]:
    return {node: on(node, "pgrep -x raylet") for node in NODES}


def test_ray_restarts_when_its_environment_changed_and_only_then():
    before = raylets()
    assert_unchanged(site("--tags", "ray"))
    assert raylets() == before

    other = ["-e", json.dumps({"network_env_extra": {"TORCH_CPP_LOG_LEVEL": "INFO"}})]
    written = site("--tags", "network_env", *other)
    assert written.status == 0 and written.changed == len(NODES), written.text[-4000:]
    # The environment is on disk, and the running processes still have the old one: another run, later, sees that.
    assert raylets() == before
    restarted = site("--tags", "ray")
    assert restarted.status == 0 and restarted.changed == len(NODES), restarted.text[-4000:]
    after = raylets()
    assert all(after[node] != before[node] for node in NODES)
    for node in NODES:
        environment = on(node, f"sudo cat /proc/{after[node]}/environ | tr '\\0' '\\n'")
        assert "TORCH_CPP_LOG_LEVEL=INFO" in environment.splitlines()

    back = site("--tags", "network_env,ray")
    assert back.status == 0, back.text[-4000:]
    assert_unchanged(site("--tags", "network_env,ray"))


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_killed_raylet_comes_back(node):
    """systemd, not Ansible: the unit's main process notices, the unit is started again, and the node joins again. On the
    head Ray's control store goes with its raylet, and the workers join the new one."""
    killed = on(node, "pgrep -x raylet")
    on(node, f"sudo kill -9 {killed}")
    alive = "ray status 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c node_"
    again = f'[ "$(pgrep -x raylet)" -gt 0 ] && [ "$(pgrep -x raylet)" != {killed} ] && [ "$({alive})" = 3 ]'
    waiting = f"timeout 240 sh -c {shlex.quote(f'until {again}; do sleep 1; done')}"
    on(node, f"bash -lc {shlex.quote(waiting)}")


def test_the_source_is_there_with_its_submodule_at_its_version_for_every_node():
    for node in NODES:
        assert on(node, "cat /mnt/shared/src/trainer/train.py") == 'print("trained")'
    head = on("node1", "cd /mnt/shared/src/trainer && git describe --tags && git submodule status && stat -c %U .")
    version, submodule, owner = head.splitlines()
    assert (version, owner) == ("v1", "ops")
    assert submodule.split()[1] == "external/part" and not submodule.startswith("-")


def test_a_changed_environment_is_put_back():
    """Root may break the lock; the next run sees it and builds beside what runs."""
    link = on("node2", "readlink -f /opt/metalray/venv")
    on("node2", "sudo rm -rf /opt/metalray/venv/lib/python3*/site-packages/click")
    on("node2", "sudo rm -rf /opt/metalray/venv/lib/python3*/site-packages/click-*.dist-info")
    run = site("--tags", "python_env,versions")
    assert run.status == 0, run.text[-4000:]
    assert {host for host, counts in run.recap.items() if counts["changed"]} == {"node2"}
    assert on("node2", "readlink -f /opt/metalray/venv") != link
    assert on("node2", "bash -lc 'python -c \"import click; print(click.__name__)\"'") == "click"
    # Its services still run from the old one; the stage that owns them moves them over.
    moved = site("--tags", "ray")
    assert moved.status == 0 and moved.recap["node2"]["changed"] == 1 and moved.changed == 1, moved.text[-4000:]
    assert_unchanged(site("--tags", "python_env,ray"))


def test_the_optional_tools_came_as_asked_for():
    assert all(on(node, "command -v tmux") == "/usr/bin/tmux" for node in NODES)


COUNTED = "/usr/local/bin/counted"
COMPILED = {
    "python_env_profile": "custom",
    # murmurhash3, which the index has as a source only, and what it is built with.
    "python_env_lock": str(Path(__file__).with_name("compiled.txt")),
    "python_env_torch_backend": "",
    "python_env_allow_builds": True,
    "python_env_build_packages": ["g++", "python3-dev"],
    "python_env_environment": {"CC": f"{COUNTED} gcc", "CXX": f"{COUNTED} g++"},
    "python_env_imports": ["mmh3"],
}


def test_a_package_without_a_wheel_is_compiled_once_for_all_nodes_and_rolling_back_builds_nothing():
    before = {node: on(node, "readlink -f /opt/metalray/venv") for node in NODES}
    for node in NODES:
        # On each of them, so that none compiles uncounted.
        on(node, f'printf \'#!/bin/sh\\necho "$*" >> /var/log/counted\\nexec "$@"\\n\' | sudo tee {COUNTED}')
        on(node, f"sudo chmod 755 {COUNTED} && sudo rm -f /var/log/counted")
    compiled = ["--tags", "python_env", "-e", json.dumps(COMPILED)]
    run = site(*compiled)
    assert run.status == 0, run.text[-4000:]
    commands = {node: on(node, "cat /var/log/counted 2>/dev/null || true").splitlines() for node in NODES}
    sources = [word for line in commands["node1"] for word in line.split() if word.endswith(".cpp")]
    assert sorted(sources) == ["mmh3module.cpp", "murmur_hash_3.cpp"]
    assert not commands["node2"] and not commands["node3"]
    assert [on(node, "command -v g++ || true") for node in NODES] == ["/usr/bin/g++", "", ""]
    code = "import mmh3, hashlib; print(hashlib.sha256(open(mmh3.__file__, 'rb').read()).hexdigest())"
    assert len({on(node, f'/opt/metalray/venv/bin/python -c "{code}"') for node in NODES}) == 1
    assert_unchanged(site(*compiled))
    back = site(*compiled, "-e", "python_env_rollback=true")
    assert back.status == 0 and back.changed == len(NODES), back.text[-4000:]
    assert {node: on(node, "readlink -f /opt/metalray/venv") for node in NODES} == before
    assert_unchanged(site("--tags", "python_env,ray"))
