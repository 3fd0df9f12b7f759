# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

ME = pwd.getpwuid(os.getuid()).pw_name
MARKER = ".metalray-shared"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes another account on")


@pytest.fixture
def directory():
    # Not below pytest's own directories, which let nobody else through.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_it_is_marked_once_and_compared(run_module, directory):
    foreseen = run_module("shared_directory", path=str(directory), user=ME, check=True)
    assert foreseen["changed"] and list(directory.iterdir()) == []
    marked = run_module("shared_directory", path=str(directory), user=ME)
    assert marked["changed"] and (directory / MARKER).read_text() == marked["marker"] + "\n"
    again = run_module("shared_directory", path=str(directory), user=ME)
    assert not again["changed"] and again["marker"] == marked["marker"]
    seen = run_module("shared_directory", path=str(directory), user=ME, expect=marked["marker"])
    assert not seen["changed"] and seen["marker"] == marked["marker"]
    assert os.listdir(directory) == [MARKER]


def test_another_directory_of_the_same_name_is_told(run_module, directory):
    done = run_module("shared_directory", path=str(directory), user=ME, expect="1234")
    assert done["failed"] and "it has no marker, the head wrote 1234" in done["msg"]
    (directory / MARKER).write_text("5678\n")
    done = run_module("shared_directory", path=str(directory), user=ME, expect="1234")
    assert done["failed"] and "it carries the marker 5678" in done["msg"]


def test_what_is_not_there(run_module, directory):
    missing = str(directory / "none")
    done = run_module("shared_directory", path=missing, user=ME)
    assert done["failed"] and "is not a directory on this node" in done["msg"]
    assert run_module("shared_directory", path=missing, user=ME, check=True)["changed"] is False
    done = run_module("shared_directory", path=missing, user="no-such-account")
    assert done["failed"] and "no account named 'no-such-account'" in done["msg"]


@needs_root
def test_the_account_itself_must_be_able_to_write(run_module, directory):
    done = run_module("shared_directory", path=str(directory), user="daemon")
    assert done["failed"] and f"chown daemon: {directory}" in done["msg"]
    os.chown(directory, pwd.getpwnam("daemon").pw_uid, -1)
    assert run_module("shared_directory", path=str(directory), user="daemon")["changed"]
    assert (directory / MARKER).stat().st_uid == pwd.getpwnam("daemon").pw_uid


def test_a_directory_that_never_answers_does_not_hang_the_run(run_module, directory):
    """The read of the marker hangs, as all of a mount does whose server is gone."""
    os.mkfifo(directory / MARKER)
    done = run_module("shared_directory", path=str(directory), user=ME, timeout=1)
    assert done["failed"] and "does not answer on this node (1 s)" in done["msg"]
