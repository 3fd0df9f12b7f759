# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._nccl_env import (
    EnvError,
    absent_ports,
    as_text,
    render_environment,
    render_nccl,
    split,
    with_extra,
)


def test_nccl_s_file_is_literal_and_keeps_other_people_s_lines():
    first = render_nccl({"NCCL_SOCKET_IFNAME": "=eth0"}, "NCCL_DEBUG=INFO\n# mine\n")
    assert first.splitlines()[1] == "NCCL_SOCKET_IFNAME==eth0"
    assert first.endswith("NCCL_DEBUG=INFO\n# mine\n")
    # NCCL keeps the first value that it reads.
    assert first.index("NCCL_SOCKET_IFNAME") < first.index("NCCL_DEBUG")
    assert render_nccl({"NCCL_SOCKET_IFNAME": "=eth0"}, first) == first
    assert "eth0" not in render_nccl({"NCCL_SOCKET_IFNAME": "=eth1"}, first)
    # Nothing to say: no block, and no file where nobody else has lines in it.
    assert render_nccl({}, first) == "NCCL_DEBUG=INFO\n# mine\n"
    assert render_nccl({}, render_nccl({"NCCL_SOCKET_IFNAME": "=eth0"}, "")) == ""


def test_extra_variables_go_to_the_file_that_reads_them_and_win():
    variables = with_extra({"A": "1", "NCCL_X": "1"}, {"NCCL_X": 2, "A": 1.5, "TORCH_Y": "4", "B": ""})
    process, nccl = split(variables, lambda name: name.startswith("NCCL_"))
    assert process == {"A": "1.5", "TORCH_Y": "4", "B": ""} and nccl == {"NCCL_X": "2"}


def test_null_takes_a_variable_away():
    assert with_extra({"A": "1", "B": "1"}, {"A": None, "C": None}) == {"B": "1"}


def test_a_key_that_is_no_secret():
    assert as_text("NCCL_IB_PKEY", 1) == "1"


def test_ports_that_are_gone():
    ports = [
        {"device": "mlx5_0", "port": 1, "active": True},
        {"device": "mlx5_1", "port": 1, "active": False},
    ]
    assert absent_ports("=mlx5_0:1", ports) == [] == absent_ports("=mlx5_0", ports)
    assert absent_ports("=mlx5_0:1,mlx5_1:1,mlx5_2:1", ports) == ["mlx5_1:1", "mlx5_2:1"]
    # A prefix, an exclusion, and no setting at all are NCCL's own business.
    assert absent_ports("mlx5_7", ports) == absent_ports("^=mlx5_7", ports) == absent_ports("", ports) == []


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"WANDB_API_KEY": "x"}, "secrets.env"),
        ({"HF_TOKEN": "x"}, "secrets.env"),
        ({"A B": "x"}, "not a name"),
        ({"export A": "x"}, "not a name"),
        ({"É": "x"}, "'É' is not a name"),
        ({1: "x"}, "'1' is not a name"),
        ({True: "x"}, "'True' is not a name"),
        ({"A": "x\ny"}, "value of A spans lines"),
        ({"A": "x\0"}, "control characters"),
        ({"A": True}, 'value of A is the truth value true.* Write "1"'),
        ({"A": False}, 'the truth value false.* Write "0"'),
        ({"A": [1, 2]}, r"value of A is \[1, 2\]; a text or a number"),
        ({"A": {"b": 1}}, "value of A is {'b': 1}; a text or a number"),
    ],
)
def test_refuses_secrets_and_what_is_not_a_variable(extra, says):
    with pytest.raises(EnvError, match=says):
        with_extra({}, extra)


@pytest.mark.parametrize(
    "value", ["plain", "two words", "é ü", "a\tb", "~", "*", 'a "quoted" $HOME `id` \\ end', "", "x#y", "a'b"]
)
def test_a_shell_reads_what_was_meant(tmp_path, value):
    path = tmp_path / "cluster.env"
    path.write_text(render_environment({"VALUE": value}))
    seen = subprocess.run(
        ["sh", "-c", f'. {path}; printf "%s" "$VALUE"'], capture_output=True, text=True, check=True
    ).stdout
    assert seen == value


@pytest.fixture
def write(run_module, tmp_path):
    """The module on this machine's loopback device, its files in a directory of their own."""
    loopback = json.loads(
        subprocess.run(["ip", "-j", "address", "show", "dev", "lo"], capture_output=True, text=True, check=True).stdout
    )
    paths = {f"{name}_path": str(tmp_path / name) for name in ("environment", "nccl", "profile")}
    usual = {
        "interface": "lo",
        "address": loopback[0]["addr_info"][0]["local"],
        "environment": {"GLOO_SOCKET_IFNAME": "lo"},
    }
    return lambda **options: run_module("nccl_env", **{**usual, **paths, **options})


def test_the_module_writes_what_was_decided_once(write, tmp_path):
    result = write(nccl={"NCCL_DEBUG": "WARN"})
    assert result["changed"] and len(result["paths"]) == 3
    assert "NCCL_DEBUG=WARN\n" in (tmp_path / "nccl").read_text()
    assert not write(nccl={"NCCL_DEBUG": "WARN"})["changed"]

    shell = f". {tmp_path}/profile; printenv GLOO_SOCKET_IFNAME"
    assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout == "lo\n"

    # The GPUs are gone, and NCCL's file with them.
    assert write(check=True)["changed"] and (tmp_path / "nccl").exists()
    assert write()["changed"] and not (tmp_path / "nccl").exists()
    assert not write()["changed"]

    # Whatever the file says of adapters, over TCP none is used.
    assert write(nccl={"NCCL_IB_HCA": "=mlx5_77:1", "NCCL_NET": "Socket"})["changed"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"address": "192.0.2.1"}, "does not carry 192.0.2.1"),
        ({"interface": "no-such-device"}, "does not exist"),
        ({"nccl": {"NCCL_IB_HCA": "=mlx5_77:1"}}, "mlx5_77:1, and there is no such active RDMA port"),
        ({"environment": {"HF_TOKEN": "x"}}, "secrets.env"),
        ({"environment": {"A": True}}, "truth value true"),
        ({"nccl": {"NCCL_DEBUG": ["WARN"]}}, "a text or a number is allowed"),
    ],
)
def test_what_no_longer_holds_on_the_node_is_refused(write, tmp_path, options, says):
    result = write(**options)
    assert result["failed"] and says in result["msg"]
    assert list(tmp_path.iterdir()) == []
