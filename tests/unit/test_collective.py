# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of the proof's ranks, as far as it goes without torch."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles" / "network_env" / "files" / "collective.py"
_spec = importlib.util.spec_from_file_location("collective", SCRIPT)
assert _spec and _spec.loader
collective = importlib.util.module_from_spec(_spec)
sys.modules["collective"] = collective
_spec.loader.exec_module(collective)


def test_ranks_are_counted_node_after_node():
    assert [list(collective.ranks_of([2, 0, 3], node)) for node in range(3)] == [[0, 1], [], [2, 3, 4]]


def test_a_sum_shows_that_all_met():
    collective.check_sum([6.0, 6.0], range(3), "here")
    collective.check_sum([7.0], range(2, 4), "here")
    with pytest.raises(collective.CollectiveError, match="the all-reduce here gave 3 where 6 is right"):
        collective.check_sum([6.0, 3.0], range(3), "here")
    with pytest.raises(collective.CollectiveError):
        collective.check_sum([float("nan")], range(3), "here")


def test_bandwidth_as_nccl_tests_counts_it():
    assert collective.bus_bandwidth(10**9, 4, 1.0) == 1.5
    assert collective.bus_bandwidth(10**9, 1, 1.0) is None


def test_all_ranks_time_equally_often():
    calls = []
    seconds = collective.timed(lambda: calls.append(1), lambda value: 0.5)
    assert seconds == 0.5 and len(calls) == 2 + 4
    calls.clear()
    collective.timed(lambda: calls.append(1), lambda value: 60.0)
    assert len(calls) == 2 + 3


def test_addresses_as_they_were_configured():
    assert [collective.plain(a) for a in ("::ffff:10.0.0.1", "fe80::1%eth0", "fd00::1", "10.0.0.1")] == [
        "10.0.0.1",
        "fe80::1",
        "fd00::1",
        "10.0.0.1",
    ]


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.77.1.1"), (socket.AF_INET6, "::1")])
def test_what_the_kernel_counted(family, address):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        accepted, _from = server.accept()
        with accepted:
            client.sendall(b"x" * 100000)
            received = 0
            while received < 100000:
                received += len(accepted.recv(65536))
            port = server.getsockname()[1]
            until = time.monotonic() + 5
            while True:  # The last acknowledgement may be on its way.
                found = {tuple(c["remote"]): c for c in collective.own_connections()}
                mine = found[(address, port)]
                if mine["sent"] >= 100000 or time.monotonic() > until:
                    break
            assert mine["sent"] >= 100000
            assert found[tuple(client.getsockname()[:2])]["received"] >= 100000


def test_interfaces_of_this_machine():
    found = collective.interfaces_by_address()
    assert found["127.0.0.1"] == "lo"
    if Path("/proc/net/if_inet6").exists() and "::1" in found:
        assert found["::1"] == "lo"


# The processes ------------------------------------------------------------------------------------------------------


def start(folder: Path, torch: str, **config: Any) -> subprocess.Popen[bytes]:
    (folder / "fake").mkdir()
    (folder / "fake" / "torch.py").write_text(torch)
    settings = {
        "backend": "gloo",
        "counts": [1],
        "node": 0,
        "seconds": 5,
        "store": ["127.0.0.1", 1],
        "token": "t",
        "bytes": 8,
    }
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    environment = {**os.environ, "PYTHONPATH": str(folder / "fake")}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], stdin=subprocess.PIPE, env=environment)


def test_an_error_is_one_line_of_the_answer(tmp_path):
    process = start(tmp_path, "raise RuntimeError('libcudart is missing\\nand more')")
    assert process.wait(20) == 1
    answer = json.loads((tmp_path / "rank0.json").read_text())
    assert answer == {"doing": "loading torch", "error": "RuntimeError: libcudart is missing"}


def test_one_rank_that_fails_takes_the_others_with_it(tmp_path):
    """The second rank fails at once; the first would wait for ever."""
    torch = "import sys, time\nif sys.argv[2] == '1':\n    raise RuntimeError('no')\ntime.sleep(600)\n"
    started = time.monotonic()
    process = start(tmp_path, torch, counts=[2])
    assert process.wait(30) == 1
    assert time.monotonic() - started < collective.LAST_WORDS + 10
    assert json.loads((tmp_path / "rank0.json").read_text()) == {"doing": "loading torch"}


def test_nccl_writes_a_log_a_rank_whatever_its_files_say(tmp_path):
    torch = "import os\nraise RuntimeError(os.environ['NCCL_DEBUG'] + ' ' + os.environ['NCCL_DEBUG_FILE'])"
    assert start(tmp_path, torch, backend="nccl").wait(20) == 1
    assert json.loads((tmp_path / "rank0.json").read_text())["error"] == f"RuntimeError: INFO {tmp_path}/nccl0.log"


def test_it_ends_with_its_standard_input(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    process = start(folder, "import time\ntime.sleep(600)\n")
    until = time.monotonic() + 20
    while not (folder / "rank0.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None and process.stdin
    process.stdin.close()
    assert process.wait(5) == 3
    assert not folder.exists()
