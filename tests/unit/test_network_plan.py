# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._network_plan import (
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
from fabrics import fabric, member, port

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


def node_of(m, **more):
    return {
        "candidates": [
            {
                "interface": m.interface,
                "address": m.address,
                "prefix": 24,
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
    told = make_members(facts, picked, {"node1": {"network_env_link_mbps": 400_000}})[0]
    assert (told.mtu, told.speed_mbps, told.networks) == (9000, 400_000, {"eth1": ["10.0.0.0/24"]})
    assert told.default_interfaces == ("eth1",) and told.first_address
    unknown = make_members({"node1": node_of(m, first=False)}, picked, {"node1": {}})[0]
    assert unknown.speed_mbps is None and not unknown.first_address


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
    text = render_report(plan, rows, {"fingerprint": "e", "text": "2 nodes", "when": "yesterday"})
    assert "1 x InfiniBand, 1 x InfiniBand (down)" in text and "8 x H100" in text
    assert "Transport between nodes: InfiniBand (profile auto)" in text
    assert re.search("NCCL_IB_HCA==mlx5_0:1 +exactly the active ports", text)
    assert "node2, where it differs" in text and text.count("NCCL_IB_HCA") == 1
    assert text.count(made.problems[0]) == 1
    assert "2 nodes (yesterday; something has changed since" in text
