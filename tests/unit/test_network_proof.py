# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of the network: its judgement on logs and counters, and the module as several nodes of one machine."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _network_proof as proof
from ansible_collections.metalray.cluster.plugins.module_utils._network_proof import (
    Expected,
    Lines,
    Myself,
    Peer,
    ProofError,
    Search,
    judge_gloo,
    judge_nccl,
    largest_packet,
    lay_out,
    next_size,
    odd_mtu,
    packet_problems,
    parse_nccl,
    rank_problems,
    unreached_problems,
)
from ansible_collections.metalray.cluster.plugins.modules import network_proof
from namespaces import needs_namespaces

pytestmark = pytest.mark.tools

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
COLLECTIVE = ROOT / "roles/network_env/files/collective.py"
ME = pwd.getpwuid(os.geteuid()).pw_name


def log(name: str, *changes: tuple[str, str]) -> proof.NcclLog:
    """A captured log, with some of it replaced."""
    text = (DATA / f"nccl_{name}.log").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_nccl(text)


# NCCL's log ---------------------------------------------------------------------------------------------------------


def test_a_log_of_one_node():
    seen = log("one_node")
    assert (seen.version, seen.network, seen.bootstrap, seen.sockets) == ("2.28.9", "Socket", "eth0", ["eth0"])
    assert seen.hcas == [] and seen.lines["hcas"] == "NET/IB : No device found."
    assert [(e.world, e.source, e.target, e.via) for e in seen.edges] == [(2, 0, 1, "P2P/CUMEM")] * 2
    want = Expected(transport="Socket", interface="eth0", intra="P2P")
    assert judge_nccl("n1", [seen], [2], 0, want) == []
    assert proof.describe_nccl([seen], [2], 0)["intra"] == "P2P/CUMEM"


def test_a_log_of_two_nodes_over_ethernet():
    seen = log("two_hosts")
    want = Expected(transport="Socket", interface="eth0", intra="P2P")
    assert judge_nccl("n1", [seen], [1, 1], 0, want) == []
    assert {e.via for e in seen.edges} == {"NET/Socket/0"}
    assert proof.describe_nccl([seen], [1, 1], 0) == {
        "version": "2.28.9",
        "network": "Socket",
        "interface": "eth0",
        "hcas": [],
        "intra": None,
    }


def test_a_log_of_infiniband():
    seen = log("infiniband")
    assert (seen.network, seen.bootstrap, seen.hcas) == ("IB", "ib0", ["mlx5_0:1", "mlx5_3:1"])
    for hcas in (("mlx5_0", "mlx5_3"), ("mlx5_3:1", "mlx5_0:1")):
        want = Expected(transport="IB", interface="ib0", hcas=hcas, intra="P2P", gpudirect=True)
        assert judge_nccl("n1", [seen], [2, 2], 0, want) == []
    facts = proof.describe_nccl([seen], [2, 2], 0)
    assert (facts["hcas"], facts["intra"]) == (["mlx5_0:1", "mlx5_3:1"], "P2P/CUMEM")


@pytest.mark.parametrize(
    "line",
    [
        "NET/IB : Using [0]mlx5_0:1/RoCE [1]mlx5_3:1/RoCE [RO]; OOB eth0:10.0.0.1<0>",
        "NET/IB : Using [0]={[0] mlx5_0:1/IB, [1] mlx5_3:1/IB} [RO]; OOB eth0:10.0.0.1<0>",
        "NET/IB : Using [0]mlx5_0:1:0:2/IB [1]mlx5_3:1::3/IB ; OOB eth0:10.0.0.1<0>",
    ],
)
def test_hcas_as_releases_write_them(line):
    assert parse_nccl(f"h:1:2 [0] NCCL INFO {line}").hcas == ["mlx5_0:1", "mlx5_3:1"]


def test_interfaces_as_nccl_writes_them():
    text = "[2026-01-01 00:00:00] h:1:2 [0] NCCL INFO NET/Socket : Using [0]eth0:fd00::2<0> [1]eth0:1:192.0.2.3<0> [2]bond0.7:10.0.0.1<0>"
    assert parse_nccl(text).sockets == ["eth0", "eth0:1", "bond0.7"]
    assert parse_nccl("h:1:2 [0] NCCL INFO Bootstrap : Using [0]ib0:10.0.0.1<0>").bootstrap == "ib0"


def test_rdma_that_was_not_there():
    problems = judge_nccl(
        "n7", [log("two_hosts")], [1, 1], 0, Expected(transport="IB", interface="eth0", hcas=("mlx5_0",))
    )
    assert len(problems) == 1
    assert problems[0].startswith(
        "on n7 NCCL uses the network Socket ('Using network Socket' after 'NET/IB : No device found.')"
    )
    assert "where IB is expected" in problems[0] and "--tags limits" in problems[0]


def test_a_connection_over_another_network():
    seen = log("infiniband", ("NET/IB/1/GDRDMA(PCI)/Shared", "NET/Socket/0"))
    problems = judge_nccl("n1", [seen], [2, 2], 0, Expected(transport="IB"))
    assert (
        len(problems) == 1
        and "goes over Socket ('Channel 01/0 : 3[1] -> 1[1] [receive] via NET/Socket/0')" in problems[0]
    )


def test_ib_where_sockets_are_expected():
    problems = judge_nccl("n1", [log("infiniband")], [2, 2], 0, Expected(transport="Socket", interface="ib0"))
    assert "uses the network IB" in problems[0] and "NCCL_NET_PLUGIN" in problems[0]


def test_another_interface():
    seen = log("two_hosts", ("eth0:192.0.2.2", "docker0:172.17.0.1"))
    problems = judge_nccl("n1", [seen], [1, 1], 0, Expected(transport="Socket", interface="eth0"))
    assert len(problems) == 2
    assert all("docker0" in problem and "NCCL_SOCKET_IFNAME" in problem for problem in problems)
    # Where RDMA carries the data, only the bootstrap needs the interface.
    seen = log("infiniband", ("Bootstrap: Using ib0", "Bootstrap: Using eth9"))
    assert len(judge_nccl("n1", [seen], [2, 2], 0, Expected(transport="IB", interface="ib0"))) == 1


def test_other_hcas():
    problems = judge_nccl("n1", [log("infiniband")], [2, 2], 0, Expected(transport="IB", hcas=("mlx5_0", "mlx5_1")))
    assert len(problems) == 1
    assert "without mlx5_1 and also mlx5_3" in problems[0]


@pytest.mark.parametrize(
    ("intra", "via", "word"),
    [
        ("P2P", "SHM/direct/direct", "talk through SHM"),
        ("P2P", "NET/Socket/0", "over the network"),
        ("any", "NET/Socket/0", "over the network"),
        ("SHM", "NET/Socket/0", "over the network"),
        ("SHM", "SHM/direct/direct", None),
        ("SHM", "P2P/IPC", None),
        ("any", "SHM/CE/direct", None),
        ("NET", "NET/Socket/0", None),
        ("P2P", "P2P/direct pointer/read", None),
    ],
)
def test_inside_a_node(intra, via, word):
    seen = log("one_node", ("P2P/CUMEM", via))
    problems = judge_nccl("n1", [seen], [2], 0, Expected(intra=intra))
    assert len(problems) == bool(word)
    assert not word or (word in problems[0] and via in problems[0])


def test_inside_a_node_of_several():
    seen = log("infiniband", ("via P2P/CUMEM/read", "[send] via NET/IB/0"))
    problems = judge_nccl("n1", [seen], [2, 2], 0, Expected(transport="IB", intra="P2P"))
    assert len(problems) == 1 and "over the network" in problems[0]


def test_gpudirect_that_is_not_used():
    seen = log("infiniband", ("/GDRDMA(PCI)", ""), ("/GDRDMA", ""))
    assert judge_nccl("n1", [seen], [2, 2], 0, Expected(transport="IB")) == []
    problems = judge_nccl("n1", [seen], [2, 2], 0, Expected(transport="IB", gpudirect=True))
    assert len(problems) == 1 and "nvidia_peermem" in problems[0]


def test_two_nodes_that_nccl_takes_for_one():
    seen = log("two_hosts", ("NET/Socket/0", "SHM/direct/direct"))
    assert "NCCL_HOSTID" in judge_nccl("n1", [seen], [1, 1], 0, Expected())[0]
    # NVLink between nodes is no mistake.
    seen = log("two_hosts", ("NET/Socket/0", "P2P/MNNVL"))
    assert judge_nccl("n1", [seen], [1, 1], 0, Expected(transport="IB", interface="eth0"))[1:] == []


def test_a_log_that_shows_nothing():
    problems = judge_nccl("n1", [parse_nccl("")], [2, 2], 0, Expected())
    assert problems == [
        "on n1 NCCL's log shows no connection between the GPUs of the node",
        "on n1 NCCL's log shows no connection to another node",
    ]
    # NVLink SHARP leaves no lines of pairs.
    nvls = parse_nccl("h:1:2 [0] NCCL INFO Connected NVLS tree")
    assert judge_nccl("n1", [nvls], [2], 0, Expected(intra="P2P")) == []
    assert parse_nccl("h:1:2 [0] bootstrap.cc:9 NCCL WARN Bootstrap : no socket interface found").warnings


def test_the_name_of_the_efa_plugin():
    seen = log(
        "two_hosts", ("Using network Socket", "Using network AWS Libfabric"), ("NET/Socket/0", "NET/AWS Libfabric/0")
    )
    assert judge_nccl("n1", [seen], [1, 1], 0, Expected(transport="Libfabric")) == []


# Gloo's connections -------------------------------------------------------------------------------------------------

GLOO_ME = Myself("n1", "10.0.0.1", "eth1", 1500)
STORE = ["10.0.0.1", 29478]


def connection(local: str, remote: str, sent: int, port: int = 5000) -> dict[str, Any]:
    return {"local": [local, port], "remote": [remote, 6000], "sent": sent, "received": 0}


def gloo(*connections: dict[str, Any], chosen: str | None = "eth1", **interfaces: str) -> tuple[list[str], list[str]]:
    named = {address.replace("_", "."): name for address, name in {"10_0_0_1": "eth1", **interfaces}.items()}
    answer = {"connections": list(connections), "interfaces": named, "chosen": chosen}
    return judge_gloo(GLOO_ME, answer, STORE, 1000)


@pytest.mark.parametrize("chosen", ["eth1", None])
def test_gloo_on_the_chosen_address(chosen):
    rendezvous = {"local": ["127.0.0.1", 1], "remote": STORE, "sent": 9, "received": 9}
    connections = [connection("10.0.0.1", "10.0.0.2", 900), connection("10.0.0.1", "10.0.0.3", 200), rendezvous]
    assert gloo(*connections, chosen=chosen) == (["eth1"], [])


def test_gloo_elsewhere_or_nowhere():
    used, problems = gloo(connection("172.17.0.1", "172.17.0.1", 5000), chosen="docker0", **{"172_17_0_1": "docker0"})
    assert used == ["docker0"]
    assert len(problems) == 1 and "from 172.17.0.1 (docker0), not from 10.0.0.1 (eth1)" in problems[0]
    assert "GLOO_SOCKET_IFNAME" in problems[0]
    _used, problems = gloo(connection("10.0.0.1", "10.0.0.2", 999))
    assert "only 999 bytes" in problems[0]


def test_gloo_that_goes_well_by_chance():
    """Gloo listens on the loopback interface, and nobody had to connect to it."""
    _used, (problem,) = gloo(connection("10.0.0.1", "10.0.0.2", 5000), chosen="lo")
    assert problem.startswith("on n1 GLOO_SOCKET_IFNAME is lo where eth1 is expected: see that")


# The size of packets ------------------------------------------------------------------------------------------------


def search_against(limit: int, wanted: int, hints: tuple[int, ...] = (1500,)) -> tuple[int | None, int]:
    search, asked = Search(wanted, hints), 0
    while search.found is None:
        asked += 1
        assert asked < 100
        size = search.size
        if size <= limit:
            search.arrived(size)
        else:
            search.missed()
    return search.found, asked


@pytest.mark.parametrize("limit", [576, 577, 1399, 1400, 1499, 1500, 1501, 4000, 8942, 8999, 9000, 65535])
def test_the_largest_packet_is_found(limit):
    assert search_against(limit, 9000)[0] == min(limit, 9000)


def test_the_search_is_short_where_networks_are_usual():
    assert search_against(9000, 9000) == (9000, 1)
    assert search_against(1500, 9000) == (1500, 4 + 1 + 1 + 3)  # the wanted, the floor, the usual, the one above it
    assert search_against(0, 9000) == (0, 8)
    assert search_against(65535, 300) == (300, 1)


def test_late_answers_do_not_count():
    search = Search(9000)
    for _try in range(4):
        search.missed()
    assert search.size == 576
    search.arrived(9000)
    assert search.passes == 0 and search.size == 576


def test_between_neighbours_there_is_nothing():
    assert next_size(1500, 1501) is None
    assert next_size(576, 9000, (9000, 1500)) == 1500
    assert next_size(1500, 9000, (1500,)) == 1501
    assert next_size(1501, 9000, (1500,)) == 1505
    assert next_size(1505, 9000, (1500,)) == 5252


def test_udp_has_a_largest_packet():
    assert (largest_packet(9000, "10.0.0.1"), largest_packet(65536, "10.0.0.1")) == (9000, 65535)
    assert largest_packet(65536, "fd00::1") == 65536


def test_what_is_said_of_packets():
    me = Myself("n1", "10.0.0.1", "eth1", 9000)
    found = {"n2": 1500, "n3": 1500, "n4": 9000, "n5": 0, "n6": 1500}
    problems = packet_problems(me, found, {"n2": 9000, "n3": 9000, "n6": 1500}, 29477)
    assert len(problems) == 3
    assert (
        "packets of 9000 bytes, the MTU of eth1, do not pass to n2, n3, 1500 bytes do: something on the way"
        in problems[0]
    )
    assert problems[1].startswith("UDP to n5 on port 29477")
    assert "do not pass to n6, 1500 bytes do: the interface there has an MTU of 1500" in problems[2]


def test_the_odd_mtu_is_named_by_its_owner():
    mtus = {"n1": 9000, "n2": 9000, "n3": 1500}
    assert odd_mtu(mtus, "n1", "n1") is None
    assert odd_mtu(mtus, "n3", "n1") == "the MTU is 1500 here and 9000 on n1, n2: set the same on all nodes"
    assert odd_mtu({"n1": 1500, "n2": 9000}, "n1", "n1") is None
    assert (
        odd_mtu({"n1": 1500, "n2": 9000}, "n2", "n1")
        == "the MTU is 9000 here and 1500 on n1: set the same on all nodes"
    )


# Who takes part, and how it ends ------------------------------------------------------------------------------------


def test_one_rank_a_gpu_or_one_a_node():
    peers = [Peer("n1", "10.0.0.1"), Peer("n2", "10.0.0.2"), Peer("n3", "10.0.0.3")]
    assert lay_out(peers, {"n1": 0, "n2": 0, "n3": 0}, 7) == proof.Layout("gloo", (1, 1, 1), ("10.0.0.1", 7))
    assert lay_out(peers, {"n1": 0, "n2": 8, "n3": 4}, 7) == proof.Layout("nccl", (0, 8, 4), ("10.0.0.2", 7))


def test_many_peers_make_one_sentence():
    unreached = {f"n{i}": (f"10.0.0.{i}", "no route") for i in range(1, 21)}
    (problem,) = unreached_problems(unreached, 29477, 60)
    assert "n1 (10.0.0.1), " in problem and "and 15 more on port 29477 in 60 s: no route" in problem


def test_how_a_collective_failed():
    well, bad, hangs = {"ok": True}, {"doing": "x", "error": "boom"}, {"doing": "the all-reduce"}
    assert rank_problems("n1", [well, well], [], "ended", "") == []
    assert rank_problems("n1", [hangs, bad], ["no device"], "ended", "") == [
        "on n1 the collective failed while x (rank 1 of the node): boom; NCCL says: no device"
    ]
    assert rank_problems("n1", [well, hangs], [], "did not finish", "") == [
        "on n1 the collective did not finish while the all-reduce"
    ]
    assert "before it began (su: no)" in rank_problems("n1", [{}], [], "ended with status 1", "su: no")[0]


def test_a_login_of_somebody():
    with pytest.raises(ProofError, match="no such account"):
        proof.login("no-such-account", ["true"])
    done = subprocess.run(proof.login(ME, ["printf", "%s", "a b"]), capture_output=True, text=True, check=True)
    assert done.stdout.endswith("a b")


def test_files_of_others_are_read_with_care(tmp_path):
    (tmp_path / "rank0.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "rank1.json")
    (tmp_path / "rank2.json").write_text("[1]")
    (tmp_path / "rank3.json").write_text('{"a": 1}')
    answers = [proof.read_object(tmp_path / f"rank{rank}.json") for rank in range(5)]
    assert answers == [{}, {}, {}, {"a": 1}, {}]


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"[" * 50000 + b"\n", b"1\n", b"\xff\n", b"x" * 70000])
def test_strangers_words(data):
    with pytest.raises(ValueError):
        list(Lines().feed(data))


def test_lines_in_pieces():
    lines = Lines()
    assert list(lines.feed(b'{"a": 1}\n{"b"')) == [{"a": 1}]
    assert list(lines.feed(b": 2}\n")) == [{"b": 2}]


# The module as several nodes ----------------------------------------------------------------------------------------


def free_port() -> int:
    """One with a free one above it, outside of what the kernel gives out."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + 1):
                stack.enter_context(socket.socket()).bind(("0.0.0.0", number))
            return port


class Cluster:
    """Modules that run at the same time, each with an address of its own."""

    def __init__(self, names: str = "abc", network: str = "127.77.0.{}") -> None:
        self.port = free_port()
        self.peers = {name: network.format(number) for number, name in enumerate(names, 1)}
        self.running: dict[str, subprocess.Popen[str]] = {}

    def given(self) -> list[dict[str, str]]:
        return [{"name": peer, "address": address} for peer, address in self.peers.items()]

    def start(self, name: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        arguments = {
            "peers": self.given(),
            "self": name,
            "interface": "lo",
            "mtu": 1500,
            "port": self.port,
            "token": "one",
            "timeout": 20,
            "collective": False,
            **options,
        }
        module = "ansible_collections.metalray.cluster.plugins.modules.network_proof"
        self.running[name] = process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT / "collections",
        )
        assert process.stdin
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        process.stdin.close()
        process.stdin = None
        return process

    def result(self, name: str) -> dict[str, Any]:
        out, err = self.running.pop(name).communicate(timeout=60)
        assert "Traceback" not in err, err
        return json.loads(out)

    def results(self) -> dict[str, dict[str, Any]]:
        return {name: self.result(name) for name in list(self.running)}


def listening(process: subprocess.Popen[str]) -> bool:
    """Whether it waits for the others already."""
    sockets = set()
    with contextlib.suppress(OSError):
        sockets = {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for process in made.running.values():
        process.kill()
        process.communicate()


def test_every_pair_both_ways_and_a_late_one(cluster):
    early = [cluster.start(name) for name in "ab"]
    wait_until(lambda: all(listening(process) for process in early))
    cluster.start("c")
    results = cluster.results()
    for name, result in results.items():
        others = set("abc") - {name}
        assert "failed" not in result, result
        assert result["reached"] == dict.fromkeys(others, True)
        assert result["mtu"] == dict.fromkeys(others, 1500)
        assert result["changed"] is False and result["problems"] == []
        assert result["collective"]["reason"] == "not run: not asked for"


@pytest.fixture(scope="module")
def meetings() -> dict[str, dict[str, Any]]:
    """Nodes that do not all meet, each "CASE NODE" with its result: threads of this process, all at the same time."""
    lists = {
        "abc": {"a": "127.77.0.1", "b": "127.77.0.2", "c": "127.77.0.3"},
        "moved": {"a": "127.77.0.8", "b": "127.77.0.2"},
        "twin": {"c": "127.77.0.2", "a": "127.77.0.1"},
    }
    nodes = [
        ("dead a", "abc"),
        ("dead b", "abc"),
        ("token a", "abc"),
        ("token b", "abc"),
        ("token c", "abc"),
        ("moved a", "moved"),
        ("moved b", "abc"),
        ("twin a", "abc"),
        ("twin c", "twin"),
    ]
    ports = {case: free_port() for case in ("dead", "token", "moved", "twin")}

    def meet(node: str, known: str) -> dict[str, Any]:
        case, name = node.split()
        peers = [Peer(*pair) for pair in lists[known].items()]
        me = Myself(name, lists[known][name], "lo", 1500)
        return proof.prove(me, peers, ports[case], "two" if node == "token c" else "one", 1.5, None)

    with ThreadPoolExecutor(len(nodes)) as pool:
        return dict(zip((node for node, _known in nodes), pool.map(meet, *zip(*nodes))))


def test_a_dead_peer(meetings):
    for name, other in ("ab", "ba"):
        result = meetings[f"dead {name}"]
        assert result["reached"][other] is True and result["reached"]["c"].startswith("it refuses")
        assert result["mtu"] == {other: 1500, "c": None}
        (problem,) = result["problems"]
        assert problem.startswith("no TCP connection to c (127.77.0.3)") and "--tags firewall" in problem


def test_another_token_is_refused(meetings):
    assert meetings["token a"]["reached"] == {"b": True, "c": proof._REFUSALS["token"]}
    assert meetings["token c"]["reached"] == dict.fromkeys("ab", proof._REFUSALS["token"])


def test_addresses_that_are_translated(meetings):
    """A node that the others know by another address."""
    assert "seem to come from 127.77.0.8, not 127.77.0.1" in meetings["moved a"]["reached"]["b"]


def test_two_nodes_with_one_address(meetings):
    assert meetings["twin a"]["reached"]["b"].startswith("c answers at that address")


def test_a_stranger_on_the_port(cluster):
    """Something else listens there: it is named to the node itself, and to the others it is no peer."""
    with socket.socket() as stranger:
        stranger.bind(("127.77.0.3", cluster.port))
        stranger.listen()
        started = time.monotonic()
        cluster.start("c", timeout=60)
        result = cluster.result("c")
        assert f"port {cluster.port} of 127.77.0.3 is held by process {os.getpid()} (" in result["msg"], result
        # Nobody waits for it: it is no run of the proof, and neither is the one that asks.
        assert "network_proof; " not in result["msg"] and "earlier run" not in result["msg"]
        assert time.monotonic() - started < 20


def test_a_stranger_that_says_nothing(monkeypatch):
    monkeypatch.setattr(proof, "_HELLO_SECONDS", 0.1)
    port = free_port()
    with socket.socket() as stranger:
        stranger.bind(("127.77.0.2", port))
        stranger.listen()
        peers = [Peer("a", "127.77.0.1"), Peer("b", "127.77.0.2")]
        result = proof.prove(Myself("a", "127.77.0.1", "lo", 1500), peers, port, "t", 0.6, None)
    assert result["reached"] == {"b": proof._MUTE} and proof._MUTE in result["problems"][0]


def test_a_leftover_ends_and_is_followed(cluster):
    leftover = cluster.start("a", timeout=1, token="old")
    wait_until(lambda: listening(leftover))
    for name in "bc":
        cluster.start(name)
    cluster.running["old"] = cluster.running.pop("a")
    cluster.start("a")
    assert all(cluster.result(name)["problems"] == [] for name in "abc")
    assert leftover.wait(10) == 1
    cluster.result("old")


def test_connections_that_pass_one_way_only():
    """What each side says, where b's connections do not come to a."""
    peers = [Peer("a", "127.77.0.1"), Peer("b", "127.77.0.2")]
    meeting = proof.Meeting(Myself("a", "127.77.0.1", "lo", 1500), peers, free_port(), "t", 9)
    try:
        link = meeting.links["b"]
        link.reached = True
        (problem,) = proof.silent_problems(meeting, ["b"])
        assert problem.startswith(f"no TCP connection from b (127.77.0.2) has come to port {meeting.port} here")
        link.visited = True
        assert "left before its own part" in proof.silent_problems(meeting, ["b"])[0]
        link.reached = False
        assert proof.silent_problems(meeting, ["b"]) == []
        reached, _mtu, (problem,) = proof.meeting_result(meeting)
        assert reached == {"b": proof._ONE_WAY} and proof._ONE_WAY in problem
        link.visited = False
        assert proof.meeting_result(meeting)[0] == {"b": proof._NO_ANSWER}
        # What b has said explains more than its silence later.
        meeting._drop(link, "no", told=True)
        meeting._drop(link, proof._NO_ANSWER)
        assert proof.meeting_result(meeting)[0] == {"b": "no"}
    finally:
        meeting.close()


def test_the_odd_one_says_so(cluster):
    for name in "abc":
        cluster.start(name, mtu=4000 if name == "c" else 1500)
    results = cluster.results()
    assert results["a"]["problems"] == results["b"]["problems"] == []
    assert results["c"]["problems"] == ["the MTU is 4000 here and 1500 on a, b: set the same on all nodes"]


def run_here(capsys, monkeypatch, **options: Any) -> dict[str, Any]:
    """The module in this process, as a cluster of one node."""
    peers = [{"name": "a", "address": "127.77.0.1"}]
    defaults = {"interface": "lo", "mtu": 1500, "token": "t", "peers": peers, "self": "a", "collective": False}
    arguments = {"ANSIBLE_MODULE_ARGS": {**defaults, "port": free_port(), **options}}
    monkeypatch.setattr("ansible.module_utils.basic._ANSIBLE_ARGS", json.dumps(arguments).encode())
    monkeypatch.setattr("ansible.module_utils.basic._ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        network_proof.main()
    return json.loads(capsys.readouterr().out)


def test_check_mode_opens_nothing(capsys, monkeypatch):
    peers = [{"name": "a", "address": "127.77.0.1"}, {"name": "b", "address": "127.77.0.2"}]
    options = {"collective": True, "script": "", "python": "/no/such", "peers": peers, "_ansible_check_mode": True}
    result = run_here(capsys, monkeypatch, **options)
    assert result["changed"] is False and result["reached"] == {}
    assert result["planned"][1] == "connect to b" and len(result["planned"]) == 4


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"self": "x"}, "none of peers"),
        ({"peers": [{"name": "a", "address": "node1"}]}, "which is no IP address"),
        ({"peers": [{"name": "a", "address": "::1"}, {"name": "b", "address": "::1"}]}, "each needs its own"),
        ({"peers": [{"name": "a", "address": "192.0.2.77"}]}, "does not have the address 192.0.2.77"),
        ({"port": 65535}, "since the next one is used too"),
        ({"user": "no-such-account", "script": "", "collective": True, "python": sys.executable}, "no such account"),
    ],
)
def test_wrong_options(capsys, monkeypatch, wrong, word):
    result = run_here(capsys, monkeypatch, **wrong)
    assert result["failed"] and word in result["msg"], result


# The collective's processes -----------------------------------------------------------------------------------------

# Stands in for collective.py: what a rank answers, and how it ends.
RANKS = """
import json, os, sys, time
folder = sys.argv[1]
config = json.load(open(folder + "/config.json"))
node = config["node"]
def say(answer):
    open(folder + "/rank0.json", "w").write(json.dumps(answer))
"""
GOOD = (
    RANKS
    + """
own = f"127.77.0.{node + 1}"
connection = {"local": [own, 1], "remote": ["127.77.0.9", 2], "sent": 2 << 20, "received": 0}
say({"ok": True, "gb_per_s": 1.5, "torch": "2.0", "connections": [connection], "interfaces": {own: "lo"}})
"""
)
HANGS = (
    RANKS
    + """
say({"doing": "the all-reduce across the nodes"})
child = os.fork()
if child:
    open(config_file := os.environ["PIDS"], "a").write(f"{os.getpid()} {child} ")
time.sleep(600)
"""
)
FAILS_ON_B = (
    RANKS
    + """
say({"doing": "the all-reduce"})
if node == 1:
    say({"doing": "the all-reduce", "error": "boom"})
    sys.exit(1)
time.sleep(600)
"""
)


@pytest.fixture
def python(tmp_path) -> str:
    """A Python of an environment that has torch, as far as looking for it goes; it never ends loading it."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexport PYTHONPATH={tmp_path} PIDS={tmp_path}/pids\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def alive(pid: int) -> bool:
    """Not as a zombie, which a dead process is until its parent looks."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pids: list[int], seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def test_a_collective_that_ends_well(cluster, python):
    for name in "abc":
        cluster.start(name, collective=True, script=GOOD, python=python, user=ME)
    for result in cluster.results().values():
        assert result["problems"] == [], result
        wanted = {"ran": True, "backend": "gloo", "world": 3, "network": "TCP", "interface": "lo", "gb_per_s": 1.5}
        assert wanted.items() <= result["collective"].items()


@pytest.mark.parametrize("lacking", ["b", "abc"])
def test_no_torch(cluster, python, lacking):
    """Where nobody has it, the environment's turn comes later; where only some have it, something is broken."""
    missing = "no torch: there is no /no/such/python"
    for name in "abc":
        path = "/no/such/python" if name in lacking else python
        cluster.start(name, collective=True, script=GOOD, python=path, user=ME)
    for name, result in cluster.results().items():
        assert result["collective"] == {"ran": False, "reason": f"not run: {missing} on {', '.join(lacking)}"}
        own = [f"{missing}, which other nodes have: run --tags python_env"]
        assert result["problems"] == (own if name == lacking else [])


def test_a_login_that_hangs_leaves_nothing(tmp_path, monkeypatch):
    child = tmp_path / "child"
    monkeypatch.setattr(proof, "_LOGIN_SECONDS", 0.3)
    monkeypatch.setattr(proof, "login", lambda *_: ["/bin/sh", "-c", f"sleep 600 & echo $! > {child}; wait"])
    with pytest.raises(ProofError, match="a login of 'x' has not ended after"):
        proof.why_no_torch("x", sys.executable)
    assert gone([int(child.read_text())])


def test_a_login_that_is_noisy_or_refuses(monkeypatch):
    words = ["/bin/sh", "-c", "echo welcome; echo careful >&2; exit 10"]
    monkeypatch.setattr(proof, "login", lambda *_: words)
    assert proof.why_no_torch("x", sys.executable) == ""
    words[2] = "echo This account is not available >&2; exit 1"
    with pytest.raises(ProofError, match=r"cannot run .*: This account is not available \(status 1\)"):
        proof.why_no_torch("x", sys.executable)


# What is kept -------------------------------------------------------------------------------------------------------

RAN = {"ran": True, "reason": None, "backend": "gloo", "world": 2, "network": "TCP", "interface": "eth1"}


@pytest.mark.parametrize(
    ("reached", "mtu", "collective", "text"),
    [
        (
            {"b": True},
            {"b": 1500},
            {**RAN, "gb_per_s": 0.26},
            "2 nodes reach each other both ways with packets of 1500 bytes; "
            "all-reduce of 2 processes (gloo) over TCP on eth1, 0.26 GB/s",
        ),
        (
            {"b": True, "c": True},
            {"b": 9000, "c": 4000},
            {
                **RAN,
                "backend": "nccl",
                "world": 24,
                "network": "IB",
                "interface": "ib0",
                "intra": "NVLS",
                "gb_per_s": 123.4,
            },
            "3 nodes reach each other both ways with packets of 4000 bytes; "
            "all-reduce of 24 processes (nccl) over NVLS inside a node and IB on ib0, 123 GB/s",
        ),
        ({}, {}, {**RAN, "world": 1, "gb_per_s": None}, "1 node; all-reduce of 1 processes (gloo)"),
        ({}, {}, {"ran": False, "reason": "not run: no torch on a"}, "1 node; all-reduce not run: no torch on a"),
    ],
)
def test_what_a_record_says(reached, mtu, collective, text):
    result = {"reached": reached, "mtu": mtu, "collective": collective}
    assert proof.record_of(result, "f1", "today") == {"fingerprint": "f1", "when": "today", "text": text}


@pytest.fixture
def record_file(tmp_path, monkeypatch) -> Path:
    """Where this process's run of the module keeps its record."""
    monkeypatch.setattr(network_proof, "PROOF_RECORD", str(tmp_path / "lib" / "proof.json").lstrip("/"))
    return tmp_path / "lib" / "proof.json"


def test_a_proof_that_passes_is_kept(record_file, capsys, monkeypatch):
    result = run_here(capsys, monkeypatch, record="f1")
    kept = json.loads(record_file.read_text())
    assert result["changed"] is False and result["ansible_facts"] == {"network_proof": kept}
    assert kept["fingerprint"] == "f1" and kept["text"] == "1 node; all-reduce not run: not asked for"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", kept["when"])


ALONE_OF_TWO = {
    "timeout": 0.1,
    "peers": [{"name": n, "address": f"127.77.0.{i}"} for i, n in ((1, "a"), (2, "b"))],
}


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({}, True),
        ({"record": "f1", "_ansible_check_mode": True}, True),
        ({"record": ""}, False),
        ({"record": "f1", **ALONE_OF_TWO}, False),
    ],
)
def test_nothing_else_is_kept_and_what_was_kept_holds_no_longer(record_file, capsys, monkeypatch, options, stays):
    record_file.parent.mkdir()
    record_file.write_text("{}")
    result = run_here(capsys, monkeypatch, **options)
    assert record_file.exists() == stays and not result.get("ansible_facts", {}).get("network_proof")


def test_a_proof_that_another_node_failed_is_not_kept(record_file, capsys, monkeypatch):
    fine_here = {"reached": {}, "mtu": {}, "collective": {}, "problems": [], "passed": False, "seconds": 1.0}
    monkeypatch.setattr(network_proof, "prove", lambda *_: fine_here)
    result = run_here(capsys, monkeypatch, record="f1")
    assert not result.get("failed") and not record_file.exists()


def test_a_record_that_cannot_be_kept(record_file, capsys, monkeypatch):
    record_file.parent.write_text("a file where the directory should be")
    result = run_here(capsys, monkeypatch, record="f1")
    assert result["failed"] and result["msg"].startswith("the proof has passed, and cannot be kept, so")


# Waiting for the job ------------------------------------------------------------------------------------------------


class Job:
    """Stands in for Ansible's wrapper: a process with the job's number among its words, and the job's file."""

    def __init__(self, folder: Path, *lines: str) -> None:
        number = f"j{os.getpid()}{random.randrange(10**6)}"
        self.file = folder / f"{number}.1"
        self.file.write_text(json.dumps({"started": 1, "finished": 0, "ansible_job_id": self.file.name}))
        code = "\n".join(["import json, os, sys, time", "file = sys.argv[2]", *lines])
        self.process = subprocess.Popen([sys.executable, "-c", code, number, str(self.file)], stdin=subprocess.PIPE)


def writes(result: dict[str, Any]) -> str:
    return f"open(file + '.tmp', 'w').write({json.dumps(result)!r}); os.rename(file + '.tmp', file)"


TRACEBACK = {
    "failed": True,
    "cmd": "x",
    "msg": "Traceback (most recent call last):\n",
    "stderr": "a\nMemoryError: no\n",
}


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ({"changed": False, "x": [1], "invocation": {}}, {"changed": False, "x": [1]}),
        ({"failed": True, "msg": "no way"}, {"failed": True, "msg": "no way"}),
        (TRACEBACK, "was killed or crashed: MemoryError: no"),
        ({**TRACEBACK, "stderr": "", "data": ""}, "was killed or crashed: it printed nothing"),
        (
            {"failed": True, "msg": "Timeout exceeded", "child_pid": 1},
            "had not ended in the time that its task gives it",
        ),
    ],
)
def test_the_result_of_a_job(run_module, tmp_path, result, seen):
    job = Job(tmp_path, "sys.stdin.read()", writes(result), "time.sleep(600)")
    try:
        assert job.process.stdin
        job.process.stdin.close()
        got = run_module("async_result", results_file=str(job.file), timeout=30)
    finally:
        job.process.kill()
        job.process.wait()
    assert seen in got["msg"] if isinstance(seen, str) else {name: got.get(name) for name in seen} == seen
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_no_more(run_module, tmp_path):
    job = Job(tmp_path)
    job.process.communicate()
    started = time.monotonic()
    result = run_module("async_result", results_file=str(job.file), timeout=60)
    assert result["failed"] and f"the job {job.file.name} has left no result: it was killed" in result["msg"]
    assert "has left no result" in run_module("async_result", results_file=str(job.file), timeout=60)["msg"]
    assert time.monotonic() - started < 30 and not job.file.exists()


def test_a_job_that_takes_too_long(run_module, tmp_path):
    job = Job(tmp_path, "sys.stdin.read()")
    assert "has not ended after 0 s" in run_module("async_result", results_file=str(job.file), timeout=0)["msg"]
    job.process.communicate()


# How the collective ends ---------------------------------------------------------------------------------------------


def test_a_collective_that_hangs_is_ended(cluster, python, tmp_path):
    cluster.peers = {"a": "127.77.0.1"}
    cluster.start("a", collective=True, script=HANGS, python=python, user=ME, collective_timeout=1.5)
    result = cluster.result("a")
    assert "did not finish in 1.5 s and was ended while the all-reduce across the nodes" in result["msg"]
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and gone(pids)


def test_one_node_fails_and_the_others_do_not_wait(cluster, python):
    for name in "abc":
        cluster.start(name, collective=True, script=FAILS_ON_B, python=python, user=ME, collective_timeout=8)
    results = cluster.results()
    assert results["b"]["problems"] == ["on b the collective failed while the all-reduce (rank 0 of the node): boom"]
    for name in "ac":
        assert "was ended, because it failed on b, while the all-reduce" in results[name]["msg"]
        assert results[name]["seconds"] < 8


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_module(cluster, python, how):
    """The real program, whose ranks hang while they load torch, and a module that is killed."""
    cluster.peers = {"a": "127.77.0.1"}
    process = cluster.start("a", collective=True, script=COLLECTIVE.read_text(), python=python, user=ME)

    def ranks() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"metalray-proof-" in b" ".join(words[:3]) and f"PIDS={python[:-6]}pids".encode() in (
                    folder / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    until = time.monotonic() + 20
    while len(ranks()) < 2 and time.monotonic() < until:  # the program, and its one rank
        time.sleep(0.05)
    started = ranks()
    assert len(started) == 2
    folder = Path((Path("/proc") / str(started[0]) / "cmdline").read_bytes().split(b"\0")[2].decode())
    assert folder.is_dir()
    process.send_signal(how)
    process.wait(timeout=20)
    assert gone(started)
    assert not folder.exists()


def test_the_rendezvous_is_taken(cluster, python):
    cluster.peers = {"a": "127.77.0.1"}
    with socket.socket() as other:
        other.bind(("127.77.0.1", cluster.port + 1))
        other.listen()
        cluster.start("a", collective=True, script=GOOD, python=python, user=ME)
        assert f"port {cluster.port + 1} of 127.77.0.1 is held by process {os.getpid()}" in cluster.result("a")["msg"]


# Real networks ------------------------------------------------------------------------------------------------------


class Network(Cluster):
    """Nodes with jumbo frames and a bridge between them, each known by two addresses."""

    V4, V6 = "10.98.0.{}", "fd98::{}"

    def __init__(self, names: str) -> None:
        super().__init__(names, self.V4)
        self.spaces = {name: f"np{os.getpid()}{name}" for name in names}
        self.hub = f"np{os.getpid()}hub"
        for space in (self.hub, *self.spaces.values()):
            self.sh("netns", "add", space)
        self.sh("-n", self.hub, "link", "add", "br0", "type", "bridge")
        for number, (name, space) in enumerate(self.spaces.items(), 1):
            ends = (
                "eth0",
                "mtu",
                "9000",
                "type",
                "veth",
                "peer",
                "name",
                f"to-{name}",
                "mtu",
                "9000",
                "netns",
                self.hub,
            )
            self.sh("-n", space, "link", "add", *ends)
            self.sh("-n", space, "address", "add", f"{self.V4.format(number)}/24", "dev", "eth0")
            self.sh("-n", space, "address", "add", f"{self.V6.format(number)}/64", "dev", "eth0", "nodad")
            for device in ("lo", "eth0"):
                self.sh("-n", space, "link", "set", device, "up")
            self.sh("-n", self.hub, "link", "set", f"to-{name}", "master", "br0", "up")
        self.sh("-n", self.hub, "link", "set", "br0", "up")

    @staticmethod
    def sh(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def start(self, name: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        inside = ("ip", "netns", "exec", self.spaces[name])
        return super().start(name, inside, **{"interface": "eth0", "mtu": 9000, **options})

    def down(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()
        for space in (self.hub, *self.spaces.values()):
            subprocess.run(["ip", "netns", "del", space], check=False)


@pytest.fixture
def network(request) -> Iterator[Network]:
    made = Network(request.param)
    yield made
    made.down()


@needs_namespaces
@pytest.mark.parametrize("network", ["abcd"], indirect=True)
def test_packets_that_do_not_pass(network):
    """The way to b passes less, c's interface is smaller, d takes no UDP; IPv4 and IPv6 at the same time."""
    network.sh("-n", network.hub, "link", "set", "to-b", "mtu", "1500")
    network.sh("-n", network.spaces["c"], "link", "set", "eth0", "mtu", "1500")
    rules = f"table inet t {{\nchain c {{\ntype filter hook input priority 0\nudp dport {network.port} drop\n}}\n}}\n"
    inside = ["ip", "netns", "exec", network.spaces["d"]]
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    for addresses in (Network.V4, Network.V6):
        network.peers = {name: addresses.format(number) for number, name in enumerate("abcd", 1)}
        for name in "abcd":
            network.start(name, mtu=1500 if name == "c" else 9000, timeout=30)
            network.running[f"{name} {addresses}"] = network.running.pop(name)
    results = network.results()
    for node, result in results.items():
        assert result["reached"] == dict.fromkeys(set("abcd") - {node[0]}, True)
    for addresses in (Network.V4, Network.V6):
        a, c = results[f"a {addresses}"], results[f"c {addresses}"]
        # A virtual Ethernet device takes four bytes more, in case they are a VLAN's.
        assert a["mtu"] == {"b": 1500, "c": a["mtu"]["c"], "d": 0} and a["mtu"]["c"] in (1500, 1504)
        to_b, to_c, to_d = sorted(a["problems"], key=lambda problem: re.search(r"to ([bcd])\b", problem)[1])
        assert to_b.startswith(
            "packets of 9000 bytes, the MTU of eth0, do not pass to b, 1500 bytes do: something on the way passes less"
        )
        assert re.search("do not pass to c, 150[04] bytes do: the interface there has an MTU of 1500", to_c)
        assert to_d.startswith(f"UDP to d on port {network.port} gets no answer though TCP does")
        assert c["mtu"] == {"a": 1500, "b": 1500, "d": 0}
        assert c["problems"][-1] == "the MTU is 1500 here and 9000 on d, a, b: set the same on all nodes"


@needs_namespaces
@pytest.mark.parametrize("network", ["abc"], indirect=True)
def test_jumbo_frames_that_pass_and_silence(network):
    """Silence, not a refusal: what is for c goes to a station that is not there."""
    for name in "ab":
        to_c = ("10.98.0.3", "lladdr", "02:00:00:00:00:99", "dev", "eth0")
        network.sh("-n", network.spaces[name], "neigh", "add", *to_c)
        network.start(name, timeout=2)
    for name, result in network.results().items():
        other = {"a": "b", "b": "a"}[name]
        assert result["mtu"] == {other: 9000, "c": None} and result["reached"][other] is True
        assert result["reached"]["c"].startswith("no answer comes") and len(result["problems"]) == 1
