# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a server, over real files and with small processes in place of its commands."""

from __future__ import annotations

import os
import pwd
import shutil

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _nfs as nfs
from ansible_collections.metalray.cluster.plugins.module_utils._fabric import run_bounded
from ansible_collections.metalray.cluster.plugins.module_utils._nfs_server import Share, export
from trees import FakeRoot

# The table in force becomes what the files say, as far as they name addresses.
EXPORTFS = """\
#!/bin/sh
echo "exportfs $*" >> "$CALLS"
echo "$SAID" >&2
test -n "$BROKEN" || sed -n '/^[^#]/p' "$ROOT"/etc/exports "$ROOT"/etc/exports.d/*.exports 2>/dev/null > "$ROOT/var/lib/nfs/etab"
exit ${STATUS:-0}
"""
# Type=oneshot with RemainAfterExit: started once, active whatever the kernel's threads do.
SYSTEMCTL = """\
#!/bin/sh
state="$ROOT/run/state"; . "$state"
case $1 in
show) echo "ActiveState=$active"; echo "UnitFileState=$enabled"; exit 0;;
enable) enabled=enabled;;
start|restart) active=active
    nfsd="$ROOT/proc/fs/nfsd"
    test -n "$NO_KERNEL" || {
        mkdir -p "$nfsd"
        sed -n 's/^threads=//p' "$ROOT"/etc/nfs.conf.d/*.conf > "$nfsd/threads"
        echo "+3 +4 +4.1 +4.2" > "$nfsd/versions"
        exportfs -r
    };;
esac
echo "systemctl $*" >> "$CALLS"
printf 'active=%s\\nenabled=%s\\n' "$active" "$enabled" > "$state"
"""
OPTIONS = ["rw", "sync", "no_subtree_check", "sec=sys", "root_squash"]


class Host:
    def __init__(self, check_mode: bool = False) -> None:
        self.check_mode = check_mode

    def atomic_move(self, src: str, dest: str) -> None:
        shutil.move(src, dest)


class Server:
    """A head on which nothing of NFS has ever run."""

    def __init__(self, tmp_path, monkeypatch) -> None:
        self.root = FakeRoot(tmp_path / "root")
        self.path = str(tmp_path / "shared")
        self.calls_file = tmp_path / "calls"
        self.warnings: list[str] = []
        self.root.write("/proc/mounts", "/dev/sda1 / ext4 rw 0 0").write("/var/lib/nfs/etab", "")
        self.state("inactive", "disabled")
        self.tools = tmp_path / "bin"
        self.tools.mkdir()
        for name, text in (("exportfs", EXPORTFS), ("systemctl", SYSTEMCTL)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.tools}:{os.environ['PATH']}")
        monkeypatch.setenv("ROOT", self.root.path)
        monkeypatch.setenv("CALLS", str(self.calls_file))

    def state(self, active: str, enabled: str) -> None:
        self.root.write("/run/state", f"active={active}\nenabled={enabled}")

    def running(self, threads: int = 8) -> None:
        self.state("active", "enabled")
        self.root.write("/proc/fs/nfsd/threads", threads).write("/proc/fs/nfsd/versions", "+3 +4 +4.1 +4.2")

    def calls(self) -> list[str]:
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.write_text("")
        return calls

    def text(self, path: str) -> str:
        place = self.root.root / path.lstrip("/")
        return place.read_text() if place.exists() else ""

    def export(self, *clients: str, check: bool = False, options: tuple[str, ...] = (), **more):
        me = pwd.getpwuid(os.getuid()).pw_name
        wanted = {"owner": me, "group": me, **more}
        share = Share(self.path, list(clients), [*OPTIONS, *options], **wanted)
        return export(Host(check), share, run_bounded, self.warnings.append, self.root.path, cpus=10)


@pytest.fixture
def server(tmp_path, monkeypatch):
    return Server(tmp_path, monkeypatch)


def test_a_new_server_starts_once_and_right(server):
    done = server.export("10.0.0.3", "10.0.0.2", "fd00::2")
    assert done["changed"] and done["clients"] == ["10.0.0.2", "10.0.0.3", "fd00::2"] and done["threads"] == 20
    assert os.stat(server.path).st_mode & 0o7777 == 0o755
    options = ",".join(OPTIONS)
    assert server.text(nfs.OWN_EXPORTS).splitlines()[1:] == [f"{server.path} {c}({options})" for c in done["clients"]]
    assert "threads=20\n" in server.text(nfs.OWN_SERVER_CONF)
    # The second exportfs is ours: the first, at the start, is the service's.
    assert server.calls() == [
        "systemctl enable nfs-server.service",
        "exportfs -r",
        "systemctl start nfs-server.service",
        "exportfs -ra",
    ]
    again = server.export("10.0.0.3", "10.0.0.2", "fd00::2")
    assert not again["changed"] and again["changes"] == [] and server.calls() == []


def test_a_running_server_is_told_and_not_restarted(server):
    server.running()
    done = server.export("10.0.0.2", threads=5)
    assert server.calls() == ["exportfs -ra"] and server.text("/proc/fs/nfsd/threads") == "5\n"
    assert "threads (5)" in done["changes"]
    # One client less, and the server knows.
    server.export("10.0.0.2", "10.0.0.3", threads=5)
    server.export("10.0.0.3", threads=5)
    assert server.text(nfs.EXPORTS_IN_FORCE).split("(")[0] == f"{server.path} 10.0.0.3"


@pytest.mark.parametrize(
    "lost", ["", "{path} 10.0.0.2(ro,root_squash,sec=sys)\n", "{path} 10.0.0.2({options})\n{path} *(rw)\n"]
)
def test_a_right_file_that_is_not_in_force_is_brought_into_force(server, lost):
    server.running()
    server.export("10.0.0.2")
    server.calls()
    server.root.write(nfs.EXPORTS_IN_FORCE, lost.format(path=server.path, options=",".join(OPTIONS)).encode())
    assert server.export("10.0.0.2", check=True)["changes"] == ["exports in force"] and server.calls() == []
    assert server.export("10.0.0.2")["changes"] == ["exports in force"] and server.calls() == ["exportfs -ra"]
    assert not server.export("10.0.0.2")["changed"]


def test_an_option_that_the_table_in_force_does_not_show_takes_effect_too(server):
    server.running()
    server.export("10.0.0.2")
    server.calls()
    assert server.export("10.0.0.2", options=("no_wdelay",))["changed"] and server.calls() == ["exportfs -ra"]


def test_an_export_that_does_not_come_into_force_fails(server, monkeypatch):
    server.running()
    monkeypatch.setenv("BROKEN", "1")
    monkeypatch.setenv("SAID", "requires fsid= for NFS export")
    with pytest.raises(nfs.NfsError, match=r"not to 10\.0\.0\.2\. It said: requires fsid="):
        server.export("10.0.0.2")
    # And again: the file alone proves nothing.
    with pytest.raises(nfs.NfsError, match="exported otherwise than wanted"):
        server.export("10.0.0.2")


def test_what_another_s_line_complains_of_is_a_warning(server, monkeypatch):
    server.running()
    monkeypatch.setenv("STATUS", "1")
    monkeypatch.setenv("SAID", "Failed to resolve oldhost")
    assert server.export("10.0.0.2")["changed"]
    assert server.warnings == [
        "exportfs complains about an export that is not the cluster's: Failed to resolve oldhost"
    ]


def test_another_s_line_for_the_directory_is_refused_before_anything_is_changed(server):
    server.root.write("/etc/exports", f"{server.path} *(rw,no_root_squash)")
    for check in (True, False):
        with pytest.raises(nfs.NfsError, match="/etc/exports:1 exports"):
            server.export("10.0.0.2", check=check)
    assert server.calls() == [] and not os.path.exists(server.path) and not server.text(nfs.OWN_EXPORTS)


def test_others_exports_stay(server):
    server.running()
    server.root.write("/etc/exports", "/srv/other 10.9.9.9(ro)").write(
        "/etc/exports.d/a.exports", "/srv/a 10.9.9.9(ro)"
    )
    server.export("10.0.0.2")
    server.export()
    assert {line.split()[0] for line in server.text(nfs.EXPORTS_IN_FORCE).splitlines()} == {"/srv/other", "/srv/a"}


def test_exports_by_hand_end_and_are_named(server):
    server.running()
    server.root.write("/etc/exports", "/srv/link 10.9.9.9(ro)").link("/srv/link", "/srv/real")
    server.root.write(nfs.EXPORTS_IN_FORCE, "/srv/hand\t10.9.9.9(ro)\n/srv/real\t10.9.9.9(ro)")
    server.export("10.0.0.2")
    assert len(server.warnings) == 1 and "have ended: /srv/hand. " in server.warnings[0]


def test_without_clients_the_export_is_withdrawn_and_no_server_started(server):
    assert server.export()["changes"] == [server.path] and server.calls() == []
    server.running()
    server.export("10.0.0.2")
    server.calls()
    done = server.export()
    assert done["changed"] and done["threads"] == 0 and server.calls() == ["exportfs -ra"]
    assert not server.text(nfs.OWN_EXPORTS) and not server.text(nfs.OWN_SERVER_CONF)
    assert not server.export()["changed"]


def test_check_mode_says_it_all_where_nothing_is_installed(server):
    for tool in server.tools.iterdir():
        tool.unlink()
    done = server.export("10.0.0.2", check=True, owner="not-there-yet")
    assert done["changes"] == [
        server.path,
        server.root.path + nfs.OWN_EXPORTS,
        server.root.path + nfs.OWN_SERVER_CONF,
        "exports in force",
        "nfs-server.service",
    ]
    assert f"{server.path} 10.0.0.2(rw," in str(done["diff"])
    assert not os.path.exists(server.path) and not server.text(nfs.OWN_EXPORTS)


def test_a_service_that_counts_as_active_without_a_thread_is_started_again(server):
    server.state("active", "enabled")
    server.export("10.0.0.2")
    assert "systemctl restart nfs-server.service" in server.calls()


def test_a_kernel_that_serves_no_nfs_is_named(server, monkeypatch):
    monkeypatch.setenv("NO_KERNEL", "1")
    with pytest.raises(nfs.NfsError, match="the kernel serves no NFS"):
        server.export("10.0.0.2")


def test_a_server_without_nfs_4_2_is_named_and_not_restarted(server):
    server.running()
    server.root.write("/proc/fs/nfsd/versions", "+3 +4 +4.1 -4.2")
    with pytest.raises(nfs.NfsError, match=r"does not offer NFSv4\.2 .*systemctl restart nfs-server"):
        server.export("10.0.0.2")
    assert not [call for call in server.calls() if "start" in call]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@needs_root
def test_a_new_disk_is_given_to_the_owner_and_a_directory_in_use_is_left_alone(server):
    server.running()
    os.makedirs(f"{server.path}/lost+found")
    os.chmod(server.path, 0o2775)
    daemon = pwd.getpwnam("daemon")
    server.export("10.0.0.2", owner="daemon", group="daemon")
    info = os.stat(server.path)
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (daemon.pw_uid, daemon.pw_gid, 0o2775)
    os.chown(server.path, 0, 0)
    open(f"{server.path}/file", "w").close()
    assert not server.export("10.0.0.2", owner="daemon", group="daemon")["changed"]
    assert os.stat(server.path).st_uid == 0


def test_the_module_refuses_what_cannot_be_before_it_looks(run_module):
    base = {"path": "/mnt/no-such", "owner": "root", "group": "root", "clients": ["10.0.0.2"]}
    for wrong, says in (
        ({"clients": ["*"]}, "'*' is no IP address"),
        ({"options": ["rw", "no_root_squash"]}, "nfs_server_root_squash"),
        ({"threads": -1}, "threads is -1"),
        ({"path": "/"}, "not '/' itself"),
    ):
        done = run_module("nfs_export", check=True, **{**base, **wrong})
        assert done["failed"] and says in done["msg"]
