# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._nccl_env import (
    EnvError,
    decide,
    render_environment,
    render_nccl,
    with_extra,
)


def test_gloo_gets_the_exact_name_and_nccl_an_exact_match():
    process, nccl = decide("enp27s0f0np0", "10.0.0.1")
    assert process == {"GLOO_SOCKET_IFNAME": "enp27s0f0np0", "VLLM_HOST_IP": "10.0.0.1"}
    assert nccl == {"NCCL_SOCKET_IFNAME": "=enp27s0f0np0", "NCCL_SOCKET_FAMILY": "AF_INET"}
    assert decide("ib0", "2001:db8::1")[1]["NCCL_SOCKET_FAMILY"] == "AF_INET6"


def test_nothing_that_switches_nvlink_or_shared_memory_off():
    process, nccl = decide("eth0", "10.0.0.1")
    assert not {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_ASYNC_ERROR_HANDLING"} & {*process, *nccl}


def test_nccl_s_file_is_literal_and_keeps_other_people_s_lines():
    first = render_nccl({"NCCL_SOCKET_IFNAME": "=eth0"}, "NCCL_DEBUG=INFO\n# mine\n")
    assert first.splitlines()[1] == "NCCL_SOCKET_IFNAME==eth0"
    assert first.endswith("NCCL_DEBUG=INFO\n# mine\n")
    # NCCL keeps the first value that it reads.
    assert first.index("NCCL_SOCKET_IFNAME") < first.index("NCCL_DEBUG")
    assert render_nccl({"NCCL_SOCKET_IFNAME": "=eth0"}, first) == first
    assert "eth0" not in render_nccl({"NCCL_SOCKET_IFNAME": "=eth1"}, first)


def test_extra_variables_go_to_the_file_that_reads_them_and_win():
    process, nccl = with_extra({"A": "1"}, {"NCCL_X": "1"}, {"NCCL_X": "2", "A": "3", "TORCH_Y": "4"})
    assert process == {"A": "3", "TORCH_Y": "4"} and nccl == {"NCCL_X": "2"}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"WANDB_API_KEY": "x"}, "secrets.env"),
        ({"HF_TOKEN": "x"}, "secrets.env"),
        ({"A B": "x"}, "not a name"),
        ({"export A": "x"}, "not a name"),
        ({"A": "x\ny"}, "spans lines"),
    ],
)
def test_refuses_secrets_and_what_is_not_a_variable(extra, says):
    with pytest.raises(EnvError, match=says):
        with_extra({}, {}, extra)


@pytest.mark.parametrize("value", ["plain", "two words", 'a "quoted" $HOME `id` \\ end', "", "x#y", "a'b"])
def test_a_shell_reads_what_was_meant(tmp_path, value):
    path = tmp_path / "cluster.env"
    path.write_text(render_environment({"VALUE": value}))
    seen = subprocess.run(
        ["sh", "-c", f'. {path}; printf "%s" "$VALUE"'], capture_output=True, text=True, check=True
    ).stdout
    assert seen == value


def test_the_module_writes_three_files_and_refuses_a_foreign_address(run_module, tmp_path):
    loopback = json.loads(
        subprocess.run(["ip", "-j", "address", "show", "dev", "lo"], capture_output=True, text=True, check=True).stdout
    )
    address = loopback[0]["addr_info"][0]["local"]
    paths = {f"{name}_path": str(tmp_path / name) for name in ("environment", "nccl", "profile")}
    result = run_module("nccl_env", interface="lo", address=address, extra={"NCCL_DEBUG": "WARN"}, **paths)
    assert result["changed"] and len(result["paths"]) == 3
    assert "NCCL_DEBUG=WARN\n" in (tmp_path / "nccl").read_text()
    assert not run_module("nccl_env", interface="lo", address=address, extra={"NCCL_DEBUG": "WARN"}, **paths)["changed"]

    shell = f". {tmp_path}/profile; printenv GLOO_SOCKET_IFNAME"
    assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout == "lo\n"

    foreign = run_module("nccl_env", interface="lo", address="192.0.2.1", **paths)
    assert foreign["failed"] and "does not carry 192.0.2.1" in foreign["msg"] and address in foreign["msg"]
    absent = run_module("nccl_env", interface="no-such-device", address="192.0.2.1", **paths)
    assert absent["failed"] and "does not exist" in absent["msg"]
