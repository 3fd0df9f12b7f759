# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _versions as versions

ROOT = Path(__file__).resolve().parents[2]

# As read on a node with H200 GPUs, and as the closed kernel module writes it.
OPEN_DRIVER = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)\x20\x20
GCC version:  gcc version 15.3.0 (GCC)\x20
"""
CLOSED_DRIVER = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


def node(python: str = "3.11.2", system: dict[str, str] | None = None, **packages: str) -> dict[str, Any]:
    below = {"os": "Debian", "kernel": "6.1", "glibc": "2.36", "driver": "580.1", "cuda": "13.0", "nccl": ""}
    return {
        "python": python,
        "packages": {"ray": "2.60.0", "torch": "2.13.0", **{k.replace("_", "-"): v for k, v in packages.items()}},
        "system": {**below, **(system or {})},
    }


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("torch-2.13.0+cpu.dist-info", ("torch", "2.13.0+cpu")),
        ("nvidia_nccl_cu13-2.29.7.dist-info", ("nvidia-nccl-cu13", "2.29.7")),
        ("Jinja2-3.1.6.dist-info", ("jinja2", "3.1.6")),
        ("zope.interface-7.0.dist-info", ("zope-interface", "7.0")),
        ("old-thing-1.0.egg-info", ("old-thing", "1.0")),
        ("torch", None),
        ("six.py", None),
        ("thing.dist-info", None),
        ("__pycache__", None),
    ],
)
def test_names_of_distributions(entry: str, found: tuple[str, str] | None) -> None:
    assert versions.distribution(entry) == found


def test_distributions_are_those_that_python_sees(tmp_path: Path) -> None:
    place = Path(importlib.metadata.distribution("pytest").locate_file("")).resolve()
    link = tmp_path / "env" / "lib" / "python3.11"
    link.mkdir(parents=True)
    (link / "site-packages").symlink_to(place)
    seen = {
        versions.normalised(found.metadata["Name"]): found.version
        for found in importlib.metadata.distributions(path=[str(place)])
    }
    assert versions.distributions(tmp_path / "env") == seen
    assert seen["pytest"]


@pytest.mark.parametrize(
    ("text", "found"),
    [(OPEN_DRIVER, "580.159.04"), (CLOSED_DRIVER, "535.183.01"), ("", ""), ("NVRM version: broken\n", "")],
)
def test_driver(text: str, found: str) -> None:
    assert versions.driver_version(text) == found


def test_system(tmp_path: Path) -> None:
    for path, text in {
        "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nNAME="Ubuntu"\n',
        "proc/driver/nvidia/version": OPEN_DRIVER,
        "usr/lib/x86_64-linux-gnu/libnccl.so.2.28.3": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    toolkit = tmp_path / "usr/local/cuda-13.0"
    toolkit.mkdir(parents=True)
    (tmp_path / "usr/local/cuda").symlink_to(toolkit)
    found = versions.system_versions({"nvidia-nccl-cu13": "2.29.7"}, tmp_path)
    assert found.pop("kernel") == os.uname().release
    assert found.pop("glibc") in (platform.libc_ver()[1], "")
    assert found == {
        "os": "Ubuntu 24.04.3 LTS",
        "driver": "580.159.04",
        "cuda": "13.0",
        "nccl": "2.29.7",
        "nccl_system": "2.28.3",
    }
    (toolkit / "version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "13.0.20250729"}}')
    assert versions.toolkit_version(tmp_path / "usr/local/cuda") == "13.0.20250729"


def test_a_node_without_gpu(tmp_path: Path) -> None:
    found = versions.system_versions({}, tmp_path)
    assert {name: found[name] for name in ("driver", "cuda", "nccl", "nccl_system", "os")} == dict.fromkeys(
        ("driver", "cuda", "nccl", "nccl_system", "os"), ""
    )


def test_an_environment_of_another_python_is_asked(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.99.1\n")
    other.chmod(0o755)
    assert versions.python_version(other) == "3.99.1"
    assert versions.python_version(Path(sys.executable)) == platform.python_version()
    other.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(versions.VersionsError, match="does not run as Python"):
        versions.python_version(other)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_broken_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / versions.RECORD_FILE).write_text(text)
    assert versions.read_record(tmp_path) == {}


# --- comparing ---------------------------------------------------------------------------------------------------


def test_equal_hosts_and_single_ones() -> None:
    assert versions.compare({"n1": node(), "n2": node()}).differences == []
    assert versions.compare({"n1": node()}).differences == []
    assert versions.compare({}).hosts == []


def test_the_odd_host_is_named() -> None:
    facts = {f"n{number}": node() for number in range(1, 5)}
    facts["n3"] = node(torch="2.12.0")
    found = versions.compare(facts)
    (item,) = found.differences
    assert (item.item, item.kind, item.strict) == ("torch", "package", True)
    assert (item.expected, item.expected_on) == ("2.13.0", 3)
    assert (item.odd, item.tie) == ({"2.12.0": ["n3"]}, "")
    assert versions.failure(found).splitlines() == [
        "n3 of 4 hosts differs from the rest in 1 version; training across them would fail or go wrong:",
        "  torch: n3: 2.12.0; the other 3 hosts: 2.13.0",
        "Mend: ansible-playbook -i INVENTORY metalray.cluster.site --tags python_env --limit n3",
    ]


def test_the_majority_is_right_even_against_the_head() -> None:
    facts = {"head": node(torch="2.12.0"), "w1": node(), "w2": node()}
    assert versions.compare(facts, reference="head").differences[0].odd == {"2.12.0": ["head"]}


def test_another_build_of_the_same_version_differs() -> None:
    facts = {"n1": node(torch="2.13.0+cu130"), "n2": node(torch="2.13.0+cu130"), "n3": node(torch="2.13.0+cpu")}
    assert versions.compare(facts).differences[0].odd == {"2.13.0+cpu": ["n3"]}


def test_a_patch_level_of_python_differs() -> None:
    facts = {"n1": node(), "n2": node(), "n3": node(python="3.11.3")}
    assert versions.compare(facts).differences[0].item == "python"
    assert versions.compare(facts, packages=["ray"]).differences == []
    assert versions.compare(facts, packages=["ray", "python"]).differences[0].odd == {"3.11.3": ["n3"]}


def test_a_missing_and_an_extra_package() -> None:
    facts = {"n1": node(six="1"), "n2": node(six="1"), "n3": node(extra_thing="2")}
    found = {item.item: (item.expected, item.odd) for item in versions.compare(facts).differences}
    assert found == {"six": ("1", {"missing": ["n3"]}), "extra-thing": ("missing", {"2": ["n3"]})}


def test_a_tie_goes_to_the_reference_and_says_so() -> None:
    facts = {"w1": node(torch="2.12.0"), "head": node()}
    (item,) = versions.compare(facts, reference="head").differences
    assert (item.expected, item.odd, item.tie) == ("2.13.0", {"2.12.0": ["w1"]}, "head")
    assert "(a tie: head is taken to be right)" in versions.failure(versions.compare(facts, reference="head"))
    assert versions.compare(facts).differences[0].tie == "w1"
    # The reference is alone, two pairs tie: the first host of a pair decides.
    facts = {host: node(torch=version) for host, version in zip(["head", "a", "b", "c", "d"], "12332")}
    (item,) = versions.compare(facts, reference="head").differences
    assert (item.expected, item.tie) == ("2", "a")


def test_what_stops_and_what_warns() -> None:
    facts = {"n1": node(), "n2": node(), "n3": node(system={"kernel": "6.2", "driver": ""})}
    found = versions.compare(facts)
    assert [item.item for item in found.strict] == ["driver"]
    assert versions.warnings(found) == ["Hosts differ in kernel: n3: 6.2; the other 2 hosts: 6.1"]
    message = versions.failure(found)
    assert "driver: n3: missing; the other 2 hosts: 580.1" in message
    assert "Mend: bring n3 to driver 580.1" in message
    assert "--tags python_env" not in message
    swapped = versions.compare(facts, strict=["kernel"], warned=["driver"])
    assert [item.item for item in swapped.strict] == ["kernel"]


def test_nccl_is_named_once() -> None:
    facts = {
        name: node(system={"nccl": version}, nvidia_nccl_cu13=version)
        for name, version in (("n1", "2.29.7"), ("n2", "2.29.7"), ("n3", "2.28.3"))
    }
    assert [item.item for item in versions.compare(facts).differences] == ["nvidia-nccl-cu13"]
    assert [item.item for item in versions.compare(facts, packages=["ray"]).differences] == ["nccl"]


def test_many_differences_are_summarised() -> None:
    many = {f"package{number}": "1" for number in range(100)}
    facts = {f"n{number}": node(**many) for number in range(6)} | {"n9": node(ray="1.0")}
    found = versions.compare(facts)
    assert len(found.differences) == 101
    lines = versions.failure(found).splitlines()
    assert len(lines) == 23
    assert lines[21] == "  ... and 81 more in the list 'differences' of this result"
    facts = {f"n{number}": node() for number in range(20)} | {f"odd{number}": node(ray="1.0") for number in range(9)}
    assert "odd0, odd1, odd2 and 6 more: 1.0; the other 20 hosts" in versions.failure(versions.compare(facts))


def test_two_hundred_hosts_in_under_a_second() -> None:
    packages = {f"package{number}": "1.0" for number in range(200)}
    facts = {f"n{number}": node(**packages) for number in range(199)} | {"odd": node(**packages, ray="1.0")}
    start = time.perf_counter()
    found = versions.compare(facts)
    versions.failure(found)
    assert time.perf_counter() - start < 1
    assert found.differences[0].odd == {"1.0": ["odd"]}


# --- the action, in a play without any connection ------------------------------------------------------------------

PLAY = """
- name: Compare
  hosts: all
  gather_facts: false
  tasks:
    - name: Take the facts
      ansible.builtin.set_fact:
        package_versions: "{{ versions }}"
        cacheable: true
      when: versions is defined
    - name: Compare
      metalray.cluster.version_parity:
      run_once: true
"""


def play(tmp_path: Path, hosts: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "play.yml").write_text(PLAY)
    unreachable = {"ansible_connection": "ssh", "ansible_host": "192.0.2.1"}
    inventory = {
        "all": {
            "hosts": {name: {**unreachable, **({"versions": value} if value else {})} for name, value in hosts.items()},
            "children": {"head": {"hosts": {"n2": {}}}},
        }
    }
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml"]
    command = [str(tmp_path / word) if word.endswith(".yml") else word for word in command]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_action_passes_equal_hosts_and_warns(tmp_path: Path) -> None:
    done = play(tmp_path, {"n1": node(), "n2": node(system={"kernel": "6.2"}), "n3": None})
    assert done.returncode == 0, done.stdout
    assert "(a tie: n2 is taken to be right)" in " ".join((done.stdout + done.stderr).split())


def test_the_action_stops_every_host(tmp_path: Path) -> None:
    done = play(tmp_path, {"n1": node(), "n2": node(), "n3": node(torch="2.12.0")}, "--check")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "torch: n3: 2.12.0; the other 2 hosts: 2.13.0" in said
    assert "--tags python_env --limit n3" in said
    assert "Traceback" not in done.stdout + done.stderr
