# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from ansible_collections.metalray.cluster.plugins.module_utils import _env_catalogue, _env_lint
from ansible_collections.metalray.cluster.plugins.module_utils._env_catalogue import (
    CatalogueError,
    load,
    release,
    seed_values,
)

FILES = Path(__file__).resolve().parents[2] / "roles/network_env/files"
TREE = yaml.safe_load((FILES / "variables.yml").read_text())


@pytest.fixture(scope="module")
def catalogue():
    return load(FILES)


class Data:
    """A copy of the catalogue's files to change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("variables.yml", "nccl_names.csv"):
            shutil.copy(FILES / name, path / name)
        self.tree = copy.deepcopy(TREE)

    def entry(self, name):
        return next(entry for entry in self.tree["variables"] if entry["name"] == name)

    def load(self):
        (self.path / "variables.yml").write_text(json.dumps(self.tree))  # JSON is YAML, and quick to write
        return load(self.path)


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def test_every_field_of_the_audit_is_there(catalogue):
    assert len(catalogue.variables) >= 93
    for variable in catalogue.variables.values():
        assert variable.source
        assert set(variable.use) == {"ethernet", "infiniband", "roce"}
        assert variable.syntax or variable.status == "never_existed"


def test_variables_and_names_of_nccl_agree(catalogue):
    for variable in catalogue.variables.values():
        if variable.product != "nccl":
            continue
        entry = catalogue.nccl_names[variable.name]
        assert entry.last == (variable.until or ""), variable.name
        # The list starts with the oldest source there is; documents know of older releases.
        assert variable.since == entry.first or release(variable.since) < release(entry.first) == (2, 3, 5), (
            variable.name
        )


def test_every_condition_of_the_data_is_one_that_the_lint_can_judge():
    assert set(_env_catalogue.CONDITIONS) == set(_env_lint.CONDITIONS)


def test_seed_is_the_guide_verbatim(catalogue):
    assert seed_values(catalogue, "enp27s0f0np0", "10.15.22.9", "/mnt/shared/src/rllm") == {
        "GLOO_SOCKET_IFNAME": "enp27s0f0np0",
        "NCCL_SOCKET_IFNAME": "enp27s0f0np0",
        "MASTER_ADDR": "10.15.22.9",
        "MASTER_PORT": "29500",
        "TP_SOCKET_IFNAME": "enp27s0f0np0",
        "GLOO_SKIP_DEVICE_INTERFACES": "lo",
        "GLOO_USE_IPV4": "1",
        "GLOO_TIMEOUT_MS": "60000",
        "NCCL_IB_DISABLE": "1",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_TREE_THRESHOLD": "0",
        "NCCL_NET_GDR_LEVEL": "0",
        "NCCL_CROSS_NIC": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_TIMEOUT_MS": "1800000",
        "NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
        "NCCL_DEBUG": "WARN",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONPATH": "/mnt/shared/src/rllm:/mnt/shared/src/rllm/external/rllm",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
        "VLLM_USE_V1": "1",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_ENGINE_ITERATION_TIMEOUT_S": "100000000000",
    }


@pytest.mark.parametrize(
    ("name", "version", "known"),
    [
        ("NCCL_TREE_THRESHOLD", "2.4.8", True),
        ("NCCL_TREE_THRESHOLD", "2.5.6", False),
        ("NCCL_TREE_THRESHOLD", None, False),
        ("NCCL_IGNORE_NET_MISMATCH", "2.28.9", False),
        ("NCCL_IGNORE_NET_MISMATCH", "2.30.3", True),
        ("NCCL_IGNORE_NET_MISMATCH", None, True),
        ("NCCL_IGNORE_NET_MISMATCH", "2.99.0", True),
        ("NCCL_DEBUG", "2.0.5", True),  # the first release of the list may not be the first that has it
        ("NCCL_MLOPART_RDMA_ENABLE", "2.31.2", True),
        ("NCCL_MLOPART_RDMA_ENABLE", "2.32.3", False),
        ("NCCL_IB_RAIL_POLICY", "2.31.2", False),
        ("NCCL_IB_RAIL_POLICY", "2.32.3", True),
        ("NCCL_NO_SUCH_THING", "2.28.9", None),
        ("GLOO_SOCKET_IFNAME", "2.28.9", None),
    ],
)
def test_known_in(catalogue, name, version, known):
    assert catalogue.known_in(name, version) is known


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("NCCL_SOCKET_IFNAMES", "NCCL_SOCKET_IFNAME"),
        ("NCCL_SOCKET_IF_NAME", "NCCL_SOCKET_IFNAME"),
        ("nccl_debug", "NCCL_DEBUG"),
        ("GLOO_IFNAME", "GLOO_SOCKET_IFNAME"),
        ("NCCL_HEARTBEAT_TIMEOUT_SEC", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"),
        ("NCCL_HARTBEAT_TIMEOUT_SEC", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"),
        ("NCCL_TREE_THRESHOLDS", "NCCL_THREAD_THRESHOLDS"),  # never one that is gone
        ("NCCL_QQQQQQ", None),
    ],
)
def test_closest(catalogue, name, closest):
    assert catalogue.closest(name) == closest


@pytest.mark.parametrize(
    "name",
    ["NCCL_FASTRAK_IFNAME", "NCCL_GPUDIRECTTCPX_CTRL_DEV", "NCCL_SHARP_DISABLE", "NCCL_UCX_TLS", "OFI_NCCL_PROTOCOL", "NCCL_VERSION"],
)  # fmt: skip
def test_names_of_other_programs_are_known(catalogue, name):
    assert catalogue.foreign(name)
    assert catalogue.known(name)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("2.28.9", (2, 28, 9)), ("2.11.0+cu130", (2, 11)), ("2.4.0a0", (2, 4)), ("2.5", (2, 5)), ("0.33.0", (0, 33))],
)
def test_release(text, parsed):
    assert release(text) == parsed


def test_release_refuses_what_is_none():
    with pytest.raises(ValueError, match="'unknown' is not a release"):
        release("unknown")


def test_a_new_variable_is_a_change_of_data(data):
    assert data.load().get("NCCL_WARP_DRIVE") is None
    data.tree["nccl_newest"] = "2.40.1"
    data.tree["variables"].append(
        {
            "name": "NCCL_WARP_DRIVE",
            "component": "nccl",
            "since": "2.40.1",
            "syntax": {"kind": "integer", "min": 0, "max": 9},
            "verdict": "optional",
            "scope": "cluster",
            "harm": [{"values": ["9"], "when": ["nvlink"], "level": "error", "why": "melts the node"}],
            "source": "a test",
        }
    )
    with (data.path / "nccl_names.csv").open("a") as handle:
        handle.write("NCCL_WARP_DRIVE,core,2.40.1,,0,a test\n")
    catalogue = data.load()
    assert catalogue.known_in("NCCL_WARP_DRIVE", "2.40.1") is True
    assert catalogue.known_in("NCCL_WARP_DRIVE", "2.32.3") is False

    def findings(value, **known):
        context = _env_lint.Context(host="node1", nvlink="all", gpus=8, versions={"nccl": "2.40.1", **known})
        setting = _env_lint.Assignment("NCCL_WARP_DRIVE", value, "inventory", "network_env_extra", "node1")
        return [
            (finding.level, finding.message) for finding in _env_lint.lint([setting], {"node1": context}, catalogue)
        ]

    assert findings("1") == []
    assert findings("9") == [("error", "NCCL_WARP_DRIVE=9 melts the node. Remove it")]
    assert "0 to 9 is allowed" in findings("10")[0][1]
    assert "since 2.40.1, and this node has 2.28.9" in findings("1", nccl="2.28.9")[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "gone"}, "variables.yml: NCCL_DEBUG: status is 'gone', it must be one of active, deprecated"),
        ({"scope": None}, "variables.yml: NCCL_DEBUG: scope is None"),
        ({"since": 2.3}, "variables.yml: NCCL_DEBUG: since is 2.3, it must be a text"),
        ({"since": "long ago"}, "variables.yml: NCCL_DEBUG: since is 'long ago', it must be a release"),
        ({"sinze": "2.3"}, "variables.yml: NCCL_DEBUG: sinze is not a field"),
        ({"use": {"ethernet": "x"}}, "variables.yml: NCCL_DEBUG: use is"),
        ({"syntax": None}, "variables.yml: NCCL_DEBUG: syntax is missing"),
        ({"syntax": {"kind": "number"}}, "variables.yml: NCCL_DEBUG: syntax: kind is 'number'"),
        ({"syntax": {"kind": "integer", "min": "1"}}, "variables.yml: NCCL_DEBUG: syntax: min is '1', it must be a whole number"),
        ({"syntax": {"kind": "enum"}}, "variables.yml: NCCL_DEBUG: syntax: values is"),
        ({"syntax": {"kind": "interfaces"}}, "variables.yml: NCCL_DEBUG: syntax: reader is missing"),
        ({"harm": [{"level": "fatal", "why": "x"}]}, "variables.yml: NCCL_DEBUG: harm 1: level is 'fatal'"),
        ({"harm": [{"level": "error"}]}, "variables.yml: NCCL_DEBUG: harm 1: why is missing"),
        ({"harm": [{"level": "error", "why": "x", "when": ["rain"]}]}, "variables.yml: NCCL_DEBUG: harm 1: when is 'rain'"),
        ({"harm": [{"level": "error", "why": "x", "values": [1]}]}, "variables.yml: NCCL_DEBUG: harm 1: values is 1"),
        ({"harm": [{"level": "error", "why": "x", "matches": "("}]}, "variables.yml: NCCL_DEBUG: harm 1: matches is '('"),
        ({"harm": [{"level": "error", "why": "x", "times": "NCCL_ALGO"}]}, "times and above belong together"),
        ({"harm": [{"level": "error", "why": "x", "releases": {"nccl": "2.21"}}]}, "harm 1: releases.nccl is '2.21'"),
        ({"harm": [{"level": "error", "why": "x", "with": {"NCCL_NOPE": "1"}}]}, "NCCL_DEBUG: harm names NCCL_NOPE, which is not in"),
        ({"status": "renamed", "removed": "2.4"}, "NCCL_DEBUG: replacement is missing, and the status is renamed"),
        ({"status": "renamed", "removed": "2.4", "replacement": "NCCL_NOPE"}, "NCCL_DEBUG: replacement is 'NCCL_NOPE'"),
        ({"status": "removed"}, "variables.yml: NCCL_DEBUG: removed is missing, and the status is removed"),
        ({"name": "NCCL_ALGO"}, "variables.yml: NCCL_ALGO: name is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_one_message_with_file_name_and_field(data, change, message):
    data.entry("NCCL_DEBUG").update(change)
    with pytest.raises(CatalogueError) as caught:
        data.load()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("NCCL_X,core,new,,,", "nccl_names.csv: NCCL_X: first is 'new', it must be a release"),
        ("NCCL_X,core,2.5.6,2.4.2,,", "nccl_names.csv: NCCL_X: last is '2.4.2', it must not come before first (2.5.6)"),
        ("NCCL_X,core,2.99.1,,,", "nccl_names.csv: NCCL_X: first is 2.99.1, it must not be newer than nccl_newest"),
        ("NCCL_X,toy,2.5.6,,,", "nccl_names.csv: NCCL_X: kind is 'toy', it must be one of core, example"),
        ("NCCL_DEBUG,core,2.5.6,,,", "nccl_names.csv: NCCL_DEBUG: name is there twice"),
        ("NCCL_X,core", "first is missing"),
    ],
)
def test_a_wrong_name_is_one_message(data, line, message):
    with (data.path / "nccl_names.csv").open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(CatalogueError) as caught:
        data.load()
    assert message in str(caught.value)


def test_files_that_cannot_be_read_are_one_message(tmp_path):
    with pytest.raises(CatalogueError, match="cannot be read"):
        load(tmp_path)
    for name in ("variables.yml", "nccl_names.csv"):
        (tmp_path / name).write_text("a: [")
    with pytest.raises(CatalogueError, match="cannot be read"):
        load(tmp_path)
