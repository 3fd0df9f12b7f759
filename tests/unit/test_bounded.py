# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._bounded import NoAnswer, bounded


def children() -> set[str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as handle:
        return set(handle.read().split())


def test_the_answer_comes_from_another_process():
    assert bounded(lambda: {"pid": os.getpid(), "text": "ä" * 200_000}, 10)["pid"] != os.getpid()


def sleep(_fifo: str) -> None:
    time.sleep(3600)


def open_a_pipe_without_a_writer(fifo: str) -> None:
    os.open(fifo, os.O_RDONLY)


@pytest.mark.parametrize("hang", [sleep, open_a_pipe_without_a_writer])
def test_what_never_ends_is_ended_in_time_and_leaves_nobody(tmp_path, hang):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    before, started = children(), time.monotonic()
    with pytest.raises(NoAnswer):
        bounded(lambda: hang(fifo), 0.3)
    assert time.monotonic() - started < 3
    assert children() == before


def test_an_error_of_the_system_stays_what_it_is():
    with pytest.raises(FileNotFoundError) as seen:
        bounded(lambda: os.stat("/no/such/path"), 10)
    assert seen.value.errno == errno.ENOENT


def test_any_other_end_is_told():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        bounded(lambda: 1 / 0, 10)
    with pytest.raises(RuntimeError, match="without an answer"):
        bounded(lambda: os._exit(0), 10)


def test_what_outlives_its_time_holds_no_output_of_the_caller():
    """Ansible waits until nobody has the module's output open."""
    names = bounded(lambda: [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)], 10)
    assert names == ["/dev/null"] * 3
