# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._network_env import (
    check_nccl,
    compute_ports,
    decide,
    expectation,
    render,
)
from fabrics import fabric, member, port, roce_port


def rendered(members, profile="auto", strict=True, node=0):
    """The variables of one node's two files; the decision must meet no problem."""
    decision, problems = decide(members, profile, strict)
    assert problems == []
    environment, nccl = render(members[node], decision)
    return {s.name: s.value for s in environment}, {s.name: s.value for s in nccl}


def pair(**more):
    """Two nodes with the same fabric."""
    return [member("node1", fabric(**more)), member("node2", fabric(**more))]


COMMON = {"NCCL_SOCKET_IFNAME": "=eth1", "NCCL_SOCKET_FAMILY": "AF_INET", "NCCL_DEBUG": "WARN"}
STREAMS = {"NCCL_SOCKET_NTHREADS": "2", "NCCL_NSOCKS_PERTHREAD": "1"}
SOCKETS = {"NCCL_NET": "Socket", **STREAMS, "NCCL_MIN_CTAS": "4"}


@pytest.mark.parametrize(
    ("members", "profile", "nccl"),
    [
        pytest.param(pair(gpus=0), "auto", {}, id="CPU only: no NCCL file"),
        pytest.param([member()], "auto", {"NCCL_SOCKET_IFNAME": "=eth1"}, id="one node: nothing but the interface"),
        pytest.param([member()], "ethernet", {"NCCL_SOCKET_IFNAME": "=eth1"}, id="one node, whatever the profile"),
        pytest.param(pair(), "auto", {**COMMON, **SOCKETS}, id="Ethernet"),
        pytest.param(
            pair(nvlink="none"), "auto", {**COMMON, **SOCKETS}, id="Ethernet, PCIe GPUs: the same, no P2P level"
        ),
        pytest.param(
            pair(rdma=[roce_port("mlx5_0", "10.0.0.1")]),
            "auto",
            {**COMMON, **SOCKETS, "NCCL_IB_DISABLE": "1"},
            id="RoCE-capable, not opted in: as Ethernet",
        ),
        pytest.param(
            pair(rdma=[port("mlx5_1"), port("mlx5_0")]),
            "auto",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1", "NCCL_NET": "IB"},
            id="InfiniBand, strict; NCCL 2.28 does not know IGNORE_NET_MISMATCH",
        ),
        pytest.param(
            pair(rdma=[port("mlx5_0")], nccl={"version": "2.30.7", "path": ""}),
            "infiniband",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET": "IB", "NCCL_IGNORE_NET_MISMATCH": "0"},
            id="InfiniBand, strict, NCCL 2.30",
        ),
        pytest.param(
            pair(rdma=[port("mlx5_0")], plugins=["/opt/hpcx/libnccl-net.so"]),
            "auto",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1"},
            id="InfiniBand by an external plugin, whose network has another name",
        ),
        pytest.param(
            pair(rdma=[port("mlx5_0")]),
            "ethernet",
            {**COMMON, **SOCKETS, "NCCL_IB_DISABLE": "1"},
            id="InfiniBand there, Ethernet asked for",
        ),
        pytest.param(
            pair(rdma=[roce_port("mlx5_0", "10.1.0.1")]),
            "roce",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET": "IB"},
            id="RoCE: no GID index from NCCL 2.21 on",
        ),
        pytest.param(
            pair(rdma=[roce_port("mlx5_0", "10.1.0.1")], nccl={"version": "2.20.5", "path": ""}),
            "roce",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET": "IB", "NCCL_IB_GID_INDEX": "3"},
            id="RoCE before NCCL 2.21: its GID index",
        ),
        pytest.param(
            pair(rdma=[roce_port("mlx5_0", "2001:db8::1")]),
            "roce",
            {**COMMON, "NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET": "IB", "NCCL_IB_ADDR_FAMILY": "AF_INET6"},
            id="RoCE, IPv6 only",
        ),
        pytest.param(pair(efa=True), "auto", COMMON, id="EFA: nothing else"),
    ],
)
def test_the_table(members, profile, nccl):
    environment, found = rendered(members, profile)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth1", "VLLM_HOST_IP": "10.0.0.1"}
    assert found == nccl


def test_not_strict_leaves_the_fall_back():
    _environment, nccl = rendered(pair(rdma=[port("mlx5_0")]), strict=False)
    assert "NCCL_NET" not in nccl and nccl["NCCL_IB_HCA"] == "=mlx5_0:1"


def test_names_are_each_node_s_own():
    members = [
        member("node1", fabric(rdma=[port("mlx5_0")])),
        member("node2", fabric(rdma=[port("mlx5_7")]), interface="enp27s0f0np0"),
    ]
    environment, nccl = rendered(members, node=1)
    assert environment == {"GLOO_SOCKET_IFNAME": "enp27s0f0np0", "VLLM_HOST_IP": "10.0.0.2"}
    assert nccl["NCCL_SOCKET_IFNAME"] == "=enp27s0f0np0" and nccl["NCCL_IB_HCA"] == "=mlx5_7:1"


def test_ipv6():
    members = [member("node1", address="fd00::1"), member("node2", address="fd00::2")]
    environment, nccl = rendered(members)
    assert environment["VLLM_HOST_IP"] == "fd00::1" and nccl["NCCL_SOCKET_FAMILY"] == "AF_INET6"


def test_a_head_without_gpus_takes_no_part_in_the_choice():
    members = [member("node1", fabric(gpus=0)), member("node2", fabric(rdma=[port("mlx5_0")]))]
    assert rendered(members)[1] == COMMON
    assert rendered(members, node=1)[1]["NCCL_IB_HCA"] == "=mlx5_0:1"


@pytest.mark.parametrize(
    ("speed", "streams"),
    [
        (1_000, {}),
        (10_000, {}),
        (25_000, STREAMS),
        (50_000, STREAMS),
        (100_000, {**STREAMS, "NCCL_MIN_CTAS": "4"}),
        (400_000, {**STREAMS, "NCCL_MIN_CTAS": "4"}),
        (None, {**STREAMS, "NCCL_MIN_CTAS": "4"}),
    ],
)
def test_streams_by_the_slowest_link_of_the_cluster(speed, streams):
    members = [member("node1", speed_mbps=400_000), member("node2", speed_mbps=speed)]
    for node in (0, 1):
        assert rendered(members, node=node)[1] == {**COMMON, "NCCL_NET": "Socket", **streams}


def test_a_link_that_does_not_tell_its_speed_is_taken_for_a_fast_one():
    members = [member("node1", speed_mbps=10_000), member("node2", speed_mbps=None)]
    assert rendered(members)[1]["NCCL_MIN_CTAS"] == "4"


def test_channels_need_an_nccl_that_knows_them():
    assert "NCCL_MIN_CTAS" not in rendered(pair(nccl={"version": "2.16.5", "path": ""}))[1]


def test_what_must_agree_and_does_not_names_the_odd_node():
    ports = {"rdma": [port("mlx5_0"), port("mlx5_1")]}
    fewer = fabric(rdma=[port("mlx5_0"), port("mlx5_1", active=False)])
    members = [member("node1", fabric(**ports)), member("node2", fabric(**ports)), member("node3", fewer)]
    _decision, problems = decide(members)
    assert len(problems) == 1
    assert "node3: 1, but 2 on node1, node2" in problems[0]

    none = [member("node1", fabric(**ports)), member("node2", fabric())]
    _decision, problems = decide(none)
    assert len(problems) == 1 and problems[0].startswith("node2: no active InfiniBand port, but node1 has")
    assert decide(none, "ethernet")[1] == []

    _decision, problems = decide([member("node1", fabric(efa=True)), member("node2")])
    assert "EFA differs between nodes: node2: none" in problems[0]

    _decision, problems = decide([member("node1", mtu=9000), member("node2"), member("node3", mtu=9000)])
    assert "MTU" in problems[0] and "node2: 1500, but 9000 on node1, node3" in problems[0]


def test_a_profile_that_the_hardware_lacks_is_refused():
    for profile, label in (("infiniband", "InfiniBand"), ("roce", "RoCE")):
        _decision, problems = decide(pair(), profile)
        assert len(problems) == 1 and f"node1, node2: no active {label} port" in problems[0]
        assert "network_env_profile" in problems[0]
    # An Ethernet port without an address has no RoCE v2 GID.
    assert decide(pair(rdma=[roce_port("mlx5_0")]), "roce")[1]


def test_nccl_s_version_must_agree_where_it_is_there():
    def node(name, version):
        return member(name, fabric(nccl={"version": version, "path": ""} if version else None))

    members = [node("node1", "2.28.9"), node("node2", "2.27.5"), node("node3", "2.28.9"), node("node4", None)]
    assert "node2: 2.27.5, but 2.28.9 on node1, node3" in check_nccl(members)[0]
    assert check_nccl([node("node1", "2.28.9"), node("node2", None)]) == []
    no_gpu = member("node2", fabric(gpus=0, nccl={"version": "2.1.2", "path": ""}))
    assert check_nccl([node("node1", "2.28.9"), no_gpu]) == []


def names(ports):
    return [found.name for found in ports]


def test_compute_ports():
    def of(*ports, link_layer="InfiniBand", **more):
        return names(compute_ports(member(fabric_=fabric(rdma=list(ports)), **more), link_layer))

    assert of(port("mlx5_1"), port("mlx5_0", active=False)) == ["mlx5_1:1"]
    # A slower class belongs to storage or management.
    assert of(port("mlx5_0", rate_mbps=100_000), port("mlx5_1"), port("mlx5_2")) == ["mlx5_1:1", "mlx5_2:1"]
    # Next to a GPU, where any is.
    assert of(port("mlx5_0", distance="SYS"), port("mlx5_1", distance="PXB")) == ["mlx5_1:1"]
    assert of(port("mlx5_0", distance="SYS"), port("mlx5_1", distance="PHB")) == ["mlx5_0:1", "mlx5_1:1"]
    # The port with the node's own traffic, unless there is no other.
    own, other = roce_port("mlx5_0", "10.0.0.1", interfaces=["eth1"]), roce_port("mlx5_1", "10.1.0.1")
    assert of(own, other, link_layer="Ethernet") == ["mlx5_1:1"]
    assert of(own, link_layer="Ethernet") == ["mlx5_0:1"]
    assert of(port("mlx5_0", interfaces=["eth0"]), port("mlx5_1")) == ["mlx5_1:1"]
    # IPoIB as the cluster's interface does not cost a port.
    both = [port("mlx5_0", interfaces=["ib0"]), port("mlx5_1")]
    for default in ("eth0", "ib0"):
        assert of(*both, interface="ib0", default_interfaces=(default,)) == ["mlx5_0:1", "mlx5_1:1"]
    # What is fastest is so among those that are left.
    fast = roce_port("mlx5_0", "10.0.0.1", interfaces=["eth1"], rate_mbps=800_000)
    assert of(fast, other, roce_port("mlx5_2", "10.1.0.2", rate_mbps=None), link_layer="Ethernet") == ["mlx5_1:1"]
    assert of(port("mlx5_0"), roce_port("mlx5_1", "10.1.0.1")) == ["mlx5_0:1"]


def test_roce_addresses_in_several_networks():
    def nodes(*networks):
        rdma = [roce_port("mlx5_0", "10.1.0.1", "192.168.7.1")]
        return [member(name, fabric(rdma=rdma), networks={"eth2": list(networks)}) for name in ("node1", "node2")]

    _environment, nccl = rendered(nodes("10.1.0.0/24"), "roce")
    assert nccl["NCCL_IB_ADDR_RANGE"] == "10.1.0.0/24"
    # One address a port needs no range, whatever networks there are.
    one = [
        member(n, fabric(rdma=[roce_port("mlx5_0", "10.1.0.1")]), networks={"eth2": ["10.1.0.0/24"]})
        for n in ("node1", "node2")
    ]
    assert "NCCL_IB_ADDR_RANGE" not in rendered(one, "roce")[1]
    # A network that has both addresses says nothing.
    assert decide(nodes("0.0.0.0/0"), "roce")[0].address_range is None
    # Both fit: only the operator knows which.
    decision, _problems = decide(nodes("10.1.0.0/24", "192.168.7.0/24"), "roce")
    assert decision.address_range is None and "NCCL_IB_ADDR_RANGE" in decision.notes[0]


def test_the_user_s_own_adapters_are_the_ones():
    def nodes(*hcas):
        rdma = [port("mlx5_0"), port("mlx5_1", distance="SYS"), port("mlx5_2", active=False)]
        return [member(f"node{n}", fabric(rdma=rdma), hcas=value) for n, value in enumerate(hcas, 1)]

    assert rendered(nodes("", ""))[1]["NCCL_IB_HCA"] == "=mlx5_0:1"
    assert rendered(nodes("=mlx5_1:1", "^mlx5_0"), node=1)[1]["NCCL_IB_HCA"] == "=mlx5_1:1"
    decision, problems = decide(nodes("mlx5", "=mlx5_1"))
    assert decision.adapters["node1"] != decision.adapters["node2"] and "node2: 1, but 2 on node1" in problems[0]
    # One that matches nothing is the check's business.
    assert names(compute_ports(nodes("=mlx5_7")[0], "InfiniBand")) == ["mlx5_0:1"]


@pytest.mark.parametrize("version", ["2.20.5+cuda12.4", "2.20.5"])
def test_an_nccl_that_does_not_find_the_gid(version):
    nodes = [
        member(n, fabric(rdma=[roce_port("mlx5_0", "2001:db8::1", index=7)], nccl={"version": version, "path": ""}))
        for n in ("node1", "node2")
    ]
    nccl = rendered(nodes, "roce")[1]
    # It reads neither NCCL_IB_ADDR_FAMILY nor NCCL_IB_ADDR_RANGE.
    assert nccl["NCCL_IB_GID_INDEX"] == "7" and not [name for name in nccl if name.startswith("NCCL_IB_ADDR")]


def test_a_version_that_is_none_is_taken_for_the_newest():
    nodes = pair(rdma=[port("mlx5_0")], nccl={"version": "garbage", "path": ""})
    assert nodes[0].nccl is None and check_nccl(nodes) == []
    assert rendered(nodes)[1]["NCCL_IGNORE_NET_MISMATCH"] == "0"
    same = [
        member(f"node{n}", fabric(nccl={"version": v, "path": ""})) for n, v in ((1, "2.28.9"), (2, "2.28.9+cuda13.0"))
    ]
    assert check_nccl(same) == []


def test_roce_ports_of_both_families_are_refused_by_name():
    rdma = [roce_port("mlx5_0", "10.1.0.1"), roce_port("mlx5_1", "2001:db8::1")]
    assert (
        "RoCE ports with IPv6 addresses only: node1 mlx5_1:1, node2 mlx5_1:1" in decide(pair(rdma=rdma), "roce")[1][0]
    )
    # With an IPv4 address too the port is like the others.
    rdma[1] = roce_port("mlx5_1", "2001:db8::1", "10.2.0.1")
    assert "NCCL_IB_ADDR_FAMILY" not in rendered(pair(rdma=rdma), "roce")[1]


def test_gids_at_different_indexes_cannot_be_told_to_an_old_nccl():
    rdma = [roce_port("mlx5_0", "10.1.0.1"), roce_port("mlx5_1", "10.2.0.1", index=5)]
    old = pair(rdma=rdma, nccl={"version": "2.20.5", "path": ""})
    assert "different indexes" in decide(old, "roce")[1][0]
    assert decide(pair(rdma=rdma), "roce")[1] == []


def test_notes_say_what_stays_unused_or_is_not_ready():
    idle, _problems = decide(pair(rdma=[roce_port("mlx5_0", "10.1.0.1")]))
    assert "set network_env_profile to 'roce'" in idle.notes[0]
    assert decide(pair(rdma=[roce_port("mlx5_0", "10.1.0.1")]), "ethernet")[0].notes == ()
    slow, _problems = decide(pair(rdma=[port("mlx5_0")], gpudirect={"peermem": False, "dmabuf": False}))
    assert "GPUDirect RDMA is not ready on node1, node2" in slow.notes[0]
    for ready in ({"peermem": True, "dmabuf": False}, {"peermem": False, "dmabuf": True}):
        assert decide(pair(rdma=[port("mlx5_0")], gpudirect=ready))[0].notes == ()
    waiting = port("mlx5_0", active=False, state="INIT")
    held, _problems = decide(pair(rdma=[waiting]))
    assert held.transport == "socket" and "wait for a subnet manager: mlx5_0:1 on node1" in held.notes[0]
    assert "subnet manager" in decide(pair(rdma=[waiting]), "infiniband")[1][0]
    down = port("mlx5_0", active=False, state="DOWN", physical_state="Polling")
    assert decide(pair(rdma=[down]))[0].notes == ()
    plugin = pair(rdma=[port("mlx5_0")], plugins=["/opt/hpcx/libnccl-net.so"])
    assert "node1: /opt/hpcx/libnccl-net.so; node2" in decide(plugin)[0].notes[0]
    assert decide(plugin, strict=False)[0].notes == ()
    half, _problems = decide(pair(rdma=[roce_port("mlx5_0", "10.1.0.1"), roce_port("mlx5_1"), port("mlx5_2")]), "roce")
    assert "for want of an IP address: mlx5_1:1 on node1, mlx5_1:1 on node2" in half.notes[0]
    one_node = [member("node1", fabric(rdma=[roce_port("mlx5_0", "10.1.0.1")])), member("node2")]
    assert decide(one_node)[0].notes == ()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"nvlink": "some"}, "NVLink joins some pairs of GPUs and not all on node1, node2"),
        ({"nvlink": "none", "acs_bridges": ["0000:00:01.0"]}, "switch ACS off"),
        ({"gpus": 2, "nvlink": "none", "acs_bridges": ["0000:00:01.0"]}, "switch ACS off"),
        ({"gpus": 2, "nvlink": "none", "shm_bytes": 64 << 20}, "/dev/shm is smaller than 1 GiB on node1, node2"),
        ({"gpus": 2, "nvlink": "all"}, None),
        ({"nvlink": "all", "acs_bridges": ["0000:00:01.0"], "shm_bytes": 64 << 20}, None),
        ({"gpus": 1, "acs_bridges": ["0000:00:01.0"], "shm_bytes": 64 << 20}, None),
    ],
)
def test_notes_on_what_slows_down_the_gpus_of_a_node(facts, says):
    notes = decide(pair(**facts))[0].notes
    assert (len(notes) == 1 and says in notes[0]) if says else notes == ()
    # On one node it counts as much.
    assert len(decide([member("node1", fabric(**facts))])[0].notes) == len(notes)


def test_a_gpu_without_a_driver_is_noted():
    nodes = pair()
    nodes[1].fabric["gpus"][3]["driver"] = False
    assert decide(nodes)[0].notes[0].startswith("GPUs that no driver has taken on node2")


@pytest.mark.parametrize("profile", ["auto", "ethernet", "infiniband", "roce"])
def test_never_rendered(profile):
    rdma = [port("mlx5_0"), roce_port("mlx5_1", "10.1.0.1")]
    environment, nccl = rendered(pair(rdma=rdma), profile)
    never = ("P2P_DISABLE", "SHM_DISABLE", "NET_GDR_LEVEL", "CROSS_NIC", "ASYNC_ERROR_HANDLING", "MASTER_")
    assert not [name for name in (*environment, *nccl) if any(word in name for word in never)]


def test_what_the_proof_has_to_see():
    def expected(members, profile="auto", **extra):
        decision, _problems = decide(members, profile)
        _environment, nccl = rendered(members, profile)
        return expectation(members[0], decision, {**nccl, **extra})

    assert expected(pair()) == {"transport": "Socket", "interface": "eth1", "hcas": [], "intra": "P2P"}
    infiniband = expected(pair(rdma=[port("mlx5_0")]))
    assert infiniband["transport"] == "IB" and infiniband["hcas"] == ["mlx5_0:1"]
    assert expected(pair(rdma=[port("mlx5_0")], plugins=["/x"]))["transport"] == ""
    # The user's own variables count.
    assert expected(pair(), NCCL_P2P_DISABLE="1")["intra"] == "any"
    assert expected(pair(), NCCL_P2P_DISABLE="1", NCCL_SHM_DISABLE="1")["intra"] == "NET"
    assert expected(pair(), NCCL_SOCKET_IFNAME="=eth0")["interface"] == "eth0"
    assert expected(pair(), NCCL_SOCKET_IFNAME="eth0")["interface"] == "eth0"
    assert expected(pair(), NCCL_SOCKET_IFNAME="^docker0")["interface"] == ""
    assert expected(pair(), NCCL_NET="ibext")["transport"] == "ibext"
    assert expected(pair(), NCCL_NET="socket")["transport"] == "Socket"
    assert expected(pair(nvlink="some"))["intra"] == "any"
    assert expected(pair(efa=True))["transport"] == "Libfabric"
    assert expected(pair(), NCCL_SHM_DISABLE="1")["intra"] == "P2P"
    # A fall-back that is allowed to happen is still not what was meant.
    lenient, _problems = decide(pair(rdma=[port("mlx5_0")]), strict=False)
    assert expectation(pair()[0], lenient, {})["transport"] == "IB"


@pytest.mark.parametrize(
    ("version", "names", "there"),
    [
        ("2.20.5", "NCCL_IB_GID_INDEX", True),
        ("2.21.0", "NCCL_IB_GID_INDEX", False),
        ("2.30.2", "NCCL_IGNORE_NET_MISMATCH", False),
        ("2.30.3", "NCCL_IGNORE_NET_MISMATCH", True),
        ("2.16.5", "NCCL_MIN_CTAS", False),
        ("2.17.0", "NCCL_MIN_CTAS", True),
    ],
)
def test_each_from_the_release_that_reads_it_on(version, names, there):
    nodes = pair(rdma=[roce_port("mlx5_0", "10.1.0.1")], nccl={"version": version, "path": ""})
    assert (names in {**rendered(nodes, "roce")[1], **rendered(nodes, "ethernet")[1]}) is there


def test_ethernet_on_nodes_with_efa():
    assert rendered(pair(efa=True), "ethernet")[1] == {**COMMON, **SOCKETS}
    assert decide([member("node1", fabric(efa=True)), member("node2")], "ethernet")[1] == []
