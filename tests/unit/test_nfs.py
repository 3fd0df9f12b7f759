# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of NFS, and what is judged of them. What the server itself makes of these lines was compared with nfs-utils 2.6.2."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _nfs as nfs
from trees import FakeRoot

ETAB = (
    "{path}\t{client}(rw,sync,wdelay,hide,nocrossmnt,secure,root_squash,no_all_squash,no_subtree_check,secure_locks,acl,no_pnfs,"
    "anonuid=65534,anongid=65534,sec=sys,rw,secure,root_squash,no_all_squash)\n"
)
OPTIONS = ["rw", "sync", "no_subtree_check", "sec=sys", "root_squash"]
GUIDE = "/mnt/shared *(rw,sync,no_subtree_check,no_root_squash)"


def clients(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(export.path, export.client, export.options) for export in nfs.parse_exports(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# nothing\n\n", []),
        ("/a host(rw) 10.0.0.0/24(ro,sync)", [("/a", "host", ("rw",)), ("/a", "10.0.0.0/24", ("ro", "sync"))]),
        # The blank that opens a directory to the world.
        ("/a host (rw)", [("/a", "host", ()), ("/a", "*", ("rw",))]),
        ("/a", [("/a", "*", ())]),
        ("/a -ro,sync one two(rw) # and no more", [("/a", "one", ("ro", "sync")), ("/a", "two", ("ro", "sync", "rw"))]),
        ('"/my dir" *(ro)\n/my\\040dir @group(ro)', [("/my dir", "*", ("ro",)), ("/my dir", "@group", ("ro",))]),
        ("/a \\\n   one(rw) \\\n   two(rw)", [("/a", "one", ("rw",)), ("/a", "two", ("rw",))]),
        ("/\\303\\244#b fd00::1(rw)", [("/ä#b", "fd00::1", ("rw",))]),
        ('/a "one"(rw)', [("/a", "one", ("rw",))]),
    ],
)
def test_exports_are_read_as_the_server_reads_them(text, found):
    assert clients(text) == found


def test_an_export_knows_its_line_though_lines_are_joined():
    exports = nfs.parse_exports("# one\n/a \\\n x(rw)\n\n/b y(fsid=0)\n", "/etc/exports")
    assert [(e.path, e.line, e.is_root) for e in exports] == [("/a", 2, False), ("/b", 5, True)]
    assert not nfs.parse_exports("/b y(fsid=0,fsid=7)")[0].is_root


@pytest.mark.parametrize("path", ["/mnt/shared", "/mnt/my dir", "/srv/ä b", '/q"u#o', "/a%b-c"])
def test_what_is_rendered_reads_back(path):
    text = nfs.render_exports(path, ["10.0.0.2", "fd00::2"], OPTIONS)
    assert clients(text) == [(path, "10.0.0.2", tuple(OPTIONS)), (path, "fd00::2", tuple(OPTIONS))]
    unit = nfs.render_mount(f"10.0.0.1:{path}", path, ["hard"], 30)
    assert nfs.parse_what(unit) == f"10.0.0.1:{path}"
    assert nfs.parse_what(unit.replace("metalray", "other")) == ""


def test_a_percent_sign_is_no_specifier_of_systemd():
    unit = nfs.render_mount("h:/a%b", "/a%b", ["hard"], 30)
    assert "What=h:/a%%b\n" in unit and "Where=/a%%b\n" in unit
    assert "Where=/a%%b\n" in nfs.render_automount("/a%b")


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd")
@pytest.mark.parametrize(
    "path",
    ["/mnt/shared", "/mnt/my-dir/x_1", "/.hidden/x", "/srv/ä b", "/a/.b", "/a%b:c.d", "/mnt/shared/", "/a\\b~+,="],
)
def test_units_are_named_as_systemd_names_them(path):
    done = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True
    )
    assert nfs.unit_name(path, "mount") == done.stdout.strip()


def test_mounts_and_fstab():
    mounts = nfs.parse_mounts(
        "/dev/sda1 / ext4 rw 0 0\nhead:/x /mnt/shared nfs4 rw,hard 0 0\ntmpfs /mnt/sharedness tmpfs rw 0 0\n"
        "head:/my\\040dir /mnt/my\\040dir nfs4 rw 0 0\n"
    )
    assert nfs.mount_of(mounts, "/mnt/shared/src") == nfs.Mount("head:/x", "/mnt/shared", "nfs4", "rw,hard")
    assert nfs.mount_of(mounts, "/mnt/other").point == "/"
    assert nfs.mount_of(mounts, "/mnt/my dir").source == "head:/my dir"
    # Of two on one point the later one is seen.
    assert nfs.mount_of([*mounts, nfs.Mount("b", "/mnt/shared", "tmpfs")], "/mnt/shared").source == "b"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1:/a", "10.0.0.1:/a/", True),
        ("[fd00::1]:/a", "[FD00:0::1]:/a", True),
        ("Head:/a", "head:/a", True),
        ("10.0.0.1:/a", "10.0.0.1:/b", False),
        ("10.0.0.1:/a", "10.0.0.2:/a", False),
        ("/dev/sda1", "10.0.0.1:/dev/sda1", False),
    ],
)
def test_sources_are_compared_by_what_they_mean(one, other, same):
    assert nfs.same_source(one, other) is same
    assert nfs.same_source(nfs.source_of("fd00::1", "/a"), "[fd00::1]:/a")


def test_threads_follow_the_cpus():
    assert [nfs.threads_for(cpus) for cpus in (1, 2, 8, 32, 192)] == [8, 8, 16, 64, 128]


def test_clients_are_addresses():
    assert nfs.parse_clients(["10.0.0.10", "10.0.0.9/32", "10.1.2.3/24", "FD00:0::2"]) == [
        "10.0.0.9",
        "10.0.0.10",
        "10.1.2.0/24",
        "fd00::2",
    ]
    for wrong, says in (
        ("*", "no IP address"),
        ("node2", "no IP address"),
        ("0.0.0.0/0", "whole Internet"),
        ("::/0", "whole"),
    ):
        with pytest.raises(nfs.NfsError, match=says):
            nfs.parse_clients(["10.0.0.1", wrong])


def test_root_is_squashed_unless_the_variable_says_otherwise():
    assert nfs.export_options(["rw", "sync"], True) == ["rw", "sync", "root_squash"]
    assert nfs.export_options(["rw", "root_squash"], True) == ["rw", "root_squash"]
    assert nfs.export_options(["rw", "sync"], False) == ["rw", "sync", "no_root_squash"]
    for options, squash in ((["rw", "no_root_squash"], True), (["rw", "root_squash"], False)):
        with pytest.raises(nfs.NfsError, match=f"nfs_server_root_squash to {str(not squash).lower()}"):
            nfs.export_options(options, squash)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["rw,sync"], "an item of its own"),
        (["rw", "sync)"], "an item of its own"),
        (["rw", ""], "an item of its own"),
        (["rw", "fsid=root"], "Take it out"),
        (["sync"], "lets nobody write"),
        (["rw", "ro"], "lets nobody write"),
    ],
)
def test_options_that_cannot_be_exported(options, says):
    with pytest.raises(nfs.NfsError, match=says):
        nfs.export_options(options, True)


@pytest.mark.parametrize("path", ["mnt", "/", "/a/", "/a//b", "/a/../b", "/a\nb", "/a\\b", "/a ", "/" + "ä" * 80])
def test_paths_that_cannot_be_shared(path):
    assert nfs.path_problem(path)
    assert not nfs.path_problem("/mnt/my dir/ä-b")


def test_the_exports_in_force():
    def differs(text, options=None):
        return nfs.not_in_force(nfs.parse_exports(text), "/my dir", ["10.0.0.2", "fd00::2"], options or OPTIONS)

    both = ETAB.format(path="/my\\040dir", client="10.0.0.2") + ETAB.format(path="/my\\040dir", client="fd00:0::2")
    assert differs(both) == ""
    assert differs(both + ETAB.format(path="/other", client="*")) == ""
    assert differs("") == "not to 10.0.0.2, fd00::2"
    assert differs(both + ETAB.format(path="/my\\040dir", client="*")) == "to everybody"
    # Everybody is an empty name in the server's own file.
    assert differs(both + ETAB.format(path="/my\\040dir", client="")) == "to everybody"
    assert differs(both + ETAB.format(path="/my\\040dir", client="10.0.0.9")) == "to 10.0.0.9"
    assert (
        differs(both, ["rw", "sync", "no_root_squash"])
        == "10.0.0.2 without no_root_squash; fd00::2 without no_root_squash"
    )
    assert nfs.not_in_force(nfs.parse_exports(both), "/my dir", [], OPTIONS) == "to 10.0.0.2, fd00::2"


# --- what is read of a node, and judged --------------------------------------------------------------------------


class Node:
    """A shared directory that is there, and the files that a node would have about it."""

    def __init__(self, tmp_path) -> None:
        self.root = FakeRoot(tmp_path / "root")
        self.path = str(tmp_path / "shared")
        os.mkdir(self.path)
        self.mounts = ["/dev/sda1 / ext4 rw 0 0"]

    def mount(self, source: str, kind: str, point: str | None = None) -> None:
        self.mounts.append(f"{source} {point or self.path} {kind} rw 0 0")

    def read(self, seconds: float = 10):
        self.root.write("/proc/mounts", "\n".join(self.mounts))
        return nfs.read_shared_dir(self.path, self.root.path, seconds)

    def head(self) -> nfs.Judgement:
        return nfs.check_head("a", self.path, self.read())

    def worker(self, source: str | None = None, **more) -> nfs.Judgement:
        more, mended_by = {**more}, more.pop("mended_by", "")
        return nfs.check_worker("b", self.path, {**self.read(), **more}, source or f"10.0.0.1:{self.path}", mended_by)

    def own_unit(self, server: str = "10.0.0.1") -> None:
        unit = nfs.unit_name(self.path, "mount")
        self.root.write(
            f"/etc/systemd/system/{unit}", nfs.render_mount(f"{server}:{self.path}", self.path, ["hard"], 30)
        )
        self.mount("systemd-1", "autofs")


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def one(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


def test_a_directory_on_a_disk_may_be_exported_and_mounted_on(node):
    facts = node.read()
    assert (facts["answers"], facts["exists"], facts["empty"], facts["real"]) == (True, True, True, node.path)
    assert facts["owner"]["uid"] == os.getuid() and facts["mount"]["type"] == "ext4" and facts["mounts"] == []
    assert node.head() == nfs.Judgement() and node.worker() == nfs.Judgement()
    os.rmdir(node.path)
    facts = node.read()
    assert (facts["exists"], facts["kind"], facts["empty"]) == (False, "", None)
    assert node.head() == nfs.Judgement() and node.worker() == nfs.Judgement()


def test_a_directory_that_never_answers_is_told_in_time(node, monkeypatch):
    """A look that hangs as one at a mount does whose server is gone."""
    fifo = node.path + ".fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(nfs, "look_at", lambda path: os.open(fifo, os.O_RDONLY))
    facts = node.read(0.3)
    assert facts["answers"] is False and facts["exists"] is False and facts["mount"]["type"] == "ext4"
    assert "does not answer" in one(nfs.check_head("a", node.path, facts).problems)
    assert "does not answer" in one(nfs.check_worker("b", node.path, facts, "h:/x").problems)


def test_the_guide_s_line_is_refused_by_file_and_line(node):
    line = GUIDE.replace("/mnt/shared", node.path)
    node.root.write("/etc/exports", f"# the guide\n{line}")
    said = one(node.head().problems)
    assert (
        said.startswith(f"a: /etc/exports:2 exports {node.path} to everybody: '{line}'.")
        and "take the line out" in said
    )


def test_an_export_by_another_name_of_the_directory_is_found(node):
    node.root.write("/etc/exports.d/z.exports", "/by-link 10.9.9.9(rw)").link("/by-link", node.path)
    assert "a: /etc/exports.d/z.exports:1 exports" in one(node.head().problems)


def test_the_own_drop_in_and_what_exportfs_ignores_are_no_others(node):
    line = f"{node.path} 10.0.0.2(rw)"
    for name in ("metalray.exports", ".hidden.exports", "backup.exports.old"):
        node.root.write(f"/etc/exports.d/{name}", line)
    node.root.write("/etc/exports", "/elsewhere *(ro)")
    assert node.head() == nfs.Judgement()


def test_the_root_of_nfsv4_elsewhere_is_refused(node):
    node.root.write("/etc/exports", "/srv/nfs4 10.0.0.0/24(ro,fsid=0)")
    assert "a: /etc/exports:1 makes /srv/nfs4 the root of all NFSv4 paths (fsid=0)" in one(node.head().problems)
    # The root of the file system leaves all paths as they are.
    node.root.write("/etc/exports", "/ 10.0.0.0/24(ro,fsid=root)")
    assert node.head().problems == []


@pytest.mark.parametrize(("above", "says"), [(True, "a directory above"), (False, "a part of")])
def test_an_export_of_more_or_of_less_is_a_warning(node, above, says):
    node.root.write("/etc/exports", f"{os.path.dirname(node.path) if above else node.path + '/public'} 10.9.9.9(ro)")
    judged = node.head()
    assert judged.problems == [] and f"/etc/exports:1 exports {says}" in one(judged.warnings)
    assert "10.9.9.9" in judged.warnings[0]


@pytest.mark.parametrize("kind", ["nfs4", "nfs", "overlay", "fuse.sshfs", "ceph"])
def test_a_directory_that_nfs_cannot_export(node, kind):
    node.mount("fileserver:/x", kind)
    said = one(node.head().problems)
    assert f"lies on fileserver:/x ({kind}, mounted on {node.path})" in said and "'external'" in said


def test_a_container_s_own_root_says_nothing_of_the_directory(node):
    node.mounts = ["overlay / overlay rw 0 0"]
    assert node.head() == nfs.Judgement()


def test_a_network_file_system_in_fstab_of_the_head_is_refused(node):
    node.root.write("/etc/fstab", f"/dev/sdb1 {node.path} ext4 defaults 0 2")
    assert node.head() == nfs.Judgement()
    node.root.write("/etc/fstab", f"# a disk\nfs:/x {node.path} nfs noauto 0 0")
    assert "a: /etc/fstab:2 mounts fs:/x (nfs)" in one(node.head().problems)


@pytest.mark.parametrize("who", ["head", "worker"])
def test_links_and_files_are_refused(node, who):
    os.rmdir(node.path)
    os.symlink("/usr", node.path)
    assert f"{node.path} is, or lies below, a symbolic link and leads to /usr" in one(getattr(node, who)().problems)
    os.unlink(node.path)
    open(node.path, "w").close()
    assert f"{node.path} is a file" in one(getattr(node, who)().problems)


def test_the_guide_s_line_in_fstab_is_refused(node):
    node.root.write("/etc/fstab", f"# static\nhead:/mnt/shared  {node.path}\tnfs defaults 0 0")
    said = one(node.worker().problems)
    assert said.startswith(
        f"b: /etc/fstab:2 mounts head:/mnt/shared on {node.path}: 'head:/mnt/shared {node.path} nfs defaults 0 0'"
    )
    # Mounted by it from the very same source, the line remains the problem.
    node.mount(f"10.0.0.1:{node.path}", "nfs4")
    assert one(node.worker().problems) == said


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("10.0.0.9:{path}", "nfs4"),
        ("10.0.0.1:/other", "nfs4"),
        ("10.0.0.1:{path}", "nfs"),
        ("/dev/sdb1", "ext4"),
        ("systemd-1", "autofs"),
    ],
)
def test_a_foreign_mount_is_refused_with_source_and_type(node, source, kind):
    source = source.format(path=node.path)
    node.mount(source, kind)
    said = one(node.worker().problems)
    assert f"b: {node.path} has {source} ({kind}) mounted on it, and 10.0.0.1:{node.path} belongs there" in said


def test_a_foreign_mount_on_top_of_the_own_automount_is_refused(node):
    node.own_unit()
    assert node.worker() == nfs.Judgement()
    node.mount("tmpfs", "tmpfs")
    assert "has tmpfs (tmpfs) mounted on it" in one(node.worker().problems)


def test_the_own_mount_with_files_in_it_is_right(node):
    node.own_unit()
    node.mount(f"10.0.0.1:{node.path}", "nfs4")
    open(os.path.join(node.path, "file"), "w").close()
    assert node.worker() == nfs.Judgement()
    # The head's address has changed: what this collection mounted it may mount anew.
    assert node.worker(f"10.0.0.7:{node.path}") == nfs.Judgement()


def test_files_that_a_mount_would_cover_are_refused(node):
    os.mkdir(os.path.join(node.path, "lost+found"))
    assert node.worker() == nfs.Judgement()
    open(os.path.join(node.path, "file"), "w").close()
    assert "files in it, which a mount would cover" in one(node.worker().problems)


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "automount"])
def test_an_own_mount_that_does_not_answer(node, mounted):
    node.own_unit()
    if mounted:
        node.mount(f"10.0.0.1:{node.path}", "nfs4")
    said = one(node.worker(answers=False).problems)
    assert f"is mounted from 10.0.0.1:{node.path} and does not answer" in said and "umount -f" in said
    # The stage nfs starts the server.
    judged = node.worker(answers=False, mended_by="the stage nfs starts it")
    assert judged.problems == [] and "does not answer: the stage nfs starts it" in one(judged.warnings)


def test_a_stale_mount_is_refused_and_a_failed_attempt_is_not(node):
    node.own_unit()
    assert node.worker(error="No such device", exists=False) == nfs.Judgement()
    node.mount(f"10.0.0.1:{node.path}", "nfs4")
    assert "stale mount" in one(node.worker(error="Stale file handle", exists=False).problems)
