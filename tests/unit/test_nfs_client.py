# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a worker, over real files and with small processes in place of its commands."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _nfs as nfs
from ansible_collections.metalray.cluster.plugins.module_utils._fabric import run_bounded
from ansible_collections.metalray.cluster.plugins.module_utils._nfs_client import Wish, mount, users_of
from ansible_collections.metalray.cluster.plugins.module_utils._tree import Tree
from trees import FakeRoot

# Starting the automount puts what the unit names on the path at once, as the first use does.
SYSTEMCTL = """\
#!/bin/sh
state="$ROOT/run/state"; . "$state"
case $1 in
show) printf 'NeedDaemonReload=no\\nActiveState=%s\\nUnitFileState=%s\\n\\n' "$active" "$enabled"
    printf 'NeedDaemonReload=%s\\nActiveState=active\\nUnitFileState=static\\n' "${outdated:-no}"; exit 0;;
daemon-reload) outdated=no;;
enable) enabled=enabled;;
start) active=active; echo "systemd-1 $WHERE autofs rw 0 0" >> "$ROOT/proc/mounts";;
esac
echo "systemctl $1" >> "$CALLS"
printf 'active=%s\\nenabled=%s\\noutdated=%s\\n' "$active" "$enabled" "$outdated" > "$state"
case $1 in start|daemon-reload)
    test -n "$DOWN" || test "$active" != active || grep -q " nfs4 " "$ROOT/proc/mounts" ||
        sed -n "s#^What=\\(.*\\)#\\1 $WHERE nfs4 rw 0 0#p" "$UNIT" >> "$ROOT/proc/mounts";;
esac
"""
# The next use mounts again.
UMOUNT = """\
#!/bin/sh
echo "umount $*" >> "$CALLS"
if test -n "$BUSY"; then echo "umount: $WHERE: target is busy." >&2; exit 32; fi
sed -i '/ nfs4 /d' "$ROOT/proc/mounts"
. "$ROOT/run/state"
test "$active" != active || sed -n "s#^What=\\(.*\\)#\\1 $WHERE nfs4 rw 0 0#p" "$UNIT" >> "$ROOT/proc/mounts"
"""
JOURNALCTL = """\
#!/bin/sh
echo "Mounting it..."
echo "mount.nfs4: Connection refused for 10.0.0.1"
echo "Failed to mount"
"""


class Host:
    def __init__(self, check_mode: bool = False) -> None:
        self.check_mode = check_mode

    def atomic_move(self, src: str, dest: str) -> None:
        shutil.move(src, dest)


class Worker:
    def __init__(self, tmp_path, monkeypatch) -> None:
        self.root = FakeRoot(tmp_path / "root")
        self.path = str(tmp_path / "shared")
        self.calls_file = tmp_path / "calls"
        os.mkdir(self.path)
        self.units = [f"{nfs.UNITS}/{nfs.unit_name(self.path, suffix)}" for suffix in ("mount", "automount")]
        self.root.write("/proc/mounts", "/dev/sda1 / ext4 rw 0 0")
        self.state("inactive", "disabled")
        tools = tmp_path / "bin"
        tools.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("umount", UMOUNT), ("journalctl", JOURNALCTL)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setenv("ROOT", self.root.path)
        monkeypatch.setenv("CALLS", str(self.calls_file))
        monkeypatch.setenv("WHERE", self.path)
        monkeypatch.setenv("UNIT", self.root.path + self.units[0])

    def state(self, active: str, enabled: str) -> None:
        self.root.write("/run/state", f"active={active}\nenabled={enabled}")

    def mounted(self, *lines: str) -> None:
        self.root.write("/proc/mounts", "\n".join(["/dev/sda1 / ext4 rw 0 0", *lines]))

    def calls(self) -> list[str]:
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.write_text("")
        return calls

    def unit(self) -> str:
        place = self.root.root / self.units[0].lstrip("/")
        return place.read_text() if place.exists() else ""

    def mount(self, *options: str, server: str = "10.0.0.1", check: bool = False, timeout: int = 2):
        wish = Wish(self.path, nfs.source_of(server, self.path), list(options or ("rw", "hard")), timeout)
        return mount(Host(check), wish, run_bounded, self.root.path)


class LateMount:
    """Looks as usual, and finds one more mount as soon as the automount is there."""

    def __init__(self, worker: Worker, line: str) -> None:
        self.look, self.worker, self.line = nfs.look_at, worker, line

    def __call__(self, path: str):
        mounts = self.worker.root.root / "proc/mounts"
        if " autofs " in mounts.read_text():
            mounts.write_text(f"{mounts.read_text()}{self.line}\n")
        return self.look(path)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    return Worker(tmp_path, monkeypatch)


def test_the_first_mount_and_the_second_run(worker):
    foreseen = worker.mount(check=True)
    assert foreseen["changed"] and "Options=rw,hard" in str(foreseen["diff"])
    assert worker.calls() == [] and not worker.unit()
    done = worker.mount()
    assert done["mount"] == {"source": f"10.0.0.1:{worker.path}", "type": "nfs4", "options": "rw"}
    assert worker.calls() == [
        "systemctl daemon-reload",
        "systemctl enable",
        "systemctl reset-failed",
        "systemctl start",
    ]
    assert not worker.mount(check=True)["changed"]
    again = worker.mount()
    assert not again["changed"] and again["mount"] == done["mount"] and worker.calls() == []


def test_the_unit_outlives_a_server_that_is_down_for_long(worker):
    worker.mount("rw", "hard", "_netdev", "nofail", timeout=7)
    unit = worker.unit().splitlines()
    assert unit.index("[Unit]") < unit.index("StartLimitIntervalSec=0") < unit.index("[Mount]")
    assert "TimeoutSec=7" in unit and "Options=rw,hard,_netdev,nofail" in unit and "Type=nfs4" in unit
    assert not [line for line in unit if line.startswith(("LazyUnmount", "ForceUnmount"))]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_units(tmp_path):
    """Names of sections and settings, and the name of the unit for a path that needs escapes."""
    path = "/srv/my-dir/ä b%c"
    for suffix, text in (
        ("mount", nfs.render_mount(nfs.source_of("fd00::1", path), path, ["rw", "hard"], 30)),
        ("automount", nfs.render_automount(path)),
    ):
        unit = tmp_path / nfs.unit_name(path, suffix)
        unit.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
        assert unit.name not in done.stderr and done.returncode == 0, done.stderr


def test_new_options_unmount_plainly_and_mount_anew(worker):
    worker.mount()
    worker.calls()
    done = worker.mount("rw", "hard", "nconnect=4")
    assert worker.calls() == ["systemctl daemon-reload", f"umount {worker.path}"]
    assert f"{worker.path} (unmounted)" in done["changes"] and "nconnect=4" in worker.unit()


def test_the_head_s_new_address_replaces_the_own_mount(worker):
    worker.mount()
    done = worker.mount(server="fd00::7")
    assert done["mount"]["source"] == f"[fd00::7]:{worker.path}"


def test_a_busy_mount_fails_by_name_and_stays_as_it_was(worker, monkeypatch):
    worker.mount()
    before = worker.unit()
    worker.calls()
    user = worker.root.root / "proc/4711"
    (user / "fd").mkdir(parents=True)
    (user / "comm").write_text("trainer\n")
    (user / "cwd").symlink_to("/root")
    (user / "fd/7").symlink_to(f"{worker.path}/data/shard-3")
    monkeypatch.setenv("BUSY", "1")
    for _attempt in range(2):  # The second run has not forgotten it.
        with pytest.raises(nfs.NfsError, match=r"target is busy\. It is in use by trainer \(pid 4711, \w+\)"):
            worker.mount("rw", "hard", "nconnect=4")
        assert worker.unit() == before
        assert worker.calls() == ["systemctl daemon-reload", f"umount {worker.path}", "systemctl daemon-reload"]
    monkeypatch.delenv("BUSY")
    assert worker.mount("rw", "hard", "nconnect=4")["changed"]


def test_who_uses_a_mount_is_found_without_touching_it(tmp_path):
    with open(tmp_path / "x", "w") as _open:
        users = users_of(str(tmp_path), Tree("/"))
    assert [user for user in users if f"(pid {os.getpid()}" in user]
    assert not [user for user in users_of(str(tmp_path) + "-not", Tree("/")) if f"pid {os.getpid()}" in user]


def test_a_mount_by_hand_from_the_same_source_gives_way_to_the_automount(worker):
    worker.mounted(f"10.0.0.1:{worker.path} {worker.path} nfs4 rw 0 0")
    worker.mount()
    calls = worker.calls()
    # systemd refuses an automount where something is mounted.
    assert calls.index(f"umount {worker.path}") < calls.index("systemctl start")


def test_a_mount_without_its_automount_gives_way_too(worker):
    worker.mount()
    worker.state("inactive", "enabled")
    worker.mounted(f"10.0.0.1:{worker.path} {worker.path} nfs4 rw 0 0")
    worker.calls()
    worker.mount()
    assert worker.calls() == [f"umount {worker.path}", "systemctl reset-failed", "systemctl start"]


def test_what_comes_in_between_is_not_taken_for_the_head_s(worker, monkeypatch):
    """Between the judgement and the proof somebody mounts another directory there."""
    monkeypatch.setenv("DOWN", "1")
    other = f"10.0.0.9:{worker.path} {worker.path} nfs4 rw 0 0"
    monkeypatch.setattr(nfs, "look_at", LateMount(worker, other))
    with pytest.raises(nfs.NfsError, match=r"10\.0\.0\.9:.* \(nfs4\) is there"):
        worker.mount()


def test_an_automount_that_was_given_up_starts_again(worker):
    worker.mount()
    worker.mounted()
    worker.state("failed", "enabled")
    worker.calls()
    assert worker.mount(check=True)["changed"] and worker.mount()["changed"]
    assert worker.calls() == ["systemctl reset-failed", "systemctl start"]


def test_units_that_a_run_wrote_and_did_not_load_are_loaded(worker):
    worker.mount()
    worker.root.write("/run/state", "active=active\nenabled=enabled\noutdated=yes")
    worker.calls()
    assert worker.mount(check=True)["changed"] and worker.mount()["changed"]
    assert worker.calls() == ["systemctl daemon-reload", f"umount {worker.path}"]
    assert not worker.mount()["changed"]


def test_a_foreign_mount_is_refused_before_anything_is_changed(worker):
    worker.mounted(f"/dev/sdb1 {worker.path} ext4 rw 0 0")
    for check in (True, False):
        with pytest.raises(nfs.NfsError, match=r"has /dev/sdb1 \(ext4\) mounted on it"):
            worker.mount(check=check)
    assert worker.calls() == [] and not worker.unit()


def test_a_server_that_is_down_is_told_with_the_last_word_of_mount(worker, monkeypatch):
    monkeypatch.setenv("DOWN", "1")
    with pytest.raises(nfs.NfsError, match=r"could not be mounted .*'mount\.nfs4: Connection refused for 10\.0\.0\.1'"):
        worker.mount()


@pytest.mark.parametrize("options", [("rw", ""), ("rw", "hard\nExecStart=x"), ("rw, hard",)])
def test_options_that_would_break_the_unit(worker, options):
    with pytest.raises(nfs.NfsError, match="mount option"):
        worker.mount(*options)


def test_the_module_refuses_what_cannot_be_and_warns_of_soft(run_module):
    for wrong, says in (
        ({"timeout": 0}, "timeout is 0"),
        ({"server": "10.0.0.1:/x"}, "server is"),
        ({"path": "/"}, "not '/' itself"),
    ):
        done = run_module("nfs_mount", check=True, **{"path": "/mnt/no-such", "server": "10.0.0.1", **wrong})
        assert done["failed"] and says in done["msg"]
    done = run_module("nfs_mount", check=True, path="/mnt/no-such", server="10.0.0.1", options=["rw", "soft"])
    assert done["changed"] and "'soft' is among the mount options" in str(done["warnings"])
    assert "What=10.0.0.1:/mnt/no-such" in str(done["diff"])
