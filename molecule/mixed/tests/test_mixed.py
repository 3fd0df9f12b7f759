# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of two Debian releases, node2's Python newer than its peers'. The tests build on each other, in this order."""

from __future__ import annotations

import json

import pytest
from sandbox import INVENTORY, NODES, assert_unchanged, fingerprints, on, site

SERVED = "/mnt/shared/pythons"


@pytest.fixture(scope="module")
def python() -> str:
    """The version of the one Python that uv is offered here, by a list like its own, on the shared directory.

    It stands in for uv's builds, which lie on the internet: Debian 12's, packed as those are. What it loads has the same
    names in Debian 13.
    """
    version = on("node1", "python3 -c 'import platform; print(platform.python_version())'")
    major, minor, patch = map(int, version.split("."))
    archive = f"{SERVED}/cpython-{version}.tar.gz"
    tree = f"bin/python{major}.{minor} lib/python{major}.{minor}"
    pack = f"tar -C /usr --dereference --exclude=__pycache__ --transform=s,^,python/, -czf {archive} {tree}"
    digest = on("node1", f"mkdir -p {SERVED} && {pack} && sha256sum {archive}").split()[0]
    entry = {
        **{"name": "cpython", "major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": None},
        **{"os": "linux", "arch": {"family": "x86_64", "variant": None}, "libc": "gnu", "build": None},
        **{"url": f"file://{archive}", "sha256": digest},
    }
    on("node1", f"echo '{json.dumps({f'cpython-{version}-linux-x86_64-gnu': entry})}' >{SERVED}/list.json")
    return version


@pytest.fixture
def one_python(python: str) -> tuple[str, ...]:
    variables = {
        "python_env_python": python,
        "python_env_environment": {"UV_PYTHON_DOWNLOADS_JSON_URL": f"{SERVED}/list.json"},
        "python_env_lock": str(INVENTORY / "ray-only.txt"),
    }
    return ("--tags", "python_env,versions", "-e", json.dumps(variables))


def test_two_pythons_are_refused_before_the_first_change():
    before = fingerprints()
    run = site()
    assert run.status != 0 and run.changed == 0, run.text[-4000:]
    assert "Python 3.11 on node1, node3; 3.13 on node2; Ray needs the same minor version" in run.said
    assert "Set python_env_python for the group 'cluster'" in run.said
    assert run.text.count("fatal: [") == 1 and "Traceback" not in run.text
    assert fingerprints() == before


def test_uv_brings_one_python_to_all(one_python, python):
    run = site(*one_python)
    assert run.status == 0, run.text[-6000:]
    look = "/opt/metalray/venv/bin/python -c 'import platform, ray; print(platform.python_version())'"
    assert {node: on(node, look) for node in NODES} == dict.fromkeys(NODES, python)
    # The system's own stays what it is.
    assert on("node2", "/usr/bin/python3 -V").startswith("Python 3.13.")


def test_a_second_run_fetches_nothing(one_python):
    assert_unchanged(site(*one_python))
