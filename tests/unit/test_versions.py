# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

import environments
import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _versions as versions

# As read on a node with H200 GPUs, and as the closed kernel module writes it.
OPEN_DRIVER = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)\x20\x20
GCC version:  gcc version 15.3.0 (GCC)\x20
"""
CLOSED_DRIVER = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


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
        "nccl_library": "",
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


# --- what was changed by hand, in real environments ----------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    made = environments.make(tmp_path / "env")
    environments.install(made, *(environments.wheel(tmp_path / "wheels", name, "1.0") for name in ("click", "six")))
    return made


def place_of(environment: Path) -> Path:
    found = versions.site_packages(environment)
    assert found is not None
    return found


def recorded(environment: Path) -> dict[str, object]:
    record = {"hash": "1f" * 32, "lock": "smoke.txt", "entries": versions.fingerprint(environment)}
    (environment / versions.RECORD_FILE).write_text(json.dumps(record))
    return record


def test_an_environment_as_it_was_installed(environment: Path) -> None:
    recorded(environment)
    found = versions.read_versions(environment)
    assert found["packages"] == {"click": "1.0", "six": "1.0"}
    assert (found["python"], found["hash"], found["lock"]) == (platform.python_version(), "1f" * 32, "smoke.txt")
    assert (found["changed"], found["strays"], found["sources"]) == ({}, [], {})
    # What Python compiles is no change.
    (place_of(environment) / "click" / "__pycache__").mkdir()
    (place_of(environment) / "click" / "__pycache__" / "part.cpython-311.pyc").write_bytes(b"x")
    assert versions.read_versions(environment) == found


@pytest.mark.parametrize("text", ["one = 1\nprint(one)\n", "one = 2\n"], ids=["longer", "of the same size"])
def test_an_edit_inside_of_a_file_is_seen(environment: Path, text: str) -> None:
    (place_of(environment) / "click" / "part.py").write_text(text)
    changed = versions.read_versions(environment)["changed"]
    assert (changed["click"]["how"], changed["click"]["files"]) == ("edited", ["click/part.py"])
    assert changed.keys() == {"click"}


def test_equal_edits_have_equal_digests(environment: Path, tmp_path: Path) -> None:
    digests = []
    for number, text in enumerate(["one = 2\n", "one = 2\n", "one = 3\n"]):
        other = environments.copy(environment, tmp_path / str(number))
        (place_of(other) / "click" / "part.py").write_text(text)
        digests.append(versions.read_edits(other)["click"].digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_is_only_newer_is_no_edit(environment: Path) -> None:
    os.utime(place_of(environment) / "click" / "part.py")
    assert versions.read_edits(environment) == {}


def test_a_lost_file_and_an_edited_program_are_edits(environment: Path) -> None:
    (place_of(environment) / "click" / "part.py").unlink()
    (environment / "bin" / "six").write_text("#!/bin/sh\n")
    edits = versions.read_edits(environment)
    assert {name: edited.files for name, edited in edits.items()} == {
        "click": ["click/part.py"],
        "six": ["../../../bin/six"],
    }


def test_the_same_version_from_elsewhere_is_seen_by_the_record(environment: Path, tmp_path: Path) -> None:
    recorded(environment)
    before = versions.read_versions(environment)["contents"]
    environments.install(
        environment, environments.wheel(tmp_path / "other", "click", "1.0", {"click/more.py": "x = 1\n"})
    )
    assert versions.read_versions(environment)["changed"]["click"]["how"] == "reinstalled"
    after = versions.read_versions(environment)["contents"]
    assert after["click"] != before["click"] and after["six"] == before["six"]


def test_the_content_does_not_depend_on_where_the_environment_is(environment: Path, tmp_path: Path) -> None:
    other = environments.make(tmp_path / "elsewhere")
    environments.install(other, *sorted((tmp_path / "wheels").iterdir()))
    assert (place_of(other) / "click-1.0.dist-info/RECORD").read_text() != (
        place_of(environment) / "click-1.0.dist-info/RECORD"
    ).read_text()
    assert versions.read_versions(other)["contents"] == versions.read_versions(environment)["contents"]


def test_a_stray_module_is_named(environment: Path) -> None:
    (place_of(environment) / "sitecustomize.py").write_text("")
    # Without a record nobody knows what belongs there.
    assert versions.read_versions(environment)["strays"] == []
    (place_of(environment) / "sitecustomize.py").unlink()
    recorded(environment)
    (place_of(environment) / "sitecustomize.py").write_text("")
    assert versions.read_versions(environment)["strays"] == ["sitecustomize.py"]


@pytest.mark.parametrize(
    ("torch", "own", "system", "found"),
    [
        ("2.7.0+cu128", True, True, "site-packages/nvidia/nccl/lib/libnccl.so.2"),
        ("2.7.0", False, True, "/usr/lib/x86_64-linux-gnu/libnccl.so.2.28.3"),
        ("2.7.0+cpu", False, True, ""),
        ("2.7.0", False, False, ""),
        ("", False, True, ""),
    ],
)
def test_the_library_that_torch_loads(
    environment: Path, tmp_path: Path, torch: str, own: bool, system: bool, found: str
) -> None:
    for wanted, path in (
        (own, place_of(environment) / "nvidia/nccl/lib/libnccl.so.2"),
        (system, tmp_path / "usr/lib/x86_64-linux-gnu/libnccl.so.2.28.3"),
    ):
        if wanted:
            path.parent.mkdir(parents=True)
            path.touch()
    packages = {"torch": torch} if torch else {}
    assert versions.system_versions(packages, tmp_path, environment)["nccl_library"] == found


# --- sources that an environment leads to ---------------------------------------------------------------------------


def test_an_editable_source_tells_its_commit_and_its_edits(environment: Path, tmp_path: Path) -> None:
    source = tmp_path / "src" / "train er"
    commit = environments.repository(source)
    environments.install(environment, "-e", source)
    found = versions.read_sources(environment)
    assert found == {"trainer": {"path": str(source), "commit": commit, "edits": ""}}
    (source / "trainer.py").write_text("steps = 2\n")
    (source / "notes.txt").write_text("not of the repository\n")
    edits = versions.read_sources(environment)["trainer"]["edits"]
    assert len(edits) == 8
    (source / "trainer.py").write_text("steps = 3\n")
    assert versions.read_sources(environment)["trainer"]["edits"] not in ("", edits)
    second = environments.commit(source, "two")
    assert versions.read_sources(environment)["trainer"] == {"path": str(source), "commit": second, "edits": ""}


def test_without_git_the_commit_is_told_and_the_edits_are_not(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = environments.repository(tmp_path / "src")
    environments.install(environment, "-e", tmp_path / "src")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.read_sources(environment)["trainer"] == {
        "path": str(tmp_path / "src"),
        "commit": commit,
        "edits": None,
    }


def test_paths_that_lead_elsewhere_are_sources(environment: Path, tmp_path: Path) -> None:
    commit = environments.repository(tmp_path / "src")
    (tmp_path / "plain").mkdir()
    place = place_of(environment)
    (place / "metalray.pth").write_text(
        f"# a comment\nimport os; os.getpid()\n\n{tmp_path}/src/\n{tmp_path}/plain\n{tmp_path}/gone\nclick\n"
    )
    (place / "__editable___other_1_0_finder.py").write_text(
        "from __future__ import annotations\nraise SystemExit('imported')\n"
        f"MAPPING: dict[str, str] = {{'other': '{tmp_path}/plain/other'}}\nNAMESPACES: dict[str, list[str]] = {{}}\n"
    )
    found = {name: source["commit"] for name, source in versions.read_sources(environment).items()}
    assert found == {
        f"{tmp_path}/src": commit,
        f"{tmp_path}/plain": "no git",
        f"{tmp_path}/gone": "missing",
        "other": "missing",
    }


def test_a_package_installed_from_git_has_its_commit(environment: Path) -> None:
    told = {"url": "https://git.example.com/x", "vcs_info": {"vcs": "git", "commit_id": "1a" * 20}}
    (place_of(environment) / "six-1.0.dist-info" / "direct_url.json").write_text(json.dumps(told))
    assert versions.read_sources(environment)["six"]["commit"] == "1a" * 20


def test_the_commit_wherever_git_keeps_it(tmp_path: Path) -> None:
    def told(place: Path) -> str:
        found = versions.git_directory(place)
        assert found is not None
        return versions.head_commit(found[1])

    source = tmp_path / "source"
    first = environments.repository(source)
    assert told(source) == first
    environments.git(source, "pack-refs", "--all", "--prune")
    assert not (source / ".git/refs/heads/main").exists()
    assert told(source) == first
    (source / "deep" / "down").mkdir(parents=True)
    assert told(source / "deep" / "down") == first
    environments.git(source, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "tree"))
    second = environments.commit(tmp_path / "tree", "two")
    assert (told(tmp_path / "tree"), told(source)) == (second, first)
    environments.git(tmp_path / "tree", "pack-refs", "--all", "--prune")
    assert told(tmp_path / "tree") == second
    environments.git(source, "checkout", "--quiet", "--detach", second)
    assert told(source) == second
    outer = tmp_path / "outer"
    environments.repository(outer)
    environments.git(outer, "submodule", "--quiet", "add", str(source), "external/part")
    assert (outer / "external/part/.git").is_file()
    assert told(outer / "external/part") == second


def test_a_source_that_never_answers_is_told_in_time_and_the_rest_too(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a pipe without a writer waits, as on a share whose server is gone."""
    dead, alive = tmp_path / "dead", tmp_path / "alive"
    commit = environments.repository(alive)
    dead.mkdir()
    os.mkfifo(dead / ".git")
    (place_of(environment) / "all.pth").write_text(f"{dead}\n{alive}\n")
    mounts = f"/dev/x / ext4 rw 0 0\nserver:/x {dead} nfs4 rw 0 0\n"
    small_text = versions._small_text
    monkeypatch.setattr(
        versions,
        "_small_text",
        lambda path, *more: mounts if path == Path("/proc/self/mounts") else small_text(path, *more),
    )
    found = versions.read_sources(environment, seconds=0.5)
    assert {name: source["commit"] for name, source in found.items()} == {str(dead): "no answer", str(alive): commit}


def test_places_of_mounts_are_read_as_the_kernel_writes_them() -> None:
    places = versions.mount_points("a / ext4 rw 0 0\ns:/x /mnt/sha\\040red nfs4 rw 0 0\n")
    assert places == ["/", "/mnt/sha red"]
    assert versions._mount_of("/mnt/sha red/x", places) == "/mnt/sha red"
    assert versions._mount_of("/mnt/sha redder", places) == "/"


# --- the module -----------------------------------------------------------------------------------------------------


def test_the_module_reads_an_environment_behind_a_link(run_module, environment: Path, tmp_path: Path) -> None:
    (tmp_path / "venv").symlink_to(environment)
    result = run_module("package_versions_facts", venv=str(tmp_path / "venv"))
    found = result["ansible_facts"]["package_versions"]
    assert not result.get("changed")
    assert (found["venv"], found["path"]) == (str(tmp_path / "venv"), str(environment))
    assert found["packages"] == {"click": "1.0", "six": "1.0"}


def test_the_module_without_an_environment(run_module, tmp_path: Path) -> None:
    assert run_module("package_versions_facts", check=True, venv=str(tmp_path / "none"))["ansible_facts"] == {
        "package_versions": {}
    }
    refused = run_module("package_versions_facts", venv=str(tmp_path / "none"))
    assert refused["failed"] and "--tags python_env" in refused["msg"]


def test_a_python_that_does_not_run_is_told(run_module, environment: Path) -> None:
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    (environment / "bin" / "python").chmod(0o755)
    refused = run_module("package_versions_facts", venv=str(environment))
    assert refused["failed"] and "does not run as Python" in refused["msg"]


def test_an_environment_that_never_answers_is_told_in_time(environment: Path) -> None:
    (environment / versions.RECORD_FILE).unlink(missing_ok=True)
    os.mkfifo(environment / versions.RECORD_FILE)
    begun = time.monotonic()
    with pytest.raises(versions.VersionsError, match=r"no answer within 0\.3 seconds"):
        versions.read_bounded(environment, 0.3)
    assert time.monotonic() - begun < 20
