# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the smoke job's own judgement: what it plans, measures and accepts. No Ray and no torch needed."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles" / "training" / "files" / "smoke.py"
_spec = importlib.util.spec_from_file_location("smoke", SCRIPT)
assert _spec and _spec.loader
smoke = importlib.util.module_from_spec(_spec)
sys.modules["smoke"] = smoke
_spec.loader.exec_module(smoke)


def node(name: str, cpus: float = 4, gpus: float = 0) -> dict[str, Any]:
    return {"id": name, "name": name, "cpus": cpus, "gpus": gpus}


class TestPlan:
    def test_one_a_node_without_gpus(self) -> None:
        plan = smoke.plan_workers([node("a"), node("b"), node("c")], 0)
        assert plan == {"workers": 3, "use_gpu": False, "strategy": "STRICT_SPREAD", "expected": ["a", "b", "c"]}

    def test_one_a_gpu(self) -> None:
        plan = smoke.plan_workers([node("head"), node("a", gpus=8), node("b", gpus=8)], 0)
        assert (plan["workers"], plan["use_gpu"], plan["expected"]) == (16, True, ["a", "b"])

    def test_a_number_of_ones_own(self) -> None:
        assert smoke.plan_workers([node("a"), node("b")], 1)["expected"] == []
        assert smoke.plan_workers([node("a")], 3)["strategy"] == "SPREAD"

    def test_too_many(self) -> None:
        with pytest.raises(smoke.SmokeError, match="9 workers are wanted, but the cluster has 8 CPUs"):
            smoke.plan_workers([node("a"), node("b")], 9)

    def test_nothing_to_train_on(self) -> None:
        with pytest.raises(smoke.SmokeError, match="no node"):
            smoke.plan_workers([node("a", cpus=0)], 0)


@pytest.mark.parametrize(
    ("backend", "setting", "interface", "right"),
    [
        ("gloo", "eth1", "eth1", True),
        ("gloo", "eth", "eth1", False),
        ("gloo", "eth0,eth1", "eth1", True),
        ("nccl", "eth", "eth1", True),
        ("nccl", "=eth1", "eth1", True),
        ("nccl", "=eth1", "eth10", False),
        ("nccl", "eth1", "eth10", True),
        ("nccl", "^docker,lo", "eth0", True),
        ("nccl", "^docker,lo", "docker0", False),
        ("nccl", "^=lo", "lo", False),
    ],
)
def test_interface_settings(backend: str, setting: str, interface: str, right: bool) -> None:
    assert smoke.names_interface(backend, setting, interface) is right


def test_nccl_setting_in_force(tmp_path: Path) -> None:
    conf = tmp_path / "nccl.conf"
    conf.write_text("# comment\nNCCL_SOCKET_IFNAME = =ens1\nNCCL_SOCKET_IFNAME=late\n")
    files = [str(tmp_path / "none"), str(conf)]
    assert smoke.nccl_setting("NCCL_SOCKET_IFNAME", {}, files) == "=ens1"
    assert smoke.nccl_setting("NCCL_SOCKET_IFNAME", {"NCCL_SOCKET_IFNAME": "=x"}, files) == "=x"
    assert smoke.nccl_setting("NCCL_DEBUG", {}, files) == ""


def connection(local: tuple[str, int], remote: tuple[str, int], sent: int = 10) -> dict[str, Any]:
    return {"local": local, "remote": remote, "sent": sent, "received": 1}


class TestTraffic:
    A, B = ("10.0.0.11", 40000), ("10.0.0.12", 50000)

    def test_only_what_both_ranks_hold(self) -> None:
        connections = [
            [connection(self.A, self.B, 500), connection(("10.0.0.11", 1), ("10.0.0.12", 6379))],
            [connection(self.B, self.A)],
        ]
        assert smoke.rank_traffic(0, connections, {"10.0.0.11": "ens1"}, 0) == [
            {
                "address": "10.0.0.11",
                "interface": "ens1",
                "within_node": False,
                "peers": ["10.0.0.12"],
                "bytes_sent": 500,
                "bytes_received": 1,
            }
        ]

    def test_the_rendezvous_does_not_count(self) -> None:
        connections = [[connection(self.A, self.B)], [connection(self.B, self.A)]]
        assert smoke.rank_traffic(0, connections, {}, 50000) == []

    def test_a_rank_alone_has_none(self) -> None:
        assert smoke.rank_traffic(0, [[connection(self.A, self.B)]], {}, 0) == []

    def test_own_connections_are_measured(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _peer = server.accept()
            client.sendall(b"x" * 5000)
            assert accepted.recv(5000, socket.MSG_WAITALL)
            mine = [item for item in smoke.own_connections() if item["remote"] == server.getsockname()]
            client.sendall(b"still open")
            client.close()
            accepted.close()
        assert len(mine) == 1
        assert 5000 <= mine[0]["sent"] <= 5001  # The kernel may count the SYN.
        assert smoke.interfaces_by_address()["127.0.0.1"] == "lo"


def rank(**changes: Any) -> dict[str, Any]:
    traffic = {"address": "10.0.0.11", "interface": "ens1", "within_node": False, "peers": ["10.0.0.12"]}
    return {
        "rank": 0,
        "hostname": "n1",
        "node_ip": "10.0.0.11",
        "backend": "gloo",
        "gloo_socket_ifname": "ens1",
        "nccl_socket_ifname": "=ens1",
        "traffic": [traffic],
        **changes,
    }


class TestJudge:
    def test_right(self) -> None:
        smoke.judge({"losses": [1.0, 0.1], "ranks": [rank()]}, ["10.0.0.11"], 0.2)

    @pytest.mark.parametrize("last", [0.3, 1.0, math.nan, math.inf])
    def test_loss(self, last: float) -> None:
        with pytest.raises(smoke.SmokeError, match="the loss did not fall"):
            smoke.judge({"losses": [1.0, last], "ranks": [rank()]}, [], 0.2)

    def test_a_node_that_did_not_take_part(self) -> None:
        with pytest.raises(smoke.SmokeError, match=r"no worker ran on 10\.0\.0\.12"):
            smoke.judge({"losses": [1.0, 0.1], "ranks": [rank()]}, ["10.0.0.11", "10.0.0.12"], 0.2)

    def test_the_wrong_interface(self) -> None:
        with pytest.raises(smoke.SmokeError, match=r"rank 0 on n1 .* through ens1 .* GLOO_SOCKET_IFNAME is docker0"):
            smoke.judge({"losses": [1.0, 0.1], "ranks": [rank(gloo_socket_ifname="docker0")]}, [], 0.2)

    def test_within_a_node_and_without_a_setting_any_will_do(self) -> None:
        inside = {**rank()["traffic"][0], "within_node": True}
        ranks = [rank(gloo_socket_ifname=""), rank(gloo_socket_ifname="x", traffic=[inside])]
        smoke.judge({"losses": [1.0, 0.1], "ranks": ranks}, [], 0.2)


def test_result_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    smoke.write_result(str(path), {"status": "SUCCEEDED"})
    assert json.loads(path.read_text()) == {"status": "SUCCEEDED"}
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]
    assert smoke.finished_before(str(path))
    smoke.write_result(str(path), {"status": "FAILED"})
    assert not smoke.finished_before(str(path))
    assert not smoke.finished_before(str(tmp_path / "none"))


def test_an_error_of_many_lines_becomes_one() -> None:
    error = RuntimeError("Training failed:\n[Rank 0]:\nTraceback\n  File x\nValueError: bad shape\n")
    assert smoke.in_short(error) == "ValueError: bad shape"
    assert smoke.in_short(KeyError("x")) == "KeyError: 'x'"


def test_a_place_for_the_result_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("METALRAY_RESULT_FILE", raising=False)
    with pytest.raises(SystemExit):
        smoke.parse(["--storage", "/x"])
    assert "METALRAY_RESULT_FILE" in capsys.readouterr().err
    monkeypatch.setenv("METALRAY_RESULT_FILE", "/r.json")
    assert smoke.parse(["--storage", "/x"]).result == "/r.json"


def save(run: Path, name: str, epoch: int, state: bytes = b"weights" * 999) -> Path:
    """A checkpoint as a worker saves it, without torch: what is in the state does not matter here."""
    folder = run / f"checkpoint_{name}"
    folder.mkdir(parents=True)
    (folder / smoke.STATE_FILE).write_bytes(state)
    (folder / smoke.MANIFEST_FILE).write_text(json.dumps(smoke.describe_state(folder, epoch, 1 / epoch)))
    return folder


class TestCheckpoints:
    def test_the_newest_one_that_leaves_something_to_do(self, tmp_path: Path) -> None:
        assert smoke.newest_complete(tmp_path / "none", 10) is None
        older, newer = save(tmp_path, "2026-11-25_09-59", 5), save(tmp_path, "2026-11-25_10-00", 10)
        assert smoke.newest_complete(tmp_path, 11)[0] == newer
        assert smoke.newest_complete(tmp_path, 10) == (older, smoke.read_manifest(older))
        assert smoke.newest_complete(tmp_path, 5) is None

    @pytest.mark.parametrize("kept", [0, 1, 6992, None])
    @pytest.mark.parametrize("file", ["STATE_FILE", "MANIFEST_FILE"])
    def test_a_torn_one_is_never_resumed_from(self, tmp_path: Path, file: str, kept: int | None) -> None:
        whole, torn = save(tmp_path, "1", 5), save(tmp_path, "2", 10)
        path = torn / getattr(smoke, file)
        if kept is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1][:kept])
        assert smoke.newest_complete(tmp_path, 99)[0] == whole
        smoke.keep_only(tmp_path, whole)
        assert list(tmp_path.iterdir()) == [whole]

    def test_a_state_under_the_manifest_of_another_is_none(self, tmp_path: Path) -> None:
        one, other = save(tmp_path, "1", 5), save(tmp_path, "2", 10, state=b"other")
        (other / smoke.MANIFEST_FILE).write_bytes((one / smoke.MANIFEST_FILE).read_bytes())
        (one / smoke.MANIFEST_FILE).write_text('["no manifest"]')
        assert smoke.newest_complete(tmp_path, 99) is None

    def test_a_copy_that_is_killed_midway(self, tmp_path: Path) -> None:
        """By a process that copies as Ray Train does, file by file and in pieces, and dies after every piece in turn."""
        source, run = save(tmp_path, "source", 10), tmp_path / "run"
        whole = save(run, "1", 5)
        program = (
            "import os, sys; from pathlib import Path\n"
            "left = int(sys.argv[3])\n"
            "for source in sorted(Path(sys.argv[1]).iterdir(), reverse=True):\n"
            "    with source.open('rb') as reading, (Path(sys.argv[2]) / source.name).open('wb', 0) as writing:\n"
            "        for piece in iter(lambda: reading.read(2500), b''):\n"
            "            left or os.kill(os.getpid(), 9)\n"
            "            writing.write(piece); left -= 1\n"
        )
        chosen = []
        for pieces in range(5):
            target = run / f"checkpoint_2-{pieces}"
            target.mkdir()
            subprocess.run([sys.executable, "-c", program, source, target, str(pieces)], check=False)
            chosen.append(smoke.newest_complete(run, 99)[0])
        assert chosen == [whole] * 4 + [target]

    def test_what_is_to_be_forgotten(self, tmp_path: Path) -> None:
        smoke.keep_only(tmp_path / "none", None)
        kept = save(tmp_path, "1", 5)
        (tmp_path / "checkpoint_manager_snapshot.json").write_text("{")
        smoke.keep_only(tmp_path, kept)
        assert list(tmp_path.iterdir()) == [kept]
        smoke.keep_only(tmp_path, None)
        assert not list(tmp_path.iterdir())

    def test_a_fresh_start_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = ["--storage", "/x", "--result", "/r.json"]
        assert not smoke.parse(asked).fresh and smoke.parse([*asked, "--fresh"]).fresh
        monkeypatch.setenv("METALRAY_FRESH", "1")
        assert smoke.parse(asked).fresh
