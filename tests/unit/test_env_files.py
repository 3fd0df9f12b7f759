# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody set in a node's environment files, in the syntax of whoever reads each of them."""

from __future__ import annotations

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _env_files as files
from trees import FakeRoot


@pytest.fixture
def root(tmp_path):
    return FakeRoot(tmp_path)


def read(root, home="/home/ray"):
    return [
        (item["file"], item["line"], item["name"], item["value"])
        for item in files.read_environment_files(root.path, home)
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=1", {"A": "1"}),
        ("export A=1 B='2 3' C=\"4 $D\"", {"A": "1", "B": "2 3", "C": "4 $D"}),
        ("  A=1 ; export A  # why", {"A": "1"}),
        ("A=^docker,lo B==eth0", {"A": "^docker,lo", "B": "=eth0"}),
        ("declare -x A=1; typeset -gx B=2; readonly C=3", {"A": "1", "B": "2", "C": "3"}),
        ("if [ -n \"$X\" ]; then export A=1; else A=2; fi", {"A": "2"}),
        ("[ -e /dev/x ] && export A=1 || B=2", {"A": "1", "B": "2"}),
        ("export A=\"$(ip -o route get 8.8.8.8 | awk '{print $5}')\"", {"A": "$(ip -o route get 8.8.8.8 | awk '{print $5}')"}),
        ("A=$(hostname -I) B=`id -u` C=${D:-x y}", {"A": "$(hostname -I)", "B": "`id -u`", "C": "${D:-x y}"}),
        ("A=a#b B=\"#\" #C=1", {"A": "a#b", "B": "#"}),
        ("A=x\\ y B=\"\\\"q\\\"\" C=''", {"A": "x y", "B": '"q"', "C": ""}),
        ("A=1 python train.py", {}),
        ("unset A; export A; echo A=1", {}),
        ("echo 'export A=1'", {}),
        ("A='open", {}),
        ("A=1 >/dev/null", {"A": "1"}),
        ("(A=1)", {"A": "1"}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_a_shell_would_keep(line, expected):
    assert {name: value for _line, name, value in files.parse_shell(line)} == expected


def test_lines_that_go_on_count_from_their_first():
    assert list(files.parse_shell("# x\nexport A=1 \\\n  B=2\nC=3\n")) == [(2, "A", "1"), (2, "B", "2"), (4, "C", "3")]


def test_the_syntax_of_pam_and_of_systemd():
    text = "# NCCL_X=1\nexport NCCL_DEBUG=INFO\nNCCL_NET=\"Socket\"\nNCCL_ALGO='Ring' # why\nno assignment\n"
    assert list(files.parse_pam(text)) == [
        (2, "NCCL_DEBUG", "INFO"),
        (3, "NCCL_NET", "Socket"),
        (4, "NCCL_ALGO", "Ring"),
    ]
    unit = "[Manager]\n#DefaultEnvironment=A=0\nDefaultEnvironment=A=1 \"B=2 3\" 'C=4'\n[Service]\nEnvironment = D=5 \\\n E=6\n"
    assert list(files.parse_unit(unit)) == [(3, "A", "1"), (3, "B", "2 3"), (3, "C", "4"), (5, "D", "5"), (5, "E", "6")]
    assert list(files.parse_environment_d('# a\nA="1 2"\n B=3\n;\n')) == [(2, "A", "1 2"), (3, "B", "3")]


NCCL_CONF = """\
# BEGIN metalray.cluster
NCCL_SOCKET_IFNAME==eth0
# a comment inside
NCCL_DEBUG=WARN
# END metalray.cluster
export NCCL_DEBUG=INFO
 NCCL_NET = "Socket"
NCCL_IB_HCA==mlx5_0,mlx5_1 # note
#NCCL_ALGO=Ring
GLOO_SOCKET_IFNAME=eth0
unknown
"""


def test_nccl_s_own_file_is_taken_literally_and_our_block_is_left_out(root):
    root.write("/etc/nccl.conf", NCCL_CONF).write("/home/ray/.nccl.conf", "NCCL_DEBUG=TRACE")
    assert read(root) == [
        ("/etc/nccl.conf", 6, "export NCCL_DEBUG", "INFO"),
        ("/etc/nccl.conf", 7, " NCCL_NET ", ' "Socket"'),
        ("/etc/nccl.conf", 8, "NCCL_IB_HCA", "=mlx5_0,mlx5_1 # note"),
        ("/etc/nccl.conf", 10, "GLOO_SOCKET_IFNAME", "eth0"),
        ("/home/ray/.nccl.conf", 1, "NCCL_DEBUG", "TRACE"),
    ]


def test_every_place_is_looked_at(root):
    places = [
        "/etc/environment",
        "/etc/environment.d/50-a.conf",
        "/etc/profile",
        "/etc/profile.d/nccl.sh",
        "/etc/bash.bashrc",
        "/home/ray/.profile",
        "/home/ray/.bash_profile",
        "/home/ray/.bash_login",
        "/home/ray/.bashrc",
        "/home/ray/.zshenv",
    ]
    for path in places:
        root.write(path, "NCCL_P2P_DISABLE=1")
    units = [
        ("/etc/systemd/system.conf", "DefaultEnvironment"),
        ("/etc/systemd/system.conf.d/a.conf", "DefaultEnvironment"),
        ("/etc/systemd/system/metalray-ray.service", "Environment"),
        ("/etc/systemd/system/metalray-ray.service.d/override.conf", "Environment"),
    ]
    for path, setting in units:
        root.write(path, f"[X]\n{setting}=NCCL_P2P_DISABLE=1")
    # Ours, of other services, of other shells, of nobody.
    for path in ("/etc/metalray/cluster.env", "/etc/profile.d/metalray.sh", "/etc/profile.d/x.csh", "/root/.bashrc"):
        root.write(path, "NCCL_P2P_DISABLE=1")
    root.write("/etc/systemd/system/other.service", "Environment=NCCL_P2P_DISABLE=1")
    assert sorted(path for path, *_rest in read(root)) == sorted([*places, *(path for path, _setting in units)])
    assert {tuple(rest) for _path, _line, *rest in read(root)} == {("NCCL_P2P_DISABLE", "1")}
    assert not any(path.startswith("/home") for path, *_rest in read(root, home=""))


def test_only_variables_that_concern_the_fabric_and_never_a_secret(root):
    root.write(
        "/etc/environment",
        "PATH=/bin\nHOST_IP=1.2.3.4\nMASTER_ADDR=n1\nMASTER_PORT=1\nMASTER_KEY=2\nTP_SOCKET_IFNAME=a\nTP_OTHER=b\n"
        "NCCL_IB_PKEY=1\nVLLM_API_KEY=s3cret\nTORCH_HUB_TOKEN=s3cret\nUCX_TLS=tcp\nFI_PROVIDER=efa\nPYTORCH_ALLOC_CONF=x\n"
        "OFI_NCCL_PROTOCOL=RDMA\nRDMAV_FORK_SAFE=1\nVLLM_MAX_TOKENS_PER_EXPERT=5\nNCCL_MY_PASSWORD=s3cret\nXNCCL_DEBUG=1\n"
        "TORCH_client_secret=s3cret\nGLOO_X=1",
    )
    assert [name for _path, _line, name, _value in read(root)] == [
        "HOST_IP", "MASTER_ADDR", "MASTER_PORT", "TP_SOCKET_IFNAME", "NCCL_IB_PKEY", "UCX_TLS", "FI_PROVIDER",
        "PYTORCH_ALLOC_CONF", "OFI_NCCL_PROTOCOL", "RDMAV_FORK_SAFE", "VLLM_MAX_TOKENS_PER_EXPERT", "GLOO_X",
    ]  # fmt: skip


def test_what_cannot_be_read_is_passed_over(root):
    root.write("/etc/environment", b"NCCL_DEBUG=INFO\0\x01\x02")
    root.write("/etc/profile", b"NCCL_DEBUG_FILE=/tmp/\xff\n")
    (root.root / "etc/nccl.conf").mkdir()
    (root.root / "home/ray").mkdir(parents=True)
    (root.root / "home/ray/.bashrc").symlink_to("/dev/null")
    (root.root / "home/ray/.profile").symlink_to("gone")
    assert read(root) == [("/etc/profile", 1, "NCCL_DEBUG_FILE", "/tmp/\ufffd")]
