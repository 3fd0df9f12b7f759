# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleError
from ansible_collections.metalray.cluster.plugins.module_utils._network_plan import (
    check_facts,
    fingerprint,
    make_members,
    make_network_plan,
)
from ansible_collections.metalray.cluster.plugins.module_utils._network_report import render_report
from ansible_collections.metalray.cluster.plugins.plugin_utils._settings import (
    load_catalogue,
    read_specs,
    with_defaults,
)
from fabrics import fabric, member, port, roce_port

SPECS = {name: spec for name, spec in read_specs().items() if name.startswith("network_env_")}
GUIDE = {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_ASYNC_ERROR_HANDLING"}


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue()


@pytest.fixture
def make(catalogue):
    def run(members, hosts=None, compare_nccl=False, **variables):
        values = {m.name: with_defaults({**variables, **(hosts or {}).get(m.name, {})}, SPECS) for m in members}
        return make_network_plan(members, values, catalogue, source_dir="/mnt/shared/src/x", compare_nccl=compare_nccl)

    return run


def pair(**more):
    return [member("node1", fabric(**more)), member("node2", fabric(**more))]


@pytest.mark.parametrize("profile", ["auto", "ethernet", "infiniband"])
@pytest.mark.parametrize("nccl", ["2.18.1", "2.28.9", "2.32.3", None])
def test_what_is_decided_passes_its_own_check(make, profile, nccl):
    nodes = pair(rdma=[port("mlx5_0")], nccl={"version": nccl, "path": ""} if nccl else None)
    auto = make(nodes, network_env_profile=profile)
    assert auto.problems == [] and auto.findings == []
    written = {**auto.plan["nodes"]["node1"]["environment"], **auto.plan["nodes"]["node1"]["nccl"]}
    again = make(nodes, network_env_profile=profile, network_env_extra={
        # Those that differ from node to node cannot be said for all.
        name: value for name, value in written.items() if name != "VLLM_HOST_IP"
    })  # fmt: skip
    assert [f for f in again.findings if f.level == "error"] == []


def test_the_guide_s_settings_are_refused_with_nvlink_unless_each_is_accepted(make):
    refused = make(pair(), network_env_profile="seed")
    assert {f.name for f in refused.findings if f.level == "error"} == GUIDE
    assert all("node" in problem and "seed" in problem for problem in refused.problems)

    taken = make(pair(), network_env_profile="seed", network_env_accept=sorted(GUIDE))
    assert taken.problems == []
    node = taken.plan["nodes"]["node2"]
    assert len(node["environment"]) + len(node["nccl"]) == 25
    assert node["nccl"]["NCCL_SOCKET_IFNAME"] == "eth1" and node["nccl"]["NCCL_P2P_DISABLE"] == "1"
    assert node["environment"]["MASTER_ADDR"] == "10.0.0.1"
    assert node["environment"]["PYTHONPATH"] == "/mnt/shared/src/x:/mnt/shared/src/x/external/rllm"
    assert node["expect"]["intra"] == "NET"
    assert {f.name for f in taken.findings if "Accepted" in f.message} == GUIDE


def test_single_variables_on_top_of_any_profile(make):
    for profile in ("auto", "seed"):
        made = make(
            pair(),
            network_env_profile=profile,
            network_env_accept=sorted(GUIDE),
            network_env_extra={"NCCL_SOCKET_NTHREADS": 4, "GLOO_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": None},
        )
        assert made.problems == []
        node = made.plan["nodes"]["node1"]
        assert node["nccl"]["NCCL_SOCKET_NTHREADS"] == "4" and "NCCL_DEBUG" not in node["nccl"]
        assert node["environment"]["GLOO_SOCKET_IFNAME"] == "eth0"


def found(name, value, file="/etc/environment"):
    return {"environment": [{"file": file, "line": 3, "name": name, "value": value}]}


def test_what_somebody_left_on_a_node_is_found(make):
    nodes = [member("node1"), member("node2", fabric(**found("NCCL_P2P_DISABLE", "1")))]
    made = make(nodes)
    assert len(made.problems) == 1
    assert "/etc/environment line 3 (node2)" in made.problems[0] and "NVLink" in made.problems[0]
    literal = make([member("node1", fabric(**found("export NCCL_DEBUG", "INFO", "/etc/nccl.conf"))), member("node2")])
    assert literal.problems == [] and "which nothing reads" in literal.warnings[0]
    late = [
        member(n, fabric(**found("TORCH_NCCL_BLOCKING_WAIT", "1", "/home/ray/.nccl.conf"))) for n in ("node1", "node2")
    ]
    assert "(all 2 nodes): TORCH_NCCL_BLOCKING_WAIT=1 has no effect in nccl.conf" in make(late).warnings[0]
    there = [member(n, fabric(**found("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"))) for n in ("node1", "node2")]
    assert "jobs hang" in make(there).problems[0]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"WANDB_API_KEY": "x"}, "secrets.env"),
        ({"A B": "1"}, "not a name"),
        ({"NCCL_SOCKET_NTHREAD": 4}, "NCCL_SOCKET_NTHREADS"),
        ({"NCCL_BUFFSIZE": "4M"}, "4194304"),
        ({"NCCL_SOCKET_IFNAME": "=eth7"}, "eth7"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(make, extra, says):
    made = make(pair(), network_env_extra=extra)
    assert made.problems and says in made.problems[0] and next(iter(extra)) in made.problems[0]


def test_a_variable_of_one_host_counts_for_that_host(make):
    made = make(pair(), hosts={"node2": {"network_env_extra": {"TORCH_CPP_LOG_LEVEL": "INFO"}}})
    assert "TORCH_CPP_LOG_LEVEL" in made.plan["nodes"]["node2"]["environment"]
    assert "TORCH_CPP_LOG_LEVEL" not in made.plan["nodes"]["node1"]["environment"]
    differs = make(pair(), hosts={"node2": {"network_env_profile": "ethernet"}})
    assert differs.problems == [
        "network_env_profile differs between hosts: 'auto' on node1; 'ethernet' on node2. Set it once for the group 'cluster'"
    ]


def test_nodes_that_are_broken_or_disagree_stop_the_run(make):
    hangs = make([member("node1"), member("node2", fabric(problems=["'nvidia-smi topo -m' has not ended after 30 s"]))])
    assert hangs.problems == ["node2: 'nvidia-smi topo -m' has not ended after 30 s"]
    versions = [member("node1"), member("node2", fabric(nccl={"version": "2.27.5", "path": ""}))]
    assert make(versions).problems == []
    assert "NCCL's version differs" in make(versions, compare_nccl=True).problems[0]


TWO_NETWORKS = roce_port("mlx5_0", "10.1.0.1", "192.168.7.1")
HARDWARE = [
    [],
    [port("mlx5_0"), port("mlx5_1", distance="SYS")],
    [port("mlx5_0", interfaces=["eth1"]), port("mlx5_1", active=False, state="INIT")],
    [roce_port("mlx5_0", "10.0.0.1", interfaces=["eth1"])],
    [roce_port("mlx5_0", "2001:db8::1"), roce_port("mlx5_1")],
    [TWO_NETWORKS, port("mlx5_9")],
]


@pytest.mark.parametrize("rdma", HARDWARE, ids=range(len(HARDWARE)))
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("nccl", ["2.16.5", "2.20.5", "2.28.9+cuda13.0", "2.32.3", "garbage", None])
@pytest.mark.parametrize(("efa", "plugins"), [(False, []), (True, ["/opt/amazon/ofi-nccl/lib/libnccl-net.so"])])
def test_no_hardware_makes_the_decision_contradict_the_check(make, rdma, gpus, nccl, efa, plugins):
    facts = {
        "gpus": gpus,
        "rdma": rdma,
        "efa": efa,
        "plugins": plugins,
        "nccl": nccl and {"version": nccl, "path": ""},
        "versions": {"nccl": nccl, "torch": "2.11.0", "vllm": "0.33.0"},
    }
    for profile in ("auto", "ethernet", "infiniband", "roce"):
        head = member("node1", fabric(gpus=0), networks={"eth1": ["10.0.0.0/24"], "eth2": ["10.1.0.0/24"]})
        for nodes in (pair(**facts), [member("node1", fabric(**facts))], [head, member("node2", fabric(**facts))]):
            made = make(nodes, network_env_profile=profile)
            assert made.findings == []
            if made.problems:
                assert profile in ("infiniband", "roce") and "no active" in made.problems[0]
                continue
            own = {
                name: {"network_env_extra": {**node["environment"], **node["nccl"]}}
                for name, node in made.plan["nodes"].items()
            }
            again = make(nodes, own, network_env_profile=profile)
            assert [f for f in again.findings if f.level != "info"] == []
            assert [n["nccl"] for n in again.plan["nodes"].values()] == [n["nccl"] for n in made.plan["nodes"].values()]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"NCCL_IB_DISABLE": True}, "the value of NCCL_IB_DISABLE is the truth value true"),
        ({"NCCL_ALGO": ["Ring"]}, "the value of NCCL_ALGO is ['Ring']"),
        ({"NCCL_ALGO": {"a": 1}}, "the value of NCCL_ALGO is {'a': 1}"),
        ({1: 2}, "'1' is not a name"),
        ({"NCCL_DEBUG": ""}, "is empty"),
        ({"NCCL_BUFFSIZE": 4194304.0}, "write a whole number"),
    ],
)
def test_a_value_that_is_no_text_is_refused_by_name(make, extra, says):
    problems = make(pair(), network_env_extra=extra).problems
    assert len(problems) == 1 and problems[0].startswith("network_env_extra (all 2 nodes): ") and says in problems[0]


def test_every_value_that_is_no_text_is_named_at_once(make):
    made = make(pair(), {"node2": {"network_env_extra": {"A": True, "B": [1], "C D": 1, "HF_TOKEN": None}}})
    assert [f.hosts for f in made.findings] == [("node2",)] * 3 and "nodes" not in made.plan
    assert all(f"network_env_extra (node2): {says}" in problem for problem, says in zip(
        made.problems, ("the value of A is the truth", "the value of B is [1]", "'C D' is not a name"), strict=True
    ))  # fmt: skip


def test_adapters_of_the_decision_count_for_the_check(make):
    nodes = pair(rdma=[port("mlx5_0"), port("mlx5_1")])
    assert "from one rail to another" in make(nodes, network_env_extra={"NCCL_CROSS_NIC": 1}).warnings[0]
    quiet = make(pair(rdma=[port("mlx5_0")]), network_env_extra={"NCCL_CROSS_NIC": 1})
    assert quiet.warnings == [] and [f.level for f in quiet.findings] == ["info"]


def test_reasons_are_those_of_the_values_that_are_written(make):
    why = make(pair(), network_env_extra={"NCCL_DEBUG": "INFO"}).plan["nodes"]["node1"]["why"]
    assert why["NCCL_NET"].startswith("TCP") and "NCCL_DEBUG" not in why
    seed = make(
        pair(), network_env_profile="seed", network_env_accept=sorted(GUIDE), network_env_extra={"NCCL_DEBUG": "INFO"}
    )
    assert set(seed.plan["nodes"]["node1"]["why"].values()) == {"the guide's value"}
    mended = make(
        pair(), network_env_profile="seed", network_env_extra={"NCCL_P2P_DISABLE": 0, "NCCL_SHM_DISABLE": None}
    )
    assert {f.name for f in mended.findings if f.level == "error"} == {"NCCL_ASYNC_ERROR_HANDLING"}
    # What the user says himself is not laid at the guide's door.
    assert [f.where for f in seed.findings if f.name == "NCCL_DEBUG"] == ["network_env_extra"]


def test_variables_go_where_they_are_read(make):
    extra = {
        "NCCL_BLOCKING_WAIT": 1,
        "NCCL_CONF_FILE": "/etc/x.conf",
        "NCCL_IB_TC": 106,
        "NCCL_SHARP_X": 1,
        "MINE": "é ü",
    }
    node = make(pair(), network_env_extra=extra).plan["nodes"]["node1"]
    assert {"NCCL_BLOCKING_WAIT", "NCCL_CONF_FILE", "MINE"} < set(node["environment"])
    assert node["nccl"]["NCCL_IB_TC"] == "106" and "NCCL_SHARP_X" in node["nccl"]


def test_a_head_without_gpus_has_no_say_in_nccl_s_settings(make):
    nodes = [member("node1", fabric(gpus=0)), *(member(f"node{n}", fabric(rdma=[port("mlx5_0")])) for n in (2, 3))]
    extra = {"NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET": "IB"}
    everywhere = make(nodes, network_env_extra=extra)
    assert everywhere.problems == [] == [f for f in everywhere.findings if f.level == "error"]
    # The module would look for the port.
    assert "NCCL_IB_HCA" not in everywhere.plan["nodes"]["node1"]["nccl"]
    assert everywhere.plan["nodes"]["node2"]["nccl"]["NCCL_IB_HCA"] == "=mlx5_0:1"
    one_group = make(nodes, hosts={key: {"network_env_extra": {"NCCL_MIN_CTAS": 8}} for key in ("node2", "node3")})
    assert one_group.problems == []
    differs = make(nodes, hosts={"node2": {"network_env_extra": {"NCCL_MIN_CTAS": 8}}})
    assert "must be the same on all nodes, but is 8 on node2 and unset on node3" in differs.problems[0]


def test_accepting_what_is_no_variable_is_said(make):
    made = make(
        pair(), network_env_accept=["NCCL_P2P_DISABEL", "NCCL_SHM_DISABLE", "MINE"], network_env_extra={"MINE": 1}
    )
    assert made.problems == [] and len(made.warnings) == 1
    assert "network_env_accept (all 2 nodes): NCCL_P2P_DISABEL is accepted" in made.warnings[0]
    assert "Did you mean NCCL_P2P_DISABLE?" in made.warnings[0]
    assert make(pair(), network_env_accept=["XYZ"]).warnings[0].endswith("known or set. Remove it.")
    near = make(pair(), network_env_accept=["MINES"], network_env_extra={"MINE": 1})
    assert "Did you mean MINE?" in near.warnings[0]


@pytest.mark.parametrize("value", [None, "A=1", {"A": 1}, {}])
def test_variables_of_the_command_line_are_texts(value):
    given = with_defaults({"network_env_extra": value, "network_env_link_mbps": "100000", "network_env_strict": "no",
                           "network_env_accept": "NCCL_P2P_DISABLE"}, SPECS)  # fmt: skip
    assert given["network_env_extra"] in ({}, {"A": "1"}, {"A": 1})
    assert given["network_env_link_mbps"] == 100_000 and given["network_env_strict"] is False
    assert given["network_env_accept"] == ["NCCL_P2P_DISABLE"] and given["network_env_profile"] == "auto"


def test_a_variable_of_a_wrong_type_is_one_message():
    with pytest.raises(AnsibleError, match="network_env_link_mbps"):
        with_defaults({"network_env_link_mbps": "fast"}, SPECS)


def test_facts_of_another_release_are_refused_by_name():
    whole = {"candidates": [], "boot_id": "b", "environment_path": "", "network_proof": None, "fabric": fabric()}
    assert check_facts({"node1": whole}) == []
    for key in whole:
        lacks = check_facts({"node1": whole, "node2": {k: v for k, v in whole.items() if k != key}})
        assert len(lacks) == 1 and f"node2: its facts lack {key}, so" in lacks[0]
    older = {k: v for k, v in fabric().items() if k not in ("nccl", "acs_bridges")}
    assert (
        "node1: its facts lack fabric.nccl, fabric.acs_bridges" in check_facts({"node1": {**whole, "fabric": older}})[0]
    )


def node_of(m, **more):
    return {
        "candidates": [
            {
                "interface": m.interface,
                "address": m.address,
                "prefix": 24,
                "mtu": 1500,
                "speed_mbps": None,
                "physical": True,
                "default_route": False,
                "first": True,
                **more,
            }
        ],
        "fabric": m.fabric,
    }


def test_members_from_facts():
    m = member()
    picked = {"node1": {"interface": "eth1", "address": "10.0.0.1", "mtu": 9000, "speed_mbps": None}}
    facts = {"node1": node_of(m, default_route=True)}
    facts["node1"]["candidates"].append(
        {
            **facts["node1"]["candidates"][0],
            "interface": "eth3",
            "address": "10.3.0.1",
            "default_route": False,
            "first": False,
        }
    )
    values = with_defaults({"network_env_link_mbps": 400_000, "network_env_extra": {"NCCL_IB_HCA": "=mlx5_1"}}, SPECS)
    told = make_members(facts, picked, {"node1": values})[0]
    assert (told.mtu, told.speed_mbps, told.networks) == (
        9000, 400_000, {"eth1": ["10.0.0.0/24"], "eth3": ["10.3.0.0/24"]}
    )  # fmt: skip
    assert told.default_interfaces == ("eth1",) and told.first_address and told.hcas == "=mlx5_1"
    unknown = make_members({"node1": node_of(m, first=False)}, picked, {"node1": with_defaults({}, SPECS)})[0]
    assert unknown.speed_mbps is None and not unknown.first_address and not unknown.hcas


def test_an_address_that_is_not_found_by_its_interface_is_noted(make):
    made = make([member("node1", first_address=False), member("node2")])
    assert "node1: 10.0.0.1 is not the first address of eth1" in made.plan["notes"][0]


def test_a_proof_holds_until_something_changes(make):
    nodes = {name: {"boot_id": "b", "environment_path": "/opt/venvs/1"} for name in ("node1", "node2")}
    plan = make(pair()).plan
    first = fingerprint(plan, nodes)
    assert fingerprint(make(pair()).plan, nodes) == first
    others = [
        fingerprint(make(pair(), network_env_extra={"NCCL_DEBUG": "INFO"}).plan, nodes),
        fingerprint(make([*pair(), member("node3")]).plan, {**nodes, "node3": nodes["node1"]}),
        fingerprint(plan, {**nodes, "node2": {**nodes["node2"], "boot_id": "c"}}),
        fingerprint(plan, {**nodes, "node2": {**nodes["node2"], "environment_path": "/opt/venvs/2"}}),
    ]
    assert len({first, *others}) == 5


def test_the_report_shows_what_is_found_written_and_wrong(make):
    nodes = [
        member("node1", fabric(rdma=[port("mlx5_0"), port("mlx5_1", active=False)])),
        member("node2", fabric(rdma=[port("mlx5_0")], **found("NCCL_P2P_DISABLE", "1"))),
    ]
    made = make(nodes)
    plan = {**made.plan, "problems": made.problems, "findings": "ERROR " + made.problems[0], "fingerprint": "f"}
    rows = [{"name": m.name, "interface": m.interface, "address": m.address, "speed_mbps": 100_000, "mtu": 1500,
             "fabric": m.fabric} for m in nodes]  # fmt: skip
    text = render_report(plan, rows, {"node1": {"fingerprint": "f", "text": "2 nodes", "when": "today"}, "node2": {}})
    assert "1 x InfiniBand, 1 x InfiniBand (down)" in text and "8 x H100" in text
    assert "Transport between nodes: InfiniBand (profile auto)" in text
    assert re.search("NCCL_IB_HCA==mlx5_0:1 +exactly the active ports", text)
    assert "node2, where it differs" in text and text.count("NCCL_IB_HCA") == 1
    assert text.count(made.problems[0]) == 1
    assert "Network: 2 nodes (today; not proved on node2, --tags network_env does or says why)" in text


def report(members, plan, record=None):
    rows = [{"name": m.name, "interface": m.interface, "address": m.address, "speed_mbps": m.speed_mbps, "mtu": m.mtu,
             "fabric": m.fabric} for m in members]  # fmt: skip
    return render_report(plan, rows, {"node1": record or {}}).splitlines()


def test_the_whole_report(make):
    nodes = [
        member("node1", fabric(gpus=0)),
        member("node2", fabric(gpus=1, efa=True, nvlink="unknown", gpudirect={"peermem": True, "dmabuf": True})),
        member(
            "node3", fabric(gpus=1, efa=True, nccl=None, gpudirect={"peermem": False, "dmabuf": True}), speed_mbps=None
        ),
    ]
    nodes[2].fabric["gpus"][0]["model"] = None
    made = make(nodes, hosts={"node3": {"network_env_extra": {"MINE": 1}}})
    assert (
        report(nodes, {**made.plan, "problems": [], "findings": ""})
        == """\
node   interface  address   link                     GPUs      NVLink   RDMA  GPUDirect         NCCL
-----  ---------  --------  -----------------------  --------  -------  ----  ----------------  ------
node1  eth1       10.0.0.1  100 Gb/s, MTU 1500       -         -        -     -                 -
node2  eth1       10.0.0.2  100 Gb/s, MTU 1500       1 x H100  unknown  EFA   peermem, DMA-BUF  2.28.9
node3  eth1       10.0.0.3  speed unknown, MTU 1500  1 x GPU   none     EFA   DMA-BUF           -

Transport between nodes: EFA (profile auto)

node1
  /etc/metalray/cluster.env
    GLOO_SOCKET_IFNAME=eth1  the interface that leads to the other nodes, by its exact name
    VLLM_HOST_IP=10.0.0.1    this node's address in the cluster, the same that Ray uses
  /etc/nccl.conf
    NCCL_SOCKET_IFNAME==eth1    exactly this interface: without '=' it is a prefix
    NCCL_SOCKET_FAMILY=AF_INET  the family of the node's address in the cluster
    NCCL_DEBUG=WARN             NCCL says what goes wrong, and nothing else

node2, where it differs
  /etc/metalray/cluster.env
    VLLM_HOST_IP=10.0.0.2  this node's address in the cluster, the same that Ray uses

node3, where it differs
  /etc/metalray/cluster.env
    VLLM_HOST_IP=10.0.0.3  this node's address in the cluster, the same that Ray uses
    MINE=1                 from the inventory

Check of the variables (errors stop a run):
  nothing to say""".splitlines()
    )


def test_the_report_of_what_cannot_be_decided(make):
    nodes = [
        member("node1", fabric(rdma=[port("mlx5_0")], gpudirect={"peermem": False, "dmabuf": False})),
        member("node2"),
    ]
    made = make(nodes)
    lines = report(nodes, {**made.plan, "problems": made.problems, "findings": ""})
    assert lines[2].split()[-3:] == ["InfiniBand", "-", "2.28.9"]
    assert lines[lines.index("What stops a run:") + 1 :] == [
        f"  - {made.problems[0]}", "", "Check of the variables (errors stop a run):", "  nothing to say"
    ]  # fmt: skip
    assert not [line for line in lines if line.startswith("Transport")]


def test_the_report_of_nodes_that_are_alike():
    part = {"environment": {"A": "1"}, "nccl": {}, "why": {}}
    plan = {
        "profile": "auto",
        "transport": "single",
        "nodes": {"a": part, "b": part},
        "problems": ["x"],
        "findings": "ERROR x",
    }
    lines = report([member()], plan)
    assert lines[lines.index("b, where it differs") + 1] == "  the same" and "What stops a run:" not in lines
    assert lines[-1] == "ERROR x"
