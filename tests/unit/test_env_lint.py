# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._env_catalogue import load, seed_values
from ansible_collections.metalray.cluster.plugins.module_utils._env_lint import (
    Assignment,
    Context,
    Finding,
    lint,
    render_findings,
)

CATALOGUE = load(Path(__file__).resolve().parents[2] / "roles/network_env/files")
PLACES = {
    "inventory": "network_env_extra",
    "environment": "/etc/environment line 3",
    "nccl_conf": "/etc/nccl.conf line 2",
}
RELEASES = {"nccl": "2.28.9", "torch": "2.11.0+cu130", "vllm": "0.33.0"}
RDMA = {"transport": "infiniband", "gpus": 8, "rdma_visible": True, "rdma_ports": ["mlx5_0:1", "mlx5_1:1", "mlx5_10:1"]}


def node(name="node1", number=1, **facts):
    """A node of an Ethernet cluster without GPUs, and what makes it another one."""
    known = {
        "nodes": 2,
        "interfaces": ["lo", "docker0", "eth0"],
        "addresses": [f"10.0.0.{number}", "172.17.0.1"],
        "interface": "eth0",
        "address": f"10.0.0.{number}",
        "versions": RELEASES,
    }
    return Context(host=name, **{**known, **facts})


def found(name, value, place="inventory", accepted=(), beside=None, rendered=None, where=None, **facts):
    """What the lint says of one assignment on one node, beside others in the same place."""
    where = where or PLACES[place]
    assignments = [Assignment(n, v, place, where, "node1") for n, v in {name: value, **(beside or {})}.items()]
    findings = lint(assignments, {"node1": node(**facts)}, CATALOGUE, accepted, rendered={"node1": rendered or {}})
    return [f for f in findings if f.name == name]


def one(*args, **kwargs):
    findings = found(*args, **kwargs)
    assert len(findings) == 1, findings
    return findings[0].level, findings[0].message


# ---------------------------------------------------------------- names

NEVER_EXISTED = ["GLOO_SKIP_DEVICE_INTERFACES", "GLOO_USE_IPV4", "GLOO_TIMEOUT_MS", "NCCL_TIMEOUT_MS"]


@pytest.mark.parametrize("name", NEVER_EXISTED)
@pytest.mark.parametrize("place", ["inventory", "environment"])
def test_a_name_that_never_existed_is_a_warning_with_what_to_use(name, place):
    level, message = one(name, "1", place)
    assert level == "warning"
    assert "no program ever read it. Use " in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NCCL_TREE_THRESHOLD", "0", "removed in NCCL 2.5 (2.4.8 was the last to read it), and this node has 2.28.9. Use NCCL_ALGO"),
        ("NCCL_LL_THRESHOLD", "0", "removed in NCCL 2.5"),
        ("NCCL_IB_CUDA_SUPPORT", "1", "removed in NCCL 2.4 (2.3.7 was the last to read it), and this node has 2.28.9. Use NCCL_NET_GDR"),
        ("NCCL_IB_GDR_LEVEL", "1", "renamed in NCCL 2.4 (2.3.7 was the last to read it), and this node has 2.28.9. Use NCCL_NET_GDR_LEVEL"),
        ("NCCL_MNNVL", "1", "renamed in NCCL 2.21 (2.20.5 was the last to read it), and this node has 2.28.9. Use NCCL_MNNVL_ENABLE"),
        ("NCCL_RINGS", "0 1", "NCCL 2.4.8 was the last to read it, and this node has 2.28.9"),  # from the list of names
        ("VLLM_ATTENTION_BACKEND", "FLASH_ATTN", "removed in vLLM 0.15.0 (0.14.1 was the last to read it)"),
        ("VLLM_USE_V1", "1", "removed in vLLM 0.11.1"),
        ("VLLM_ENGINE_ITERATION_TIMEOUT_S", "60", "removed in vLLM 0.32.0"),
        ("HOST_IP", "10.0.0.1", "Use VLLM_HOST_IP"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["inventory", "environment"])
def test_removed_and_renamed_are_warnings_with_release_and_replacement(name, value, said, place):
    level, message = one(name, value, place)
    assert level == "warning"
    assert said in message


@pytest.mark.parametrize(
    ("name", "value", "releases", "dead"),
    [
        ("VLLM_USE_V1", "1", {"vllm": "0.10.2"}, False),
        ("VLLM_USE_V1", "1", {"vllm": "0.11.1"}, True),
        ("VLLM_USE_V1", "1", {"vllm": None}, True),
        ("VLLM_ATTENTION_BACKEND", "FLASH_ATTN", {"vllm": "0.14.1"}, False),
        ("NCCL_TREE_THRESHOLD", "0", {"nccl": "2.4.8"}, False),
        ("NCCL_TREE_THRESHOLD", "0", {"nccl": "unknown"}, True),
        ("NCCL_IGNORE_NET_MISMATCH", "0", {"nccl": "2.28.9"}, True),  # too new for the node
        ("NCCL_IGNORE_NET_MISMATCH", "0", {"nccl": "2.30.3"}, False),
        ("NCCL_IB_RAIL_POLICY", "CX9", {"nccl": "2.31.2"}, True),
        ("NCCL_IB_RAIL_POLICY", "CX9", {"nccl": "2.32.3"}, False),
        ("NCCL_IB_RAIL_POLICY", "CX9", {"nccl": "2.40.1"}, False),
    ],
)
def test_gone_or_not_yet_there_is_judged_by_the_release_on_the_node(name, value, releases, dead):
    assert any("does nothing" in finding.message for finding in found(name, value, versions=releases)) is dead


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NCCL_MAX_NCHANNELS", "8", "is deprecated since NCCL 2.17. Use NCCL_MAX_CTAS instead"),
        ("NCCL_MIN_NCHANNELS", "8", "Use NCCL_MIN_CTAS instead"),
        ("NCCL_BLOCKING_WAIT", "1", "is deprecated since torch 2.2. Use TORCH_NCCL_BLOCKING_WAIT instead"),
        ("NCCL_DESYNC_DEBUG", "1", "Use TORCH_NCCL_DESYNC_DEBUG instead"),
        ("NCCL_ENABLE_TIMING", "1", "Use TORCH_NCCL_ENABLE_TIMING instead"),
        ("NCCL_ASYNC_ERROR_HANDLING", "3", "Use TORCH_NCCL_ASYNC_ERROR_HANDLING instead"),
        ("TORCH_NCCL_AVOID_RECORD_STREAMS", "1", "is deprecated. Remove it"),
        ("FI_EFA_USE_DEVICE_RDMA", "1", "is deprecated since libfabric 1.18"),
    ],
)
def test_deprecated_is_a_warning_with_the_new_name(name, value, said):
    level, message = one(name, value)
    assert level == "warning"
    assert said in message


@pytest.mark.parametrize(
    ("name", "place", "releases", "level", "said"),
    [
        ("NCCL_SOCKET_IFNAMES", "inventory", RELEASES, "error", "no NCCL up to 2.32.3 reads this name. Did you mean NCCL_SOCKET_IFNAME?"),
        ("NCCL_SOCKET_IFNAMES", "environment", RELEASES, "warning", "Did you mean NCCL_SOCKET_IFNAME?"),
        ("NCCL_SOCKET_IFNAMES", "nccl_conf", RELEASES, "warning", "Did you mean NCCL_SOCKET_IFNAME?"),
        ("NCCL_SOCKET_IFNAMES", "inventory", {"nccl": "2.40.1"}, "warning", "unless that release has it"),
        ("NCCL_QQQQQQ", "inventory", RELEASES, "error", "reads this name. Remove it"),
        ("GLOO_IFNAME", "inventory", RELEASES, "error", "no program reads this name. Did you mean GLOO_SOCKET_IFNAME?"),
        ("GLOO_IFNAME", "environment", RELEASES, "warning", "Did you mean GLOO_SOCKET_IFNAME?"),
        ("VLLM_HOSTIP", "inventory", RELEASES, "warning", "VLLM_HOST_IP is one"),
        ("TORCH_NCCL_BLOKING_WAIT", "environment", RELEASES, "warning", "TORCH_NCCL_BLOCKING_WAIT is one"),
        ("MASTER_ADRR", "inventory", RELEASES, "warning", "MASTER_ADDR is one"),
    ],
)  # fmt: skip
def test_unknown_names(name, place, releases, level, said):
    seen, message = one(name, "1", place, versions=releases)
    assert seen == level
    assert said in message


@pytest.mark.parametrize(
    "name",
    [
        # Of NCCL's plugins, of builds and images.
        "NCCL_FASTRAK_IFNAME", "NCCL_GPUDIRECTTCPX_CTRL_DEV", "NCCL_SHARP_DISABLE", "NCCL_UCX_TLS", "NCCL_VERSION", "OFI_NCCL_PROTOCOL",
        # Real, and close to others.
        "TORCH_NCCL_ENABLE_TIMING", "TORCH_NCCL_TRACE_CPP_STACK", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_RPC_BASE_PATH", "VLLM_LOOPBACK_IP",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_DP_MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING",
        "PYTORCH_HIP_ALLOC_CONF", "MASTER_HOST",
        # Nobody's business.
        "PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME", "RAY_ADDRESS", "OMP_NUM_THREADS",
        # NCCL's own, with nothing to say about it.
        "NCCL_DEBUG_SUBSYS", "NCCL_PXN_DISABLE", "NCCL_TUNER_PLUGIN", "GLOO_LOG_LEVEL",
    ],
)  # fmt: skip
def test_real_names_are_left_alone(name):
    assert found(name, "1") == []


# ---------------------------------------------------------------- syntax


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NCCL_IB_TC", "010", "read as octal, 8, because of the leading 0; write 10"),
        ("NCCL_BUFFSIZE", "4M", "read as 4; write 4194304"),
        ("NCCL_BUFFSIZE", "8KiB", "read as 8; write 8192"),
        ("NCCL_IB_QPS_PER_CONNECTION", "1.5", "read as 1; write a whole number"),
        ("NCCL_IB_DISABLE", "true", "read as 0, or as the default from NCCL 2.32 on; write 1 for on and 0 for off"),
        ("NCCL_IB_DISABLE", "true", "with 'true' InfiniBand stays on"),
        ("NCCL_IB_TC", "0x6a", "hexadecimal; write 106"),
        ("NCCL_IB_TC", "many", "is not a whole number"),
        ("NCCL_IB_TC", "256", "out of range; -1 to 255 is allowed"),
        ("NCCL_IB_TIMEOUT", "32", "0 and 32 or more wait for ever"),
        ("NCCL_IB_TIMEOUT", "0", "0 and 32 or more wait for ever"),
        ("NCCL_IB_RETRY_CNT", "8", "0 to 7 is allowed"),
        ("NCCL_SOCKET_NTHREADS", "17", "1 to 16 is allowed"),
        ("NCCL_P2P_DISABLE", "2", "only 1 counts"),
        ("NCCL_P2P_LEVEL", "nvl", "wrong case; write NVL. Allowed: LOC, NVL, PIX, PXB, PHB, SYS (anything else is ignored"),
        ("NCCL_NET_GDR_LEVEL", "NODE", "is not one of its values. Allowed: LOC, PIX, PXB, PHB, SYS"),
        ("NCCL_SOCKET_FAMILY", "af_inet", "write AF_INET"),
        ("NCCL_IB_ADDR_FAMILY", "IPv4", "Allowed: AF_INET, AF_INET6"),
        ("NCCL_DEBUG", "VERBOSE", "Allowed: VERSION, WARN"),
        ("NCCL_IB_ADDR_RANGE", "10.0.0.0", "is not a network in CIDR notation"),
        ("NCCL_COMM_ID", "10.0.0.1", "is not host:port"),
        ("NCCL_TOPO_FILE", "~/topo.xml", "is not an absolute path"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "4", "0 to 3 is allowed"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments", "is not key:value"),
        ("MASTER_PORT", "0", "is not a port"),
        ("MASTER_ADDR", "head node", "is not a host name or an IP address"),
        ("NCCL_BUFFSIZE", "", "is empty, and an empty value keeps NCCL from reading the one of nccl.conf"),
        ("GLOO_SOCKET_IFNAME", "", "is empty"),
    ],
)  # fmt: skip
def test_wrong_syntax_is_an_error_in_the_inventory_and_a_warning_on_a_node(name, value, said):
    level, message = one(name, value)
    assert level == "error"
    assert said in message
    level, message = one(name, value, "environment")
    assert level == "warning"
    assert said in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TORCH_DISTRIBUTED_DEBUG", "VERBOSE", "torch raises ValueError"),
        ("VLLM_PORT", "tcp://10.0.0.1:8000", "vLLM raises ValueError"),
        ("VLLM_HOST_IP", "node1", "is not an IP address"),
        ("GLOO_DEVICE_TRANSPORT", "tcp", "write TCP"),
    ],
)
@pytest.mark.parametrize("place", ["inventory", "environment"])
def test_syntax_that_breaks_the_job_is_an_error_anywhere(name, value, said, place):
    level, message = one(name, value, place)
    assert level == "error"
    assert said in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_DEBUG", "warn"), ("NCCL_IB_TC", "106"), ("NCCL_IB_TC", "-1"), ("NCCL_BUFFSIZE", "8388608"), ("NCCL_NET", "socket"),
        ("TORCH_DISTRIBUTED_DEBUG", "off"), ("NCCL_IB_ADDR_RANGE", "10.0.0.0/24"), ("NCCL_RAS_ADDR", "[::1]:28028"),
        ("NCCL_RAS_ADDR", "localhost:28028"), ("NCCL_NET_GDR_LEVEL", "PHB"), ("NCCL_SOCKET_FAMILY", "AF_INET"),
        ("NCCL_TOPO_FILE", "/t.xml"), ("NCCL_SOCKET_IFNAME", "=eth0"), ("GLOO_SOCKET_IFNAME", "eth0"), ("VLLM_HOST_IP", "10.0.0.1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["inventory", "environment"])
def test_right_values_pass(name, value, place):
    assert [f for f in found(name, value, place) if "belongs to a job" not in f.message] == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "export NCCL_DEBUG",
            "WARN",
            "a variable named 'export NCCL_DEBUG', which nothing reads. Write NCCL_DEBUG=WARN",
        ),
        ("NCCL_DEBUG ", " WARN", "a variable named 'NCCL_DEBUG ', which nothing reads. Write NCCL_DEBUG=WARN"),
        ("  NCCL_DEBUG", "WARN", "which nothing reads"),
        ("NCCL_DEBUG", '"WARN"', "has quotes, which nccl.conf keeps"),
        ("NCCL_IB_TC", "106 # from the switch", "carries a note, which nccl.conf keeps"),
        ("NCCL_IB_TC", "106 ", "has blanks at its end"),
        ("NCCL_IB_TC", "", "an empty value keeps NCCL from reading"),
        ("GLOO_SOCKET_IFNAME", "eth0", "has no effect in nccl.conf"),
        ("TORCH_NCCL_BLOCKING_WAIT", "1", "has no effect in nccl.conf"),
        ("VLLM_HOST_IP", "10.0.0.1", "has no effect in nccl.conf"),
        ("NCCL_ASYNC_ERROR_HANDLING", "1", "has no effect in nccl.conf"),  # torch's, despite its name
    ],
)
def test_traps_of_nccl_conf(name, value, said):
    level, message = one(name, value, "nccl_conf")
    assert level == "warning"
    assert said in message


@pytest.mark.parametrize("value", ['"=eth0"', "=eth0 # internal"])
@pytest.mark.parametrize("place", ["inventory", "nccl_conf"])
def test_a_literal_trap_that_leaves_nccl_without_interface_is_an_error_anywhere(value, place):
    assert one("NCCL_SOCKET_IFNAME", value, place)[0] == "error"


def test_quotes_in_a_value_for_nccl_conf_are_an_error_in_the_inventory():
    assert one("NCCL_DEBUG", "'WARN'")[0] == "error"


# ---------------------------------------------------------------- harm on this hardware

NVLINK = {"gpus": 8, "nvlink": "all"}
PCIE = {"gpus": 2, "nvlink": "none"}
EFA = {"transport": "efa"}


@pytest.mark.parametrize(
    ("name", "value", "facts", "beside", "level", "said"),
    [
        ("NCCL_P2P_DISABLE", "1", NVLINK, {}, "error", "turns off NVLink"),
        ("NCCL_P2P_DISABLE", "1", {"gpus": 8, "nvlink": "some"}, {}, "error", "turns off NVLink"),
        ("NCCL_P2P_DISABLE", "1", PCIE, {}, "warning", "debugging only"),
        ("NCCL_P2P_DISABLE", "1", {**PCIE, "nodes": 1}, {}, "error", "only node"),
        ("NCCL_SHM_DISABLE", "1", PCIE, {"NCCL_P2P_DISABLE": "1"}, "error", "together with NCCL_P2P_DISABLE=1"),
        ("NCCL_SHM_DISABLE", "1", PCIE, {"NCCL_P2P_DISABLE": "0"}, "warning", "turns off shared memory"),
        ("NCCL_SHM_DISABLE", "1", {"gpus": 1}, {"NCCL_P2P_DISABLE": "1"}, "warning", "turns off shared memory"),
        ("NCCL_SHM_DISABLE", "1", {**PCIE, "nodes": 1}, {}, "error", "only node"),
        ("NCCL_ASYNC_ERROR_HANDLING", "0", NVLINK, {}, "error", "jobs hang. Its name is TORCH_NCCL_ASYNC_ERROR_HANDLING since torch 2.2"),
        ("NCCL_ASYNC_ERROR_HANDLING", "0", {}, {}, "warning", "jobs hang"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", NVLINK, {}, "error", "jobs hang"),
        ("NCCL_NET_GDR_LEVEL", "0", RDMA, {}, "error", "turns off GPUDirect RDMA"),
        ("NCCL_NET_GDR_LEVEL", "LOC", {**RDMA, "transport": "roce"}, {}, "error", "turns off GPUDirect RDMA"),
        ("NCCL_NET_GDR_LEVEL", "0", {}, {}, "info", "no effect here"),
        ("NCCL_NET_GDR_LEVEL", "2", RDMA, {}, "warning", "number of the old notation"),
        ("NCCL_IB_DISABLE", "1", RDMA, {}, "error", "turns off the InfiniBand or RoCE"),
        ("NCCL_IB_DISABLE", "2", RDMA, {}, "error", "turns off the InfiniBand or RoCE"),
        ("NCCL_IB_DISABLE", "1", {"plugins": True}, {}, "warning", "does not stop an external network plugin"),
        ("NCCL_NET", "IB", NVLINK, {}, "error", "no RDMA port is active"),
        ("NCCL_NET", "IB", {**NVLINK, "rdma_visible": True}, {}, "error", "no RDMA port is active"),
        ("NCCL_NET", "socket", RDMA, {}, "error", "keeps NCCL on TCP"),
        ("NCCL_CROSS_NIC", "1", {"nics": 1}, {}, "info", "no effect with one network interface"),
        ("NCCL_CROSS_NIC", "1", {"nics": 8}, {}, "warning", "from one rail to another"),
        ("NCCL_P2P_LEVEL", "LOC", NVLINK, {}, "error", "NVLink too"),
        ("NCCL_P2P_LEVEL", "3", NVLINK, {}, "warning", "number of the old notation"),
        ("NCCL_P2P_LEVEL", "NVL", NVLINK, {}, "info", "for debugging"),
        ("NCCL_IGNORE_DISABLED_P2P", "1", NVLINK, {}, "warning", "mutes an alarm"),
        ("NCCL_MNNVL_ENABLE", "1", PCIE, {"NCCL_P2P_DISABLE": "1"}, "warning", "cannot work beside NCCL_P2P_DISABLE=1"),
        ("NCCL_IB_GID_INDEX", "3", RDMA, {}, "warning", "since 2.21"),
        ("NCCL_DMABUF_ENABLE", "0", RDMA, {}, "warning", "nvidia_peermem"),
        ("NCCL_NSOCKS_PERTHREAD", "4", {}, {}, "warning", "does nothing alone"),
        ("NCCL_SOCKET_NTHREADS", "16", {}, {"NCCL_NSOCKS_PERTHREAD": "8"}, "warning", "more than 64 sockets"),
        ("NCCL_BUFFSIZE", "4194304", EFA, {}, "warning", "EFA plugin"),
        ("NCCL_PROTO", "Simple", EFA, {}, "warning", "EFA plugin"),
        ("NCCL_TOPO_FILE", "/t.xml", EFA, {}, "warning", "EFA plugin"),
        ("NCCL_NET", "Libfabric", EFA, {}, "warning", "EFA plugin"),
        ("RDMAV_FORK_SAFE", "1", EFA, {}, "warning", "not to use"),
        ("NCCL_PROTO", "LL,LL128", {}, {}, "warning", "can corrupt data"),
        ("NCCL_ALGO", "Tree", {}, {}, "warning", "is fatal since 2.24"),
        ("NCCL_SOCKET_FAMILY", "AF_INET6", {}, {}, "warning", "is IPv4"),
        ("NCCL_SOCKET_FAMILY", "AF_INET", {"address": "fd00::1"}, {}, "warning", "is IPv6"),
        ("NCCL_RAS_ADDR", "0.0.0.0:28028", {}, {}, "warning", "opens the state of jobs"),
        ("NCCL_COMM_ID", "10.0.0.1:5000", {}, {}, "warning", "ignores NCCL_SOCKET_IFNAME"),
        ("NCCL_CONF_FILE", "/etc/other.conf", {}, {}, "info", "/etc/nccl.conf is read all the same"),
        ("NCCL_GRAPH_FILE", "/g.xml", {}, {}, "info", "undocumented"),
        ("NCCL_DEBUG", "INFO", {}, {}, "info", "for debugging"),
        ("TORCH_DISTRIBUTED_DEBUG", "detail", {}, {}, "warning", "adds a Gloo group"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False", {}, {}, "info", "torch's default"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", {}, {}, "warning", "sleep mode"),
        ("PYTORCH_ALLOC_CONF", "a:1", {}, {"PYTORCH_CUDA_ALLOC_CONF": "b:1"}, "warning", "is not read while"),
        ("TP_SOCKET_IFNAME", "eth0", {}, {}, "info", "torch.distributed.rpc only"),
        ("TOKENIZERS_PARALLELISM", "true", {}, {}, "info", "no network setting"),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1", {}, {}, "warning", "NaN"),
        ("MASTER_ADDR", "10.0.0.1", {}, {}, "warning", "torchrun, verl and Ray Train"),
        ("MASTER_PORT", "29500", {}, {}, "warning", "two jobs at a time collide"),
        ("PYTHONPATH", "/src", {}, {}, "warning", "belongs to a job"),
    ],
)  # fmt: skip
def test_harm(name, value, facts, beside, level, said):
    versions = {**RELEASES, "torch": "2.13.0"}
    seen, message = one(name, value, beside=beside, **{"versions": versions, **facts})
    assert seen == level
    assert said in message


@pytest.mark.parametrize(
    ("name", "value", "facts", "beside", "rendered"),
    [
        ("NCCL_P2P_DISABLE", "0", NVLINK, {}, {}),
        ("NCCL_IB_DISABLE", "1", {}, {}, {}),
        ("NCCL_IB_DISABLE", "0", RDMA, {}, {}),
        ("NCCL_IB_DISABLE", "1", {"plugins": True}, {"NCCL_NET": "Socket"}, {}),
        ("NCCL_IB_DISABLE", "1", {"plugins": True}, {}, {"NCCL_NET": "Socket"}),
        ("NCCL_IB_GID_INDEX", "3", {**RDMA, "versions": {"nccl": "2.20.5"}}, {}, {}),
        ("NCCL_ALGO", "Tree", {"versions": {"nccl": "2.23.4"}}, {}, {}),
        ("NCCL_NSOCKS_PERTHREAD", "4", {}, {"NCCL_SOCKET_NTHREADS": "4"}, {}),
        ("NCCL_SOCKET_NTHREADS", "16", {}, {"NCCL_NSOCKS_PERTHREAD": "4"}, {}),
        ("NCCL_PROTO", "^LL128", {}, {}, {}),
        ("NCCL_NET", "IB", RDMA, {}, {}),
        ("NCCL_NET", "Socket", {}, {}, {}),
    ],
)
def test_no_harm(name, value, facts, beside, rendered):
    assert found(name, value, beside=beside, rendered=rendered, **facts) == []


def test_harm_that_is_found_on_a_node_stops_too():
    assert one("NCCL_P2P_DISABLE", "1", "environment", **NVLINK)[0] == "error"


def test_job_variables_in_a_login_file_are_only_told():
    assert one("PYTHONPATH", "/src", "environment")[0] == "info"


def test_an_accepted_error_is_a_warning_that_says_so():
    level, message = one("NCCL_P2P_DISABLE", "1", accepted=["NCCL_P2P_DISABLE"], **NVLINK)
    assert level == "warning"
    assert message.endswith("Accepted in the inventory, so the run goes on")
    assert one("NCCL_P2P_DISABLE", "1", accepted=["NCCL_SHM_DISABLE"], **NVLINK)[0] == "error"


def test_the_guide_on_nvlink_is_refused_for_three_of_its_values_and_for_nothing_else():
    values = seed_values(CATALOGUE, "eth0", "10.0.0.1", "/src")
    assignments = [Assignment(name, value, "inventory", "profile seed", "node1") for name, value in values.items()]
    errors = {f.name for f in lint(assignments, {"node1": node(**NVLINK)}, CATALOGUE) if f.level == "error"}
    assert errors == {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_ASYNC_ERROR_HANDLING"}
    assert not [f for f in lint(assignments, {"node1": node()}, CATALOGUE) if f.level == "error"]


# ---------------------------------------------------------------- interfaces, adapters, addresses

MANY = {"interfaces": ["lo", "docker0", "br-1a2b3c", "eth0", "eth01", "ib0"]}


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [
        ("=eth0", "error", "not a list of whole interface names"),
        ("^lo", "error", "not a list of whole interface names"),
        ("eth0, lo", "error", "not a list of whole interface names"),
        ("eth", "error", "names eth, which is no interface of this node; the job fails at start"),
        ("eth", "error", "This node has eth0, eth01, but the whole name counts"),
        ("eth0,nope", "error", "names nope"),
        ("lo", "error", "loopback interface, which reaches no other node"),
        ("e", "warning", "is ignored"),
        ("ib0", "warning", "To move all of it, set cluster_interface instead. This node has eth0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["inventory", "environment"])
def test_gloo_interfaces(value, level, said, place):
    seen, message = one("GLOO_SOCKET_IFNAME", value, place, **MANY)
    assert seen == level
    assert said in message


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [
        ("=nope", "error", "matches no interface of this node, so NCCL fails at start"),
        ("enp", "error", "matches no interface of this node"),
        ("= eth0", "error", "blanks count as part of a name"),
        ("=lo", "error", "loopback"),
        ("^docker,lo,eth,ib,br-", "error", "excludes every interface"),
        ("eth0", "warning", "matches more than it names, since names are prefixes, and NCCL takes the first"),
        ("^docker", "warning", "a list after '^' takes the place of NCCL's own exclusions"),
        ("=eth0,ib0", "warning", "matches several interfaces"),
        ("=eth0, nope", "warning", "has blanks"),
        ("=ib0", "warning", "leaves the interface that carries the cluster"),
        ("=" + ",".join(["eth0", *(f"no{number}" for number in range(16))]), "warning", "names 17 interfaces; NCCL reads the first 16"),
        ("e", "warning", "is ignored"),
    ],
)  # fmt: skip
def test_nccl_interfaces(value, level, said):
    seen, message = one("NCCL_SOCKET_IFNAME", value, **MANY)
    assert seen == level
    assert said in message


@pytest.mark.parametrize("value", ["=eth0", "=enp157s0f0np0,eth0", "=eth0:5000", "^docker,lo,br-", "ib,eth0"])
def test_nccl_interfaces_that_are_right_or_another_nodes_too(value):
    notes = [f.message for f in found("NCCL_SOCKET_IFNAME", value, interfaces=["lo", "docker0", "eth0"])]
    assert notes == []


def test_a_single_node_may_use_its_loopback_interface():
    alone = {"nodes": 1, "interface": "lo", "interfaces": ["lo"]}
    assert found("GLOO_SOCKET_IFNAME", "lo", **alone) == found("NCCL_SOCKET_IFNAME", "=lo", **alone) == []


@pytest.mark.parametrize(
    ("value", "facts", "level", "said"),
    [
        ("=mlx5_9", RDMA, "error", "matches no active RDMA port of this node, and NCCL falls back to TCP"),
        ("=mlx5_0:2", RDMA, "error", "This node has mlx5_0:1, mlx5_1:1, mlx5_10:1"),
        ("=mlx5_0", {}, "warning", "matches no active RDMA port"),
        ("=mlx5_0,mlx5_9", RDMA, "error", "names mlx5_9, which this node lacks or which is not active"),
        ("mlx5_0,mlx5_9", RDMA, "warning", "names mlx5_9, which this node lacks or which is not active"),
        ("=mlx5_9", {**RDMA, "gpus": 0, "rdma_ports": []}, "warning", "matches no active RDMA port"),
        ("mlx5_1", RDMA, "warning", "matches by prefix mlx5_10 too"),
        ("=mlx5_0" + ",mlx5_0" * 32, RDMA, "warning", "NCCL reads the first 32"),
    ],
)
def test_adapters(value, facts, level, said):
    seen, message = one("NCCL_IB_HCA", value, **facts)
    assert seen == level
    assert said in message


@pytest.mark.parametrize("value", ["=mlx5_0", "=mlx5_0:1,mlx5_1:1", "^mlx5_0", "mlx5", "=mlx5_0:1:0:0"])
def test_adapters_that_are_there(value):
    assert found("NCCL_IB_HCA", value, **RDMA) == []


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [
        ("10.0.0.9", "error", "is not an address of this node"),
        ("172.17.0.1", "warning", "is not the address by which Ray knows this node"),
    ],
)
def test_vllm_host_ip(value, level, said):
    seen, message = one("VLLM_HOST_IP", value, "environment")
    assert seen == level
    assert said in message


# ---------------------------------------------------------------- who wins


@pytest.mark.parametrize(
    ("name", "value", "place", "where", "rendered", "warned"),
    [
        ("NCCL_SOCKET_IFNAME", "=eth1", "environment", None, {}, True),
        ("NCCL_SOCKET_IFNAME", "=eth0", "environment", None, {}, False),
        ("NCCL_NET", "Socket", "environment", None, {"NCCL_NET": "IB"}, True),
        ("NCCL_NET", "Socket", "environment", None, {"NCCL_NET": "Socket"}, False),
        ("NCCL_NET", "Socket", "environment", None, {}, False),
        ("NCCL_NET", "Socket", "nccl_conf", "/home/ray/.nccl.conf line 1", {"NCCL_NET": "IB"}, True),
        ("NCCL_NET", "Socket", "nccl_conf", "/etc/nccl.conf line 9", {"NCCL_NET": "IB"}, False),
        ("NCCL_NET", "Socket", "inventory", None, {"NCCL_NET": "IB"}, False),
        ("GLOO_SOCKET_IFNAME", "eth1", "environment", None, {"GLOO_SOCKET_IFNAME": "eth0"}, False),
    ],
)
def test_a_value_on_the_node_that_beats_nccl_conf(name, value, place, where, rendered, warned):
    findings = found(name, value, place, where=where, rendered=rendered, interfaces=["lo", "eth0", "eth1"])
    assert any("wins over the value of /etc/nccl.conf" in f.message for f in findings if f.level == "warning") is warned


def test_a_value_on_the_node_is_compared_with_the_inventorys():
    assignments = [
        Assignment("NCCL_IB_TC", "106", "inventory", "network_env_extra", "node1"),
        Assignment("NCCL_IB_TC", "104", "environment", "/etc/environment line 3", "node1"),
    ]
    [finding] = lint(assignments, {"node1": node()}, CATALOGUE)
    assert "wins over" in finding.message
    assert "NCCL_IB_TC=106" in finding.message


# ---------------------------------------------------------------- the cluster


def cluster(settings, place="inventory", rendered=None, **facts):
    """Findings for {host: {name: value}}; a host's facts may be given under its name."""
    contexts = {
        host: node(host, number, **{"nodes": len(settings), **facts.get(host, {})})
        for number, host in enumerate(settings, 1)
    }
    assignments = [
        Assignment(name, value, place, PLACES[place], host)
        for host, values in settings.items()
        for name, value in values.items()
    ]
    return lint(assignments, contexts, CATALOGUE, rendered=rendered)


def test_the_same_finding_on_several_hosts_is_one():
    wrong = {"NCCL_TIMEOUT_MS": "1"}
    [finding] = cluster({"node1": wrong, "node2": wrong, "node3": {}})
    assert finding.hosts == ("node1", "node2")
    assert finding.where == "network_env_extra"


def test_one_interface_for_the_whole_cluster_is_one_error_on_the_nodes_that_lack_it():
    same = {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}
    other = {"interfaces": ["lo", "enp1s0"], "interface": "enp1s0"}
    findings = cluster({"node1": same, "node2": same, "node3": same}, node2=other, node3=other)
    assert [(f.level, f.name, f.hosts) for f in findings] == [
        ("error", "GLOO_SOCKET_IFNAME", ("node2", "node3")),
        ("error", "NCCL_SOCKET_IFNAME", ("node2", "node3")),
    ]
    assert all("Leave it out: it is written for each node" in f.message for f in findings)


def test_one_address_for_the_whole_cluster_is_an_error_where_it_is_not_the_nodes():
    same = {"VLLM_HOST_IP": "10.0.0.1"}
    [finding] = cluster({"node1": same, "node2": same, "node3": same})
    assert (finding.level, finding.hosts) == ("error", ("node2", "node3"))
    assert "node2 has 10.0.0.2, 172.17.0.1; node3 has 10.0.0.3, 172.17.0.1" in finding.message


def test_an_address_that_every_node_has_is_an_error():
    same = {"VLLM_HOST_IP": "172.17.0.1"}
    findings = cluster({"node1": same, "node2": same}, "environment")
    assert [(f.level, f.hosts) for f in findings] == [("error", ("node1", "node2")), ("warning", ("node1", "node2"))]
    assert "must differ between nodes: 172.17.0.1 is set on node1, node2" in findings[0].message


def test_one_host_id_for_two_nodes_is_an_error():
    [finding] = cluster({"node1": {"NCCL_HOSTID": "a"}, "node2": {"NCCL_HOSTID": "a"}, "node3": {"NCCL_HOSTID": "b"}})
    assert (finding.level, finding.hosts) == ("error", ("node1", "node2"))


@pytest.mark.parametrize(("place", "level"), [("inventory", "error"), ("environment", "warning")])
def test_a_cluster_wide_variable_must_be_equal_and_the_odd_one_is_named(place, level):
    findings = cluster(
        {"node1": {"NCCL_BUFFSIZE": "1"}, "node2": {"NCCL_BUFFSIZE": "2"}, "node3": {"NCCL_BUFFSIZE": "1"}}, place
    )
    [finding] = findings
    assert (finding.level, finding.hosts) == (level, ("node2",))
    assert "but is 1 on node1, node3 and 2 on node2" in finding.message


def test_a_cluster_wide_variable_that_only_some_nodes_have_is_unequal():
    findings = cluster({"node1": {"NCCL_IB_TC": "106"}, "node2": {"NCCL_IB_TC": "106"}, "node3": {}})
    assert [f.hosts for f in findings] == [("node3",)]
    assert "106 on node1, node2 and unset on node3" in findings[0].message
    rendered = {"node3": {"NCCL_IB_TC": "106"}}
    assert (
        cluster({"node1": {"NCCL_IB_TC": "106"}, "node2": {"NCCL_IB_TC": "106"}, "node3": {}}, rendered=rendered) == []
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"node1": {"NCCL_DEBUG": "WARN"}, "node2": {}},  # does no harm when it differs
        {"node1": {"NCCL_IB_GID_INDEX": "3"}, "node2": {}},  # differs by nature
        {"node1": {"NCCL_BUFFSIZE": "1"}, "node2": {"NCCL_BUFFSIZE": "1"}},
    ],
)
def test_what_may_differ_or_does_not(settings):
    assert cluster(settings) == []


def test_gloo_needs_as_many_interfaces_on_every_node():
    both = {"interfaces": ["lo", "eth0", "eth1"]}
    [finding] = cluster(
        {"node1": {"GLOO_SOCKET_IFNAME": "eth0,eth1"}, "node2": {}, "node3": {"GLOO_SOCKET_IFNAME": "eth0"}}, node1=both
    )
    assert (finding.level, finding.hosts) == ("error", ("node1",))
    assert "chooses 2 on node1 and 1 on node2, node3" in finding.message


def test_nccl_needs_as_many_rdma_ports_on_every_node():
    [finding] = cluster(
        {"node1": {"NCCL_IB_HCA": "=mlx5_0,mlx5_1"}, "node2": {"NCCL_IB_HCA": "=mlx5_0,mlx5_1"}, "node3": {"NCCL_IB_HCA": "=mlx5_0"}},
        node1=RDMA, node2=RDMA, node3=RDMA,
    )  # fmt: skip
    assert (finding.level, finding.hosts) == ("error", ("node3",))
    assert "RDMA ports" in finding.message


def test_assignments_of_unknown_hosts_are_not_looked_at():
    assert lint([Assignment("NCCL_NOPE", "1", "inventory", "x", "elsewhere")], {"node1": node()}, CATALOGUE) == []


def test_a_node_of_which_nothing_is_known_is_not_accused():
    bare = {"node1": Context(host="node1")}
    assignments = [
        Assignment(name, value, "environment", "x", "node1")
        for name, value in {
            "NCCL_SOCKET_IFNAME": "=eth0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "VLLM_HOST_IP": "10.0.0.1",
        }.items()
    ]
    assert lint(assignments, bare, CATALOGUE) == []


# ---------------------------------------------------------------- for people


def test_findings_for_people():
    findings = [
        Finding("info", "C", "x", ("node1",), "C=1 is told"),
        Finding("warning", "B", "/etc/environment line 3", ("node1", "node2", "node3"), "B=1 does nothing. Remove it"),
        Finding("error", "A", "network_env_extra", ("node1", "node2", "node3", "node4"), "A=1 breaks. Remove it."),
    ]
    assert render_findings(findings, ["node1", "node2", "node3", "node4"]).splitlines() == [
        "ERROR network_env_extra (all 4 nodes): A=1 breaks. Remove it.",
        "WARNING /etc/environment line 3 (node1, node2, node3): B=1 does nothing. Remove it.",
        "INFO x (node1): C=1 is told.",
    ]
    assert "(node1, node2, node3, node4)" in render_findings(findings)
    assert render_findings([]) == ""


def test_many_hosts_are_counted():
    hosts = tuple(f"node{number}" for number in range(1, 13))
    text = render_findings([Finding("error", "A", "x", hosts, "A=1")], [*hosts, "node13"])
    assert "node8 and 4 more" in text
    assert "node9" not in text


def test_errors_come_first():
    findings = cluster({"node1": {"NCCL_TIMEOUT_MS": "1", "NCCL_DEBUG": "INFO", "NCCL_NOPE": "1"}})
    assert [f.level for f in findings] == ["error", "warning", "info"]
