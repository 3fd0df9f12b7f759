# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dpkg's own tools on a database of their own, packages built for it, and locks that processes hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._dpkg import (
    LOCKS,
    DpkgError,
    describe_holder,
    duration,
    is_installed,
    lock_holders,
    parse_packages,
    prepare,
    read_state,
)

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg")

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def held(path: Path, seconds: float = 60):
    """A process that holds a lock as dpkg does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Dpkg:
    """A root with a dpkg database; the tools are the real ones. apt-get, which has no such root, is recorded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []
        self.flag = root / "broken"
        os.symlink("/proc", root / "proc")
        for name in LOCKS:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        for name in ("updates", "info"):
            (root / "var/lib/dpkg" / name).mkdir()
        for name in ("status", "available"):
            (root / "var/lib/dpkg" / name).touch()

    def package(self, name: str, version: str = "1") -> Path:
        """A package whose installation fails as long as the flag is there."""
        tree = self.root / "build" / name
        (tree / "DEBIAN").mkdir(parents=True)
        fields = {
            "Package": name,
            "Version": version,
            "Architecture": "all",
            "Maintainer": "x <x@example.org>",
            "Description": "x",
        }
        (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
        script = tree / "DEBIAN/postinst"
        script.write_text(f"#!/bin/sh\ntest ! -e {self.flag}\n")
        script.chmod(0o755)
        target = self.root / f"{name}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, target], check=True, capture_output=True)
        return target

    def install(self, name: str, version: str = "1") -> int:
        return self._dpkg("--install", str(self.package(name, version))).returncode

    def unpack(self, name: str) -> None:
        assert self._dpkg("--unpack", str(self.package(name))).returncode == 0

    def _dpkg(self, *arguments: str) -> subprocess.CompletedProcess:
        options = [f"--root={self.root}", "--force-not-root", "--force-script-chrootless", "--force-bad-path"]
        return subprocess.run(["dpkg", *options, *arguments], capture_output=True, text=True, check=False)

    def run(self, argv):
        self.log.append(" ".join(argv))
        if argv[0] == "dpkg-query":
            done = subprocess.run(
                [argv[0], f"--root={self.root}", *argv[1:]], capture_output=True, text=True, check=False
            )
        elif argv[0] == "dpkg":
            done = self._dpkg(*argv[1:])
        else:
            return 100, "", "E: Unmet dependencies"
        return done.returncode, done.stdout, done.stderr

    def states(self) -> dict[str, str]:
        return {item.name: item.state for item in read_state(self.run, str(self.root)).packages}

    def prepare(self, *names: str, **options):
        return prepare(self.run, names, root=str(self.root), **{"timeout": 0, "pause": 0.05, **options})


@pytest.fixture
def dpkg(tmp_path):
    return Dpkg(tmp_path)


def test_all_there_is_one_look(dpkg):
    dpkg.install("one", "1.2-3")
    with held(dpkg.root / LOCKS[0]):
        outcome = dpkg.prepare("one", "one:all", "one=1.2*")
    assert (outcome.missing, outcome.mended) == ([], []) and len(dpkg.log) == 1


def test_what_is_missing(dpkg):
    dpkg.install("one", "1.2-3")
    assert dpkg.prepare("one", "two", "one=1.3*", "one:riscv64").missing == ["two", "one=1.3*", "one:riscv64"]
    assert prepare(dpkg.run, ["two"], ["one", "three"], root=str(dpkg.root)).present == ["one"]


@pytest.mark.parametrize("how", ["unpacked", "half-configured"])
def test_a_package_of_ours_that_a_power_cut_left_is_brought_to_its_end(dpkg, how):
    if how == "unpacked":
        dpkg.unpack("one")
    else:
        dpkg.flag.touch()
        assert dpkg.install("one") != 0
        dpkg.flag.unlink()
    assert dpkg.states() == {"one": how}
    dry = dpkg.prepare("one", check_mode=True)
    assert (dry.missing, dry.mended, dpkg.states()) == (["one"], [f"one ({how})"], {"one": how})
    outcome = dpkg.prepare("one")
    assert (outcome.missing, outcome.mended) == ([], [f"one ({how})"])
    assert dpkg.states() == {"one": "installed"} and not any("apt-get" in line for line in dpkg.log)
    assert dpkg.prepare("one").mended == []


def test_a_package_of_ours_that_cannot_be_configured_is_named_with_what_dpkg_said(dpkg):
    dpkg.flag.touch()
    dpkg.install("one")
    with pytest.raises(DpkgError) as caught:
        dpkg.prepare("one")
    text = str(caught.value)
    assert "did not mend it: one (half-configured)" in text and "Run both by hand" in text
    assert "Errors were encountered" in text and "E: Unmet dependencies" in text
    assert any("--fix-broken" in line and "--no-remove" in line for line in dpkg.log)


def test_a_broken_package_of_others_concerns_nobody_who_has_all_he_needs(dpkg):
    dpkg.install("one")
    dpkg.flag.touch()
    dpkg.install("theirs")
    assert dpkg.prepare("one").mended == [] and dpkg.states()["theirs"] == "half-configured"
    # Where something is to be installed it is tried, and left to apt where it does not help.
    outcome = dpkg.prepare("one", "two")
    assert (outcome.missing, outcome.mended) == (["two"], ["theirs (half-configured)"])


def test_a_journal_that_dpkg_left_is_written_down(dpkg):
    dpkg.install("one")
    status = dpkg.root / "var/lib/dpkg/status"
    (dpkg.root / "var/lib/dpkg/updates/0000").write_text(status.read_text())
    assert dpkg.prepare("one").mended == ["dpkg's journal"]
    assert list((dpkg.root / "var/lib/dpkg/updates").iterdir()) == []
    assert dpkg.prepare("one").mended == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_is_not_released_names_its_holder(dpkg, name):
    with held(dpkg.root / name) as process:
        began = time.monotonic()
        with pytest.raises(DpkgError) as caught:
            dpkg.prepare("one", timeout=0.3, variable="docker_apt_lock_timeout")
        assert 0.3 <= time.monotonic() - began < 5
        text = str(caught.value)
        assert f"process {process.pid} ('{sys.executable} -c import fcntl" in text
        assert str(dpkg.root / name) in text and "(docker_apt_lock_timeout)" in text and " ago)" in text


def test_a_lock_is_waited_for(dpkg):
    with held(dpkg.root / LOCKS[2], 0.5):
        assert dpkg.prepare("one", timeout=30).missing == ["one"]


def test_what_a_dpkg_at_work_has_unpacked_is_left_alone(dpkg):
    dpkg.unpack("one")
    with held(dpkg.root / LOCKS[1]), pytest.raises(DpkgError, match="still held the lock"):
        dpkg.prepare("one")
    assert dpkg.states() == {"one": "unpacked"}


def test_check_mode_waits_for_nobody(dpkg):
    with held(dpkg.root / LOCKS[0]):
        assert dpkg.prepare("one", timeout=600, check_mode=True).missing == ["one"]


def test_a_holder_and_one_that_this_system_does_not_show(dpkg):
    with held(dpkg.root / LOCKS[0]) as process:
        (holder,) = lock_holders(str(dpkg.root))
        assert holder.pid == process.pid and holder.seconds in range(20)
        (dpkg.root / "proc").unlink()
        (holder,) = lock_holders(str(dpkg.root))
        assert describe_holder(holder) == f"process {process.pid} ('unknown') holds {dpkg.root / LOCKS[0]}"
    assert lock_holders(str(dpkg.root)) == []


def test_a_database_that_cannot_be_read_is_said(dpkg):
    (dpkg.root / "var/lib/dpkg/status").write_text("\0\0\0\n")
    with pytest.raises(DpkgError, match="Mend dpkg's database"):
        dpkg.prepare("one")


def test_names_with_architectures_and_flags():
    packages = parse_packages(
        "libc6\tamd64\t2.36\tinstalled\tok\nlibc6\ti386\t2.36\tunpacked\tok\nx\tall\t1\tinstalled\treinstreq\n"
    )
    assert is_installed("libc6", packages) and is_installed("libc6:amd64", packages)
    assert not is_installed("libc6:i386", packages) and not is_installed("x", packages)


def test_durations():
    assert [duration(value) for value in (0, 90.5, 125, 7300, 200000)] == ["0 s", "90 s", "2 min", "2 h", "2 days"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_module(run_module):
    answer = run_module("package_state", names=["dpkg", "no-such-package"], check=True)
    assert (answer["missing"], answer["changed"]) == (["no-such-package"], False)
