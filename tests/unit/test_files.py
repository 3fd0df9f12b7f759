# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._files import Wanted, apply_files, sync_file_system


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_writes_files_and_their_directories_once(run_module, tmp_path):
    files = [
        {"path": str(tmp_path / "a/b/one.conf"), "content": "one\n", "mode": "0640"},
        {"path": str(tmp_path / "two.conf"), "content": "two\n"},
    ]
    first = run_module("node_files", files=files)
    assert first["changed"]
    assert first["paths"] == [files[0]["path"], files[1]["path"]]
    assert (tmp_path / "a/b/one.conf").read_text() == "one\n"
    assert mode_of(tmp_path / "a/b/one.conf") == 0o640
    assert mode_of(tmp_path / "a/b") == 0o755

    second = run_module("node_files", files=files)
    assert not second["changed"]
    assert second["paths"] == [] and second["diff"] == []


def test_check_mode_reports_the_same_and_writes_nothing(run_module, tmp_path):
    path = tmp_path / "one.conf"
    path.write_text("old\n")
    files = [{"path": str(path), "content": "new\n"}, {"path": str(tmp_path / "new/two.conf"), "content": "x"}]
    seen = run_module("node_files", check=True, files=files)
    assert path.read_text() == "old\n"
    assert not (tmp_path / "new").exists()
    done = run_module("node_files", files=files)
    assert seen["changed"] and seen["paths"] == done["paths"] and seen["diff"] == done["diff"]
    assert (done["diff"][0]["before"], done["diff"][0]["after"]) == ("old\n", "new\n")


@pytest.mark.parametrize("wrong", ["mode", "content"])
def test_corrects_what_drifted(run_module, tmp_path, wrong):
    path = tmp_path / "one.conf"
    files = [{"path": str(path), "content": "one\n", "mode": "0600"}]
    run_module("node_files", files=files)
    path.chmod(0o644) if wrong == "mode" else path.write_text("other\n")
    assert run_module("node_files", files=files)["changed"]
    assert path.read_text() == "one\n" and mode_of(path) == 0o600


def test_removes_and_then_leaves_alone(run_module, tmp_path):
    path = tmp_path / "one.conf"
    path.write_text("one\n")
    files = [{"path": str(path), "state": "absent"}]
    assert run_module("node_files", files=files)["changed"]
    assert not path.exists()
    assert not run_module("node_files", files=files)["changed"]


def test_a_secret_stays_out_of_the_diff(run_module, tmp_path):
    path = tmp_path / "token"
    path.write_text("canary-old\n")
    result = run_module(
        "node_files", files=[{"path": str(path), "content": "canary-new\n", "mode": "0600", "secret": True}]
    )
    assert path.read_text() == "canary-new\n"
    assert "canary" not in str(result["diff"])


@pytest.mark.parametrize(
    ("make", "item", "says"),
    [
        (lambda root: (root / "x").mkdir(), {"path": "x", "content": "a"}, "a directory stands where a file is wanted"),
        (
            lambda root: (root / "x").write_text(""),
            {"path": "x", "state": "directory"},
            "a file stands where a directory is wanted",
        ),
        (lambda root: (root / "x").write_text(""), {"path": "x/y", "content": "a"}, "is a file, not a directory"),
        (
            lambda root: None,
            {"path": "x", "content": "a", "owner": "no-such-account"},
            "no account or group named 'no-such-account'",
        ),
        (lambda root: None, {"path": "x", "content": "a", "mode": "rw"}, "octal"),
    ],
)
def test_names_the_path_and_the_cause(run_module, tmp_path, make, item, says):
    make(tmp_path)
    result = run_module("node_files", files=[{**item, "path": str(tmp_path / item["path"])}])
    assert result["failed"] and says in result["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_sets_the_owner(run_module, tmp_path):
    path = tmp_path / "one.conf"
    files = [{"path": str(path), "content": "one\n", "owner": "daemon", "group": "daemon"}]
    assert run_module("node_files", files=files)["changed"]
    assert path.owner() == "daemon" and path.group() == "daemon"
    assert not run_module("node_files", files=files)["changed"]


def test_a_file_and_its_name_are_on_the_disk_before_the_stage_goes_on(tmp_path, monkeypatch):
    """The kernel is asked to write each file before it takes the name, and the directory after."""
    synced = []
    fsync = os.fsync

    def watched(descriptor):
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    class Machine:
        check_mode = False

        def atomic_move(self, src, dest):
            assert os.stat(src).st_ino in synced and os.stat(src).st_size == 5
            os.rename(src, dest)
            synced.clear()

    monkeypatch.setattr(os, "fsync", watched)
    applied = apply_files(Machine(), [Wanted(path=str(tmp_path / "new/a"), content="text\n")])
    assert applied.changed and synced == [(tmp_path / "new").stat().st_ino]


def test_a_whole_file_system_is_written_or_the_reason_is_told(tmp_path):
    sync_file_system(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        sync_file_system(str(tmp_path / "nothing"))
