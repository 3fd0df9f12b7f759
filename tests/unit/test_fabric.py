# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's fabric is, from trees as real machines show them and nvidia-smi's own output."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _fabric as fabric
from ansible_collections.metalray.cluster.plugins.module_utils._tree import Tree
from trees import FakeRoot

# As nvidia-smi 580 prints it into a pipe, escape codes and all.
TOPO = """\
\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\t0-31\t0\t\tN/A
GPU1\tNV18\t X \t0-31\t0\t\tN/A

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks
"""
P2P = """\
 \t\x1b[4mGPU0\tGPU1\t\x1b[0m
 GPU0\tX\tOK\t
 GPU1\tOK\tX\t

Legend:

  X    = Self
  OK   = Status Ok
  U    = Unknown
"""
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@)\nGCC version: gcc 15"
)
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024"


class Smi:
    """nvidia-smi with given answers; remembers how it was called."""

    def __init__(self, *answers: str | tuple[int, str, str]) -> None:
        self.answers, self.calls = list(answers), []

    def __call__(self, argv, seconds):
        self.calls.append((list(argv), seconds))
        answer = self.answers[len(self.calls) - 1]
        return (0, answer, "") if isinstance(answer, str) else answer


def never(argv, seconds):
    raise AssertionError(f"{argv} must not be run")


@pytest.fixture
def root(tmp_path):
    return FakeRoot(tmp_path)


@pytest.fixture
def guest(root):
    """A virtual machine with two H200 and a virtio network card, as captured: one host bridge, no NUMA node told."""
    for slot in ("06", "07"):
        root.gpu("pci0000:00", f"0000:00:{slot}.0")
    root.pci("pci0000:00", "0000:00:03.0", vendor="0x1af4", kind="0x020000", driver="virtio-pci")
    root.net("eth0", "/sys/devices/pci0000:00/0000:00:03.0/virtio2", driver="virtio_net", mtu=1400)
    root.net("ifb0", operstate="down", carrier="", speed="")
    root.net("lo", operstate="unknown", type=772, mtu=65536, speed="")
    root.write("/proc/driver/nvidia/version", OPEN).write("/proc/sys/kernel/osrelease", "6.18.44-gpu")
    (root.root / "proc/driver/nvidia/capabilities/gpu0/mig").mkdir(parents=True)
    (root.root / "dev/shm").mkdir(parents=True)
    root.write("/usr/lib/x86_64-linux-gnu/libnccl.so.2.28.3", "")
    root.link("/usr/lib/x86_64-linux-gnu/libnccl.so.2", "/usr/lib/x86_64-linux-gnu/libnccl.so.2.28.3")
    return root


def test_a_captured_guest_with_two_gpus(guest):
    smi = Smi(TOPO, P2P)
    found = fabric.read_fabric(guest.path, smi)
    assert found.pop("shm_bytes") > 0
    gpu = {"model": "NVIDIA H200", "numa": None, "driver": True}
    link = {"up": True, "arp_type": 1, "mtu": 1400, "speed_mbps": None, "driver": "virtio_net", "physical": True}
    virtual = {"speed_mbps": None, "driver": None, "physical": False}
    assert found == {
        "interfaces": [
            {"name": "eth0", **link},
            {"name": "ifb0", "up": False, "arp_type": 1, "mtu": 1500, **virtual},
            {"name": "lo", "up": True, "arp_type": 772, "mtu": 65536, **virtual},
        ],
        "gpus": [{"bdf": "0000:00:06.0", **gpu}, {"bdf": "0000:00:07.0", **gpu}],
        "nvlink": "all",
        "rdma": [],
        "efa": False,
        "gpudirect": {"peermem": False, "dmabuf": True},
        "imex": False,
        "plugins": [],
        "nccl": {"version": "2.28.3", "path": "/usr/lib/x86_64-linux-gnu/libnccl.so.2"},
        "versions": {"nccl": "2.28.3", "torch": None, "vllm": None},
        "acs_bridges": [],
        "environment": [],
        "netifaces": False,
        "problems": [],
    }
    assert smi.calls == [(["nvidia-smi", "topo", "-m"], 30), (["nvidia-smi", "topo", "-p2p", "n"], 30)]


def test_nothing_at_all_is_no_problem_and_runs_nothing(root):
    found = fabric.read_fabric(root.path, never)
    assert found["interfaces"] == found["gpus"] == found["rdma"] == found["problems"] == []
    assert (found["nvlink"], found["nccl"], found["shm_bytes"]) == ("none", None, 0)


# GPUs and NVLink


def test_a_gpu_without_a_driver_is_seen_and_other_functions_are_not(root):
    root.gpu("pci0000:16", "0000:16:01.0", "0000:17:00.0", numa=0, driver=False)
    root.pci("pci0000:16", "0000:16:02.0", "0000:18:00.0", vendor="0x10de", kind="0x068000")  # an NVSwitch
    root.pci("pci0000:16", "0000:16:03.0", "0000:19:00.0", vendor="0x1a03", kind="0x030000")  # the BMC's graphics
    found = fabric.read_fabric(root.path, never)
    assert found["gpus"] == [{"bdf": "0000:17:00.0", "model": None, "numa": 0, "driver": False}]
    assert found["nvlink"] == "none"


def matrix(names, cell, more=""):
    head = "\t".join(["", *names, *more.split()])
    rows = [
        "\t".join([row, *(" X " if row == column else cell(row, column) for column in names), *more.split()])
        for row in names
    ]
    return "\n".join([head, *rows, *(f"{card}\tSYS\tSYS\tX" for card in more.split()), "", "Legend:", "", "  X = Self"])


def nvlink(guest, *answers):
    tree = Tree(guest.path)
    return fabric.read_nvlink(tree, Smi(*answers)), tree.problems


def test_pairs_of_gpus_whose_numbers_have_gaps_beside_network_cards(guest):
    names = ["GPU0", "GPU2", "GPU5"]
    ok = matrix(names, lambda *_: "OK")
    assert nvlink(guest, matrix(names, lambda *_: "NV4", "NIC0 NIC1"), ok) == ("all", [])
    bridged = matrix(names, lambda *pair: "NV4" if set(pair) == {"GPU0", "GPU2"} else "SYS", "NIC0")
    assert nvlink(guest, bridged, ok) == ("some", [])
    assert nvlink(guest, matrix(names, lambda *_: "NODE"), ok) == ("none", [])
    # The links are there and the driver does not let peers use them.
    assert nvlink(guest, matrix(names, lambda *_: "NV18"), matrix(names, lambda *_: "TNS")) == ("none", [])


@pytest.mark.parametrize(
    "answer",
    [
        (127, "", "No such file or directory"),
        (9, "", "something else"),
        "",
        "GPU0\tGPU1\nGPU0\t X \n",
        TOPO.replace(" X ", "NV18"),
        TOPO.replace("\tGPU1", "").replace("GPU1\t", ""),
        "\tGPU0\nGPU0\tX",
        "Топология\x00\x1b[31m",
    ],
)
def test_what_is_no_table_of_gpus_is_unknown_and_no_problem(guest, answer):
    assert nvlink(guest, answer) == ("unknown", [])
    assert nvlink(guest, TOPO, answer) == ("unknown", [])


def test_parts_of_gpus_have_no_peers(guest):
    (guest.root / "proc/driver/nvidia/capabilities/gpu0/mig/gi7").mkdir()
    assert nvlink(guest) == ("unknown", [])


def test_a_driver_that_hangs_or_does_not_fit_is_a_problem_that_names_the_command(guest):
    state, (problem,) = nvlink(guest, TOPO, (fabric.TOO_LONG, "", ""))
    assert state == "unknown" and "'nvidia-smi topo -p2p n' has not ended after 30 s" in problem and "reboot" in problem
    state, (problem,) = nvlink(guest, (18, "Failed to initialize NVML: Driver/library version mismatch\n", ""))
    assert state == "unknown" and "'nvidia-smi topo -m' failed: Failed to initialize NVML: Driver/library" in problem


def test_a_command_gets_the_c_locale_and_its_status_comes_back(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = "import os, sys; print(os.environ['LC_ALL']); sys.stdout.buffer.write(b'\\xff'); sys.exit(3)"
    assert fabric.run_bounded([sys.executable, "-c", code], 20) == (3, "C\n\ufffd", "")
    assert fabric.run_bounded(["no-such-command-anywhere"], 5)[0] == fabric.NOT_THERE


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path):
    code = """if True:
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        open(sys.argv[1], "w").write(str(child.pid))
        child.wait()
    """
    start = time.monotonic()
    assert fabric.run_bounded([sys.executable, "-c", code, str(tmp_path / "pid")], 2)[0] == fabric.TOO_LONG
    assert time.monotonic() - start < 10
    with contextlib.suppress(ProcessLookupError):
        child = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert select.select([child], [], [], 10)[0], "the child is still there"


@pytest.mark.parametrize(
    ("version", "kernel", "files", "expected"),
    [
        (OPEN, "5.12.0", [], (False, True)),
        (OPEN, "5.4.0-200-generic", [], (False, False)),
        (CLOSED, "6.8.0-31-generic", [], (False, False)),
        (CLOSED, "6.8.0", ["/sys/module/nvidia_peermem/version"], (True, False)),
        (OPEN, "garbage", ["/sys/kernel/mm/memory_peers/nv_mem_nc/version"], (True, False)),
    ],
)
def test_the_ways_to_a_gpu_s_memory(root, version, kernel, files, expected):
    root.write("/proc/driver/nvidia/version", version).write("/proc/sys/kernel/osrelease", kernel)
    for path in files:
        root.write(path, "1")
    assert tuple(fabric.read_gpudirect(Tree(root.path)).values()) == expected


def test_channels_between_nodes(root):
    root.write("/dev/nvidia-caps-imex-channels/channel0", "")
    assert fabric.read_fabric(root.path, never)["imex"] is True


# PCI

HOST, PORT, UP = "pci0000:16", "0000:16:01.0", "0000:17:00.0"


@pytest.mark.parametrize(
    ("gpu", "card", "numa", "expected"),
    [
        ([HOST, PORT, UP, "0000:18:00.0", "0000:19:00.0"], [HOST, PORT, UP, "0000:18:01.0", "0000:1a:00.0"], (0, 0), "PIX"),
        ([HOST, PORT, UP, "0000:18:00.0", "0000:19:00.0"], [HOST, PORT, UP, "0000:18:01.0", "0000:1a:00.0", "0000:1b:00.0",
                                                            "0000:1c:00.0"], (0, 0), "PXB"),
        ([HOST, PORT, UP, "0000:18:00.0", "0000:19:00.0"], [HOST, PORT, UP, "0000:18:01.0", "0000:1a:00.0", "0000:1b:00.0"],
         (0, 0), "PXB"),
        ([HOST, PORT, "0000:17:00.0"], [HOST, PORT, "0000:17:00.1"], (0, 0), "PIX"),
        ([HOST, PORT, "0000:17:00.0"], [HOST, "0000:16:02.0", "0000:20:00.0"], (None, None), "PHB"),
        ([HOST, PORT, "0000:17:00.0"], ["pci0000:40", "0000:40:01.0", "0000:41:00.0"], (0, 0), "PHB"),
        ([HOST, PORT, "0000:17:00.0"], ["pci0000:80", "0000:80:01.0", "0000:81:00.0"], (0, 1), "SYS"),
        ([HOST, PORT, "0000:17:00.0"], ["pci0000:80", "0000:80:01.0", "0000:81:00.0"], (None, 1), None),
        ([HOST, PORT, "0000:17:00.0"], [], (0, 0), None),
    ],
)  # fmt: skip
def test_how_far_a_card_is_from_a_gpu(gpu, card, numa, expected):
    assert fabric.pci_distance(gpu, card, *numa) == expected
    assert fabric.pci_distance(card, gpu, *reversed(numa)) == expected


def config(*capabilities: tuple[int, int, int]) -> bytes:
    """A configuration space with extended capabilities (identifier, control word) at given places, chained in order."""
    space = bytearray(4096)
    for number, (place, identifier, control) in enumerate(capabilities):
        after = capabilities[number + 1][0] if number + 1 < len(capabilities) else 0
        space[place : place + 4] = (identifier | 1 << 16 | after << 20).to_bytes(4, "little")
        space[place + 6 : place + 8] = control.to_bytes(2, "little")
    return bytes(space)


def test_bridges_that_send_peer_traffic_up(root):
    error_reporting = (0x100, 0x0001, 0)
    on, off = config(error_reporting, (0x148, 0x000D, 0x1D)), config(error_reporting, (0x148, 0x000D, 0x1C))
    assert fabric.validates_source(on) and not fabric.validates_source(off)
    loop = on[:0x100] + (0x0001 | 0x100 << 20).to_bytes(4, "little") + on[0x104:]
    for broken in (b"", on[:64], on[:0x14C], loop, b"\xff" * 4096):
        assert not fabric.validates_source(broken)
    root.gpu(HOST, PORT, UP, "0000:18:00.0", "0000:19:00.0").pci(HOST, "0000:16:05.0", vendor="0x8086", kind="0x060400")
    for bdf, space in ((PORT, on), (UP, off), ("0000:18:00.0", on), ("0000:16:05.0", on)):
        (root.root / "sys/bus/pci/devices" / bdf / "config").write_bytes(space)
    assert fabric.read_fabric(root.path, never)["acs_bridges"] == [PORT, "0000:18:00.0"]


# RDMA


def test_an_infiniband_port_beside_its_gpu(root):
    root.gpu(HOST, PORT, UP, "0000:18:00.0", "0000:19:00.0", numa=0)
    root.gpu("pci0000:80", "0000:80:01.0", "0000:81:00.0", numa=1)
    link_local = "fe80:0000:0000:0000:a088:c203:00a1:b2c3"
    root.rdma("mlx5_0", HOST, PORT, UP, "0000:18:01.0", "0000:1a:00.0", numa=0, interfaces=("ib0",),
              gids=((link_local, "IB/RoCE v1", "ib0"),))  # fmt: skip
    root.rdma(
        "mlx5_1", "pci0000:40", "0000:40:01.0", "0000:41:00.0", numa=2, state="2: INIT", rate="10 Gb/sec (4X SDR)"
    )
    first, second = fabric.read_rdma(root.path)
    assert first == {
        "device": "mlx5_0",
        "port": 1,
        "driver": "mlx5_core",
        "active": True,
        "state": "ACTIVE",
        "physical_state": "LinkUp",
        "link_layer": "InfiniBand",
        "rate_mbps": 400000,
        "interfaces": ["ib0"],
        "roce_gids": [],
        "bdf": "0000:1a:00.0",
        "numa": 0,
        "distance": "PIX",
    }
    assert (second["active"], second["state"], second["rate_mbps"], second["distance"]) == (False, "INIT", 10000, "SYS")


def test_roce_v2_gids_over_ipv4_only_and_empty_places_are_passed_over(root):
    mapped = "0000:0000:0000:0000:0000:ffff:0a0f:1621"
    root.rdma(
        "mlx5_0",
        HOST,
        PORT,
        "0000:17:00.0",
        link_layer="Ethernet",
        rate="100 Gb/sec (4X EDR)",
        interfaces=("enp27s0f0np0",),
        gids=(
            ("fe80:0000:0000:0000:0000:00ff:fe00:0001", "IB/RoCE v1", "enp27s0f0np0"),
            ("fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2", "enp27s0f0np0"),
            (mapped, "IB/RoCE v1", "enp27s0f0np0"),
            (mapped, "RoCE v2", "enp27s0f0np0"),
            ("0000:0000:0000:0000:0000:0000:0000:0000", "", ""),
            ("0000:0000:0000:0000:0000:ffff:0a10:0001", "RoCE v2", "enp27s0f0np0.10"),
        ),
    )
    (port,) = fabric.read_rdma(root.path)
    assert port["interfaces"] == ["enp27s0f0np0", "enp27s0f0np0.10"]
    assert port["roce_gids"] == [
        {"index": 3, "address": "10.15.22.33", "interface": "enp27s0f0np0"},
        {"index": 5, "address": "10.16.0.1", "interface": "enp27s0f0np0.10"},
    ]
    assert (port["distance"], port["numa"], port["link_layer"]) == (None, None, "Ethernet")


def test_gids_are_in_the_order_of_their_numbers(root):
    gids = tuple((f"0000:0000:0000:0000:0000:ffff:0a00:00{n:02x}", "RoCE v2", "eth0") for n in range(12))
    root.rdma("mlx5_0", HOST, "0000:17:00.0", link_layer="Ethernet", gids=gids)
    assert [gid["index"] for gid in fabric.read_rdma(root.path)[0]["roce_gids"]] == list(range(12))


def test_two_ports_of_one_function_have_an_interface_each(root):
    root.rdma("mlx4_0", HOST, "0000:17:00.0", driver="mlx4_core", port=1, interfaces=("ib0", "ib1"))
    root.rdma("mlx4_0", HOST, "0000:17:00.0", driver="mlx4_core", port=2, state="1: DOWN", physical="3: Disabled")
    assert [(port["port"], port["interfaces"], port["active"]) for port in fabric.read_rdma(root.path)] == [
        (1, ["ib0"], True),
        (2, ["ib1"], False),
    ]


def test_a_device_below_a_function_and_one_of_software(root):
    root.rdma("mlx5_9", HOST, PORT, "0000:17:00.0", "mlx5_core.sf.4")
    root.write("/sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE").write(
        "/sys/class/infiniband/rxe0/ports/1/phys_state", "5: LinkUp"
    )
    found = {port["device"]: port for port in fabric.read_rdma(root.path)}
    assert found["mlx5_9"]["bdf"] == "0000:17:00.0"
    assert (found["rxe0"]["bdf"], found["rxe0"]["driver"], found["rxe0"]["active"]) == (None, None, True)


@pytest.mark.parametrize("state", ["", "4", "ACTIVE", "44: ?", "1: DOWN"])
def test_a_port_with_a_truncated_state_is_not_active(root, state):
    root.rdma("mlx5_0", HOST, "0000:17:00.0", state=state, rate="", link_layer="")
    (port,) = fabric.read_rdma(root.path)
    assert (port["active"], port["rate_mbps"], port["link_layer"]) == (False, None, "")


def test_efa_is_told_apart(root):
    root.rdma("rdmap0s6", HOST, "0000:17:00.0", driver="efa", link_layer="Unspecified")
    found = fabric.read_fabric(root.path, never)
    assert found["efa"] is True and found["rdma"] == []


# Libraries


def test_the_environment_s_nccl_wins_over_the_system_s(guest):
    built = guest.root / "opt/metalray/venvs/0a1b/lib/python3.12/site-packages"
    for name in ("nvidia_nccl_cu13-2.28.9", "torch-2.11.0+cu130"):
        (built / f"{name}.dist-info").mkdir(parents=True)
    # A link as python_env makes it: absolute, inside the tree.
    (guest.root / "opt/metalray/venv").symlink_to("/opt/metalray/venvs/0a1b")
    path = "/opt/metalray/venvs/0a1b/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2"
    found = fabric.read_fabric(guest.path, Smi(TOPO, P2P))
    assert found["nccl"] == {"version": "2.28.9", "path": path} and found["problems"] == []
    assert found["versions"] == {"nccl": "2.28.9", "torch": "2.11.0+cu130", "vllm": None}
    (built / "nvidia_nccl_cu12-2.27.5.dist-info").mkdir()
    (problem,) = fabric.read_fabric(guest.path, Smi(TOPO, P2P))["problems"]
    assert problem.startswith("/opt/metalray/venv holds NCCL 2.27.5, 2.28.9")


def test_plugins_where_the_loader_looks_and_where_clouds_put_them(root):
    root.write("/etc/ld.so.conf", "include ld.so.conf.d/*.conf\n# /comment\n")
    root.write("/etc/ld.so.conf.d/cluster.conf", "/srv/nccl/lib # ours\n/no/such\n").write(
        "/etc/ld.so.conf.d/b.conf", "include /etc/ld.so.conf"
    )
    for path in (
        "/srv/nccl/lib/libnccl-net.so",
        "/srv/nccl/lib/libnccl-net.so.0",
        "/opt/hpcx-v2.21/nccl_rdma_sharp_plugin/lib/libnccl-net.so",
        "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu/libnccl-net-ofi.so",
        "/usr/lib/libnccl-tuner.so",
        "/usr/lib/libnccl-net-gib.so",
    ):
        root.write(path, "")
    root.link("/lib", "/usr/lib")
    assert fabric.read_fabric(root.path, never)["plugins"] == [
        "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu/libnccl-net-ofi.so",
        "/opt/hpcx-v2.21/nccl_rdma_sharp_plugin/lib/libnccl-net.so",
        "/srv/nccl/lib/libnccl-net.so",
        "/usr/lib/libnccl-net-gib.so",
    ]


# Files that lie


@pytest.mark.parametrize("text", ["", "abc", "0", "-5"])
def test_an_mtu_that_cannot_be_names_the_file(root, text):
    root.net("eth0", "/sys/devices/pci0000:00/0000:00:03.0", mtu=text)
    found = fabric.read_fabric(root.path, never)
    (problem,) = found["problems"]
    assert problem.startswith(f"/sys/class/net/eth0/mtu says '{text}', where a number of at least 68 belongs")
    assert found["interfaces"][0]["mtu"] == 0


@pytest.mark.parametrize("text", ["", "-1", "0", "65535", "4294967295", "fast"])
def test_a_speed_that_nobody_knows(root, text):
    root.net("eth0", "/sys/devices/pci0000:00/0000:00:03.0", speed=text)
    found = fabric.read_fabric(root.path, never)
    assert found["interfaces"][0]["speed_mbps"] is None and found["problems"] == []


def test_links_that_lead_in_a_circle_or_out_of_the_tree_and_pipes_end(root):
    (root.root / "etc").mkdir()
    (root.root / "etc/a").symlink_to("/etc/b")
    (root.root / "etc/b").symlink_to("a")
    (root.root / "etc/out").symlink_to("../../../../../../../../etc/inside")
    root.write("/etc/inside", "seen")
    subprocess.run(["mkfifo", f"{root.path}/etc/pipe"], check=True)
    tree = Tree(root.path)
    assert tree.real("/etc/a") == "/etc/a" and tree.text("/etc/a") == "" and tree.text("/etc/pipe") == ""
    assert tree.real("/etc/out") == "/etc/inside" and tree.text("/etc/out") == "seen"


def test_this_machine_s_own_fabric():
    found = fabric.read_fabric("/", fabric.run_bounded)
    assert "lo" in [link["name"] for link in found["interfaces"]]
    assert found["shm_bytes"] > 0 and found["nvlink"] in ("all", "some", "none", "unknown")
