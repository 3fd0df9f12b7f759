# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive: packed, held against the inventory, unpacked; with real repositories of apt and git."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.metalray.cluster.plugins.filter.git_configuration import configuration as git_file
from ansible_collections.metalray.cluster.plugins.module_utils import _bundle_apt as apt
from ansible_collections.metalray.cluster.plugins.module_utils._access import apt_configuration
from ansible_collections.metalray.cluster.plugins.module_utils._bundle import (
    BundleError,
    Manifest,
    check_bundle,
    deciding_settings,
    extract_part,
    is_present,
    list_files,
    part_digest,
    read_manifest,
    unpack,
    write_archive,
)
from ansible_collections.metalray.cluster.plugins.module_utils._bundle_source import Mirrors, resolve

pytestmark = pytest.mark.tools

VALUES: dict[str, Any] = {
    "docker_source": "docker",
    "docker_packages": [],
    "python_env_profile": "smoke",
    "python_env_python": "/usr/bin/python3",
    "python_env_uv_version": "0.13.9",
    "python_env_packages": ["python3-venv"],
    "network_env_packages": ["python3-netifaces"],
    "python_env_tools": False,
    "python_env_source_url": "https://me:secret@git.example.com/trainer.git",
    "python_env_source_version": "v1",
    "cluster_shared_backend": "nfs",
}
SYSTEM = {"id": "debian", "codename": "bookworm"}


class Made:
    """A bundle with a little in each part."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.parts = root / "parts"
        for name, text in {"apt/Packages": "x", "wheels/a.whl": "a", "source/1.git/refs/.keep": ""}.items():
            (self.parts / name).parent.mkdir(parents=True, exist_ok=True)
            (self.parts / name).write_text(text)
        settings = deciding_settings(VALUES, "lock")
        self.manifest = Manifest("debian", "bookworm", "amd64", settings, ["git"], list_files(self.parts))
        self.manifest = dataclasses.replace(self.manifest, **more)
        self.path = root / "bundle.tar"
        write_archive(self.parts, self.manifest, self.path)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def check(
    made: Made, lock: str = "lock", architecture: str = "x86_64", system: Mapping[str, str] | None = None, **values: Any
):
    return check_bundle({**VALUES, "cluster_bundle": str(made.path), **values}, system or SYSTEM, architecture, lock)


# --- the archive -------------------------------------------------------------------------------------------------


def test_the_same_content_is_the_same_archive(made: Made, tmp_path: Path) -> None:
    before = made.path.read_bytes()
    os.utime(made.parts / "wheels/a.whl", (1, 1))
    write_archive(made.parts, made.manifest, made.path)
    assert made.path.read_bytes() == before
    assert read_manifest(str(made.path)) == made.manifest
    assert b"secret" not in before


def test_a_part_comes_to_its_place_whole(made: Made, tmp_path: Path) -> None:
    files = made.manifest.part("source")
    with (tmp_path / "part.tar").open("wb") as sink:
        extract_part(str(made.path), "source", sink)
    place = tmp_path / "node/source"
    (place / "old").mkdir(parents=True)
    mask = os.umask(0o077)
    unpack(tmp_path / "part.tar", files, place)
    os.umask(mask)
    assert sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()) == [
        ".bundle",
        "1.git/refs/.keep",
    ]
    assert is_present(place, part_digest(files)) and not is_present(place, part_digest({}))
    # apt and git read as other accounts.
    assert {path.stat().st_mode & 0o555 for path in place.rglob("*") if path.is_dir()} == {0o555}
    assert os.listdir(place.parent) == ["source"]


def part_of(tmp_path: Path, members: Mapping[str, bytes]) -> Path:
    path = tmp_path / "part.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.whl": b"b"}, "'a.whl' of the bundle is not what its manifest names"),
        ({}, "the bundle lacks a.whl"),
        ({"a.whl": b"a", "more": b""}, "the bundle holds 'more'"),
        ({"../a.whl": b"a"}, "the bundle holds '../a.whl'"),
    ],
)
def test_what_was_changed_is_not_unpacked(made: Made, tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    place = tmp_path / "node/wheels"
    with pytest.raises(BundleError, match=said):
        unpack(part_of(tmp_path, members), made.manifest.part("wheels"), place)
    assert not place.exists() and os.listdir(place.parent) == []


def test_the_module_looks_before_it_takes(made: Made, tmp_path: Path, run_module) -> None:
    files = {name: dict(entry) for name, entry in made.manifest.part("wheels").items()}
    options = {"bundle": str(made.path), "part": "wheels", "path": str(tmp_path / "w"), "files": files}
    assert run_module("bundle_part", **options)["present"] is False
    with (tmp_path / "part.tar").open("wb") as sink:
        extract_part(str(made.path), "wheels", sink)
    assert run_module("bundle_part", **options, archive=str(tmp_path / "part.tar"))["changed"] is True
    assert run_module("bundle_part", **options)["changed"] is False
    assert (tmp_path / "w/a.whl").read_text() == "a"


# --- does it fit -------------------------------------------------------------------------------------------------


def test_a_bundle_that_fits(made: Made) -> None:
    assert check(made) == (made.manifest, [])
    # Less than it holds.
    assert check(made, python_env_packages=[], cluster_shared_backend="external", python_env_source_url="")[1] == []
    assert check(made, cluster_bundle_sha256=made.manifest.digest.upper())[1] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lock": "another"}, "python_env_lock is another lock than the bundle's wheels"),
        ({"python_env_python": "3.12.9"}, "python_env_python is '3.12.9', and the bundle was built for '/usr/bin/python3'"),
        ({"python_env_profile": "custom"}, "python_env_profile is 'custom'"),
        ({"docker_source": "distro"}, "docker_source is 'distro'"),
        ({"python_env_packages": ["python3-venv", "gcc"]}, "python_env_packages is ['python3-venv', 'gcc']"),
        ({"python_env_tools": True}, "python_env_tools is True, and the bundle was built for False"),
        ({"python_env_source_version": "v2"}, "python_env_source_version is 'v2', and the bundle holds 'v1'"),
        ({"system": {"id": "debian", "codename": "trixie"}}, "it runs debian trixie amd64, and the bundle was built on debian bookworm"),
        ({"architecture": "aarch64"}, "it runs debian bookworm arm64"),
        ({"cluster_bundle_sha256": "0" * 64}, "cluster_bundle_sha256 is '0000"),
        ({"cluster_bundle": "/nowhere.tar"}, "cluster_bundle is '/nowhere.tar', and there is no such file on the controller"),
        ({"cluster_bundle": __file__}, "that file is no bundle"),
    ],
)  # fmt: skip
def test_a_bundle_that_does_not(made: Made, given: dict[str, Any], said: str) -> None:
    manifest, problems = check(made, **given)
    assert manifest is None and len(problems) == 1 and said in problems[0], problems
    assert "secret" not in problems[0]


def test_a_bundle_without_nfs(tmp_path: Path) -> None:
    settings = deciding_settings({**VALUES, "cluster_shared_backend": "external"}, "lock")
    assert "cluster_shared_backend is 'nfs'" in check(Made(tmp_path, settings=settings))[1][0]


# --- apt ---------------------------------------------------------------------------------------------------------

needs_apt = pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs apt")


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def package(directory: Path, name: str, version: str = "1", **fields: str) -> None:
    tree = directory / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "x <x@example.org>", **fields}
    (tree / "DEBIAN/control").write_text(
        "".join(f"{key}: {value}\n" for key, value in control.items()) + "Description: x\n"
    )
    target = directory / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(tree), str(target)], check=True, capture_output=True)
    shutil.rmtree(tree)


@needs_apt
def test_packages_come_with_all_that_they_need_and_install_from_there(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    package(world, "mr-engine", "5:2", Depends="mr-library", Recommends="mr-extra")
    package(world, "mr-client", Depends="mr-library", Recommends="mr-unwanted")
    for name in ("mr-library", "mr-extra", "mr-unwanted", "mr-other"):
        package(world, name)
    (world / "Packages").write_text(apt.index(run, world))
    root = tmp_path / "apt"
    environment = apt.prepare(root, {"world.list": f"deb [trusted=yes] copy:{world} ./\n"}, {})
    groups = [
        apt.Group(["mr-engine"], recommends=True),
        apt.Group(["mr-client"]),
        apt.Group(["mr-nowhere", "mr-other"], optional=True),
    ]
    names, files = apt.fetch(run, root, groups, environment)
    assert names == ["mr-client", "mr-engine", "mr-other"]
    assert sorted(files) == [
        "mr-client_1_all.deb", "mr-engine_5%3a2_all.deb", "mr-extra_1_all.deb", "mr-library_1_all.deb", "mr-other_1_all.deb",
    ]  # fmt: skip
    with pytest.raises(BundleError, match="apt cannot fetch mr-nowhere"):
        apt.fetch(run, root, [apt.Group(["mr-nowhere"])], environment)

    # What a node does with it.
    place = tmp_path / "node"
    place.mkdir()
    for name, path in files.items():
        shutil.copy(path, place / name)
    (place / "Packages").write_text(apt.index(run, place))
    (tmp_path / "bundle.list").write_text(f"deb [trusted=yes] file:{place} ./\n")
    (tmp_path / "lists/partial").mkdir(parents=True)
    (tmp_path / "status").touch()
    (tmp_path / "apt.conf").write_text(
        apt_configuration({}, str(tmp_path / "bundle.list"))
        + f'Dir::State::Status "{tmp_path}/status"; APT::Sandbox::User "root"; Dir::Cache "{root}/cache";'
    )
    own = {"APT_CONFIG": str(tmp_path / "apt.conf"), "LC_ALL": "C"}
    assert run(["apt-get", "update"], own)[0] == 0
    rc, out, err = run(["apt-get", "install", "--simulate", "mr-engine"], own)
    assert rc == 0 and "Inst mr-library (1 " in out, err
    # The machine's own sources are not asked: of its packages this apt knows none.
    assert run(["apt-cache", "show", "dpkg"], own)[1] == ""


def test_files_of_a_plan() -> None:
    plan = (
        "Inst git (1:2.39.5-0+deb12u3 Debian:12.12/oldstable, Debian-Security:12/oldstable-security [amd64])\n"
        "Inst libc6 [2.36-9] (2.36-10 Debian:12.12/oldstable [amd64])\nConf git (1:2.39.5-0+deb12u3 Debian:12 [amd64])\n"
        "Inst tzdata (2025b Debian:12 [all]) [x:amd64 ]\n"
    )
    assert apt.files_of(plan) == [
        "git_1%3a2.39.5-0+deb12u3_amd64.deb",
        "libc6_2.36-10_amd64.deb",
        "tzdata_2025b_all.deb",
    ]


# --- git ---------------------------------------------------------------------------------------------------------


def test_a_source_is_cloned_from_its_copy_with_the_submodules_of_its_commit(tmp_path: Path) -> None:
    def git(*arguments: str, at: Path = tmp_path) -> str:
        named = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always"]
        done = subprocess.run(["git", *named, *arguments], cwd=at, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    world = tmp_path / "world"
    for name in ("part", "inner", "trainer"):
        git("init", "-q", "-b", "main", str(world / name))
        git("commit", "-q", "--allow-empty", "-m", name, at=world / name)
    git("submodule", "--quiet", "add", "../inner", "inner", at=world / "part")
    git("commit", "-q", "-am", "inner", at=world / "part")
    git("submodule", "--quiet", "add", f"file://{world}/part", "external/part", at=world / "trainer")
    git("commit", "-q", "-am", "part", at=world / "trainer")
    git("tag", "v1", at=world / "trainer")
    # The commit that is named is on no branch any more, and the server gives it for the asking.
    git("config", "uploadpack.allowAnySHA1InWant", "true", at=world / "part")
    git("commit", "-q", "--amend", "--allow-empty", "-m", "later", at=world / "part")

    mirrors = Mirrors(run, tmp_path / "copies", {"GIT_CONFIG_GLOBAL": "/dev/null"})
    (tmp_path / "copies").mkdir()
    mirrors.fetch(f"file://{world}/trainer", "v1")
    assert sorted(Path(url).name for url in mirrors.directories) == ["inner", "part", "trainer"]
    with pytest.raises(BundleError, match="has no commit or tag 'v2'"):
        Mirrors(run, tmp_path / "others", {"GIT_CONFIG_GLOBAL": "/dev/null"}).fetch(f"file://{world}/trainer", "v2")

    # As an archive carries it: files alone.
    node = tmp_path / "node"
    for path in (tmp_path / "copies").rglob("*"):
        if path.is_file():
            (node / path.relative_to(tmp_path / "copies")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, node / path.relative_to(tmp_path / "copies"))
    world.rename(tmp_path / "gone")
    file = tmp_path / "git.conf"
    file.write_text(git_file({}, f"file://{world}/trainer", mirrors.directories, str(node)))
    clone = ["git", "clone", "-q", "--recursive", "--branch", "v1", f"file://{world}/trainer", str(tmp_path / "clone")]
    rc, _out, err = run(clone, {"GIT_CONFIG_GLOBAL": str(file)})
    assert rc == 0, err
    assert (tmp_path / "clone/external/part/inner/.git").exists()
    assert git("remote", "get-url", "origin", at=tmp_path / "clone") == f"file://{world}/trainer"


@pytest.mark.parametrize(
    ("base", "url", "address"),
    [
        ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
        ("https://h/a/b.git", "../../x/c", "https://h/x/c"),
        ("git@h:a/b.git", "../c.git", "git@h:a/c.git"),
        ("https://h/a/b", "https://o/c", "https://o/c"),
        ("https://h/a/b", "./c", "https://h/a/b/c"),
    ],
)
def test_addresses_of_submodules(base: str, url: str, address: str) -> None:
    assert resolve(base, url) == address


def test_an_account_in_the_address_finds_its_copy_too() -> None:
    text = git_file({}, "https://me:x@h/a.git", {"https://h/a.git": "1.git"}, "/b")
    assert '[url "file:///b/1.git"]\n\tinsteadOf = "https://me:x@h/a.git"' in text


def test_the_manifest_is_plain(made: Made) -> None:
    assert json.loads(made.manifest.text())["format"] == 1
