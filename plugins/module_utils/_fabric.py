# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fabric of a node: what its interfaces, RDMA ports and GPUs are and how they hang together.

Internal to metalray.cluster: not a public interface.

Reads files under any root, so that a tree captured from another machine tests it. The one command, nvidia-smi, is run by a
function that the caller gives.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ._interfaces import is_physical, link_speed, read_links
from ._tree import Tree
from ._versions import distributions, nccl_version, site_packages

Run = Callable[[Sequence[str], float], "tuple[int, str, str]"]

# What ``run`` returns for a command that is not there, and for one that it ended, as env(1) and timeout(1) do.
NOT_THERE, TOO_LONG = 127, 124
_SMI_SECONDS = 30

_PCI = "/sys/bus/pci/devices"
_RDMA = "/sys/class/infiniband"
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NEAREST_FIRST = ("PIX", "PXB", "PHB", "SYS")


def run_bounded(argv: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Run a command in the C locale for at most ``seconds``: its status, output and errors."""
    try:
        # AnsibleModule.run_command waits for ever.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        return NOT_THERE, "", str(error)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Not waited for: what hangs in a driver does not die, and would take this process along.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        return TOO_LONG, "", f"no end after {seconds:g} s"
    return process.returncode, out, err


# --- PCI ---------------------------------------------------------------------------------------------------------


def _chain(tree: Tree, bdf: str) -> list[str]:
    """The way to a PCI device from its host bridge down, the device itself last."""
    parts = tree.real(f"{_PCI}/{bdf}").split("/")
    first = next((place for place, part in enumerate(parts) if part.startswith("pci")), None)
    return parts[first:] if first is not None and parts[-1] == bdf else []


def _numa(tree: Tree, bdf: str) -> int | None:
    node = tree.number(f"{_PCI}/{bdf}/numa_node")
    return node if node is not None and node >= 0 else None


def pci_distance(one: Sequence[str], other: Sequence[str], one_numa: int | None, other_numa: int | None) -> str | None:
    """How far apart two devices are, in NCCL's words, from their ways down from the host bridge (see ``_chain``).

    PIX: below one switch, PXB: below several, PHB: of one host bridge or NUMA node, SYS: of different ones. None where the
    NUMA node would decide and the firmware does not tell it.
    """
    if not one or not other:
        return None
    above, beside = list(one[:-1]), list(other[:-1])
    shared = 0
    while shared < min(len(above), len(beside)) and above[shared] == beside[shared]:
        shared += 1
    if any(_BDF.fullmatch(part) for part in above[:shared]):
        # Below the bridge that both share, each may pass the port of the same switch; more is another switch.
        return "PIX" if max(len(above), len(beside)) - shared <= 1 else "PXB"
    if shared:
        return "PHB"
    if one_numa is None or other_numa is None:
        return None
    return "PHB" if one_numa == other_numa else "SYS"


def validates_source(config: bytes) -> bool:
    """Whether a bridge's ACS sends what one device below it writes to another up to the root, from its configuration space.

    False too where only the first 64 bytes may be read.
    """
    place, seen = 0x100, set()
    while place >= 0x100 and place not in seen and place + 8 <= len(config):
        seen.add(place)
        header = int.from_bytes(config[place : place + 4], "little")
        if header & 0xFFFF == 0x000D:  # access control services
            return bool(config[place + 6] & 1)
        place = header >> 20
    return False


# --- GPUs --------------------------------------------------------------------------------------------------------


def read_gpus(tree: Tree) -> list[dict[str, Any]]:
    """NVIDIA's display and 3D controllers on the PCI bus."""
    taken = tree.names("/proc/driver/nvidia/gpus")
    found = []
    for bdf in tree.names(_PCI):
        kind = tree.text(f"{_PCI}/{bdf}/class")
        if tree.text(f"{_PCI}/{bdf}/vendor") != "0x10de" or not kind.startswith(("0x0300", "0x0302")):
            continue
        model = re.search(r"^Model:\s*(\S.*)", tree.text(f"/proc/driver/nvidia/gpus/{bdf}/information"), re.MULTILINE)
        found.append(
            {
                "bdf": bdf,
                "model": model.group(1).strip() if model else None,
                "numa": _numa(tree, bdf),
                "driver": bdf in taken,
            }
        )
    return found


def parse_matrix(text: str) -> dict[tuple[str, str], str] | None:
    """Pairs of GPUs and what ``nvidia-smi topo`` says of each; None for what is no such table.

    Columns and rows of network cards may follow those of the GPUs.
    """
    columns: list[str] = []
    cells: dict[tuple[str, str], str] = {}
    for line in _ANSI.sub("", text).splitlines():
        words = line.split()
        if not words or not re.fullmatch(r"GPU\d+", words[0]):
            continue
        if not columns:
            columns = [word for word in words if re.fullmatch(r"GPU\d+", word)]
        else:
            cells.update(((words[0], column), cell) for column, cell in zip(columns, words[1:]))
    whole = {(row, column) for row in columns for column in columns}
    if len(columns) < 2 or set(cells) != whole or any(cells[name, name] != "X" for name in columns):
        return None
    return {(row, column): cell for (row, column), cell in cells.items() if row != column}


def read_nvlink(tree: Tree, run: Run) -> str:
    """Whether NVLink joins the GPUs that the driver has taken: all, some or none of their pairs, or unknown."""
    if len(tree.names("/proc/driver/nvidia/gpus")) < 2:
        return "none"
    if tree.glob("/proc/driver/nvidia/capabilities/gpu*/mig/gi*"):
        return "unknown"  # parts of GPUs have no peers
    tables = []
    for arguments in (["topo", "-m"], ["topo", "-p2p", "n"]):
        command = f"nvidia-smi {' '.join(arguments)}"
        status, out, err = run(["nvidia-smi", *arguments], _SMI_SECONDS)
        if status == TOO_LONG:
            tree.problems.append(
                f"'{command}' has not ended after {_SMI_SECONDS} s: the driver or a GPU hangs. Look for 'NVRM: Xid' in 'dmesg', "
                "and reboot the node"
            )
            return "unknown"
        if "Failed to initialize NVML" in out + err:
            tree.problems.append(
                f"'{command}' failed: {' '.join((out + err).split())[:200]}. After an upgrade of the driver, reboot the node"
            )
            return "unknown"
        table = parse_matrix(out) if status == 0 else None
        if table is None:
            return "unknown"
        tables.append(table)
    ways, allowed = tables
    joined = [bool(re.fullmatch(r"NV\d+", way)) and allowed.get(pair) == "OK" for pair, way in ways.items()]
    return "all" if all(joined) else "some" if any(joined) else "none"


def read_gpudirect(tree: Tree) -> dict[str, bool]:
    """The two ways by which a network card may reach a GPU's memory."""
    peermem = (
        "/sys/module/nvidia_peermem",
        "/sys/kernel/mm/memory_peers/nv_mem",
        "/sys/kernel/mm/memory_peers/nv_mem_nc",
    )
    release = re.match(r"(\d+)\.(\d+)", tree.text("/proc/sys/kernel/osrelease"))
    kernel = tuple(map(int, release.groups())) if release else (0, 0)
    return {
        "peermem": any(tree.exists(f"{path}/version") for path in peermem),
        "dmabuf": "Open Kernel Module" in tree.text("/proc/driver/nvidia/version") and kernel >= (5, 12),
    }


# --- RDMA --------------------------------------------------------------------------------------------------------


def _after_colon(text: str) -> str:
    """'ACTIVE' out of '4: ACTIVE'."""
    return text.partition(":")[2].strip()


def _rate_mbps(text: str) -> int | None:
    """400000 out of '400 Gb/sec (4X NDR)'."""
    match = re.match(r"(\d+(?:\.\d+)?)\s*Gb/sec", text)
    return round(float(match.group(1)) * 1000) or None if match else None


def _routable(gid: str) -> str | None:
    """The address that a RoCE v2 GID stands for: an IPv4 address that is mapped into it, or a global one of IPv6."""
    try:
        address = ipaddress.IPv6Address(gid)
    except ValueError:
        return None
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return None if address.is_link_local or address.is_unspecified else str(address)


def _gids(tree: Tree, port: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The interfaces of a port, and those of its GIDs that RoCE v2 can use. An empty index answers EINVAL."""
    interfaces, found = [], []
    for index in sorted((name for name in tree.names(f"{port}/gid_attrs/ndevs") if name.isdecimal()), key=int):
        interface = tree.text(f"{port}/gid_attrs/ndevs/{index}")
        if not interface:
            continue
        interfaces.append(interface)
        if tree.text(f"{port}/gid_attrs/types/{index}") == "RoCE v2":
            address = _routable(tree.text(f"{port}/gids/{index}"))
            if address:
                found.append({"index": int(index), "address": address, "interface": interface})
    return interfaces, found


def _rdma_driver(tree: Tree, device: str) -> str | None:
    driver = os.path.basename(tree.real(f"{_RDMA}/{device}/device/driver"))
    return driver if driver != "driver" else None


def _own_interfaces(tree: Tree, device: str, port: str, ports: Sequence[str]) -> list[str]:
    """The interfaces of the device below; where it has several ports each interface says which one it is."""
    return [
        name
        for name in tree.names(f"{_RDMA}/{device}/device/net")
        if len(ports) == 1 or tree.number(f"{_RDMA}/{device}/device/net/{name}/dev_port") == int(port) - 1
    ]


def _ports(tree: Tree, gpus: Sequence[str]) -> Iterator[dict[str, Any]]:
    for device in tree.names(_RDMA):
        driver = _rdma_driver(tree, device)
        if driver == "efa":
            continue
        # A function may hand out devices of its own, below it.
        bdf = next(
            (part for part in reversed(tree.real(f"{_RDMA}/{device}/device").split("/")) if _BDF.fullmatch(part)), None
        )
        numa = _numa(tree, bdf) if bdf else None
        ways = [
            pci_distance(_chain(tree, gpu), _chain(tree, bdf), _numa(tree, gpu), numa) for gpu in (gpus if bdf else ())
        ]
        ports = [name for name in tree.names(f"{_RDMA}/{device}/ports") if name.isdecimal()]
        for port in sorted(ports, key=int):
            path = f"{_RDMA}/{device}/ports/{port}"
            interfaces, gids = _gids(tree, path)
            state, physical = tree.text(f"{path}/state"), tree.text(f"{path}/phys_state")
            yield {
                "device": device,
                "port": int(port),
                "driver": driver,
                "active": state.startswith("4:") and physical.startswith("5:"),
                "state": _after_colon(state),
                "physical_state": _after_colon(physical),
                "link_layer": tree.text(f"{path}/link_layer"),
                "rate_mbps": _rate_mbps(tree.text(f"{path}/rate")),
                "interfaces": list(dict.fromkeys([*interfaces, *_own_interfaces(tree, device, port, ports)])),
                "roce_gids": gids,
                "bdf": bdf,
                "numa": numa,
                "distance": min((way for way in ways if way), key=_NEAREST_FIRST.index, default=None),
            }


def read_rdma(root: str = "/") -> list[dict[str, Any]]:
    """The ports of every RDMA device but EFA's, each with its distance to the nearest GPU."""
    tree = Tree(root)
    return list(_ports(tree, [gpu["bdf"] for gpu in read_gpus(tree)]))


# --- Libraries ---------------------------------------------------------------------------------------------------

_USUAL = ("/usr/local/lib", "/usr/local/lib64", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/lib/*-linux-gnu",
          "/usr/lib/*-linux-gnu", "/usr/local/lib/*-linux-gnu")  # fmt: skip
# Where clouds and NVIDIA's HPC-X put their plugins, to be named in LD_LIBRARY_PATH.
_PLUGINS = ("/opt/hpcx*/nccl_rdma_sharp_plugin/lib", "/opt/amazon/ofi-nccl/lib*", "/opt/amazon/ofi-nccl/lib/*-linux-gnu",
            "/opt/aws-ofi-nccl/lib*", "/usr/local/aws-ofi-nccl/lib*", "/usr/local/gib/lib*", "/usr/local/nvidia/lib*",
            "/var/lib/tcpx*/lib*", "/var/lib/fastrak/lib*")  # fmt: skip


def _configured(tree: Tree, path: str = "/etc/ld.so.conf", depth: int = 0) -> Iterator[str]:
    """The directories that ld.so.conf(5) names."""
    for line in tree.text(path).splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["include"] and depth < 3:
            for pattern in words[1:]:
                for included in tree.glob(os.path.join("/etc", pattern)):
                    yield from _configured(tree, included, depth + 1)
        elif words and words[0].startswith("/"):
            yield words[0]


def _directories(tree: Tree, patterns: Sequence[str]) -> list[str]:
    """Directories that are there, each once under its own name."""
    return list(dict.fromkeys(tree.real(found) for pattern in patterns for found in tree.glob(pattern)))


def read_plugins(tree: Tree, loader: Sequence[str]) -> list[str]:
    """External network plugins for NCCL."""
    places = dict.fromkeys([*loader, *_directories(tree, _PLUGINS)])
    return sorted(
        f"{place}/{name}" for place in places for name in tree.names(place) if re.fullmatch(r"libnccl-net.*\.so", name)
    )


def read_nccl(tree: Tree, python_env: str, loader: Sequence[str]) -> dict[str, str] | None:
    """The NCCL that torch of the environment loads, or else the system's."""
    environment = Path(tree.at(tree.real(python_env)))
    version = nccl_version(distributions(environment))
    if ", " in version:
        tree.problems.append(
            f"{python_env} holds NCCL {version}: these packages overwrite each other's library. Build the environment again "
            "(--tags python_env)"
        )
    elif version:
        place = str(site_packages(environment))[len(tree.root.rstrip("/")) :]
        return {"version": version, "path": f"{place}/nvidia/nccl/lib/libnccl.so.2"}
    for place in loader:
        library = os.path.basename(tree.real(f"{place}/libnccl.so.2"))
        match = re.fullmatch(r"libnccl\.so\.(2\.\d+\.\d+)", library)
        if match:
            return {"version": match.group(1), "path": f"{place}/libnccl.so.2"}
    return None


def read_packages(tree: Tree, python_env: str, names: Sequence[str]) -> dict[str, str | None]:
    """The versions of some packages in the environment; None for one that it does not have."""
    packages = distributions(Path(tree.at(tree.real(python_env))))
    return {name: packages.get(name) for name in names}


# --- all of it ---------------------------------------------------------------------------------------------------


def shared_memory(tree: Tree) -> int:
    try:
        found = os.statvfs(tree.at("/dev/shm"))
    except OSError:
        return 0
    return found.f_frsize * found.f_blocks


def read_fabric(root: str, run: Run, python_env: str = "/opt/metalray/venv") -> dict[str, Any]:
    """Everything that decides how a node's processes talk to one another and to other nodes'.

    ``run`` runs a command for at most so many seconds and returns its status, output and errors, as ``run_bounded`` does.
    ``environment`` and ``netifaces`` are the caller's to fill in.
    """
    tree = Tree(root)
    links = read_links(root, tree.problems)
    gpus = read_gpus(tree)
    devices = [gpu["bdf"] for gpu in gpus]
    bridges = sorted({part for gpu in devices for part in _chain(tree, gpu)[:-1] if _BDF.fullmatch(part)})
    loader = _directories(tree, [*_configured(tree), *_USUAL])
    nccl = read_nccl(tree, python_env, loader)
    return {
        "interfaces": [
            {
                "name": link.name,
                "up": link.up,
                "arp_type": link.arp_type,
                "mtu": link.mtu,
                "speed_mbps": link_speed(link.name, links),
                "driver": link.driver,
                "physical": is_physical(link.name, links),
            }
            for link in links.values()
        ],
        "gpus": gpus,
        "nvlink": read_nvlink(tree, run),
        "rdma": list(_ports(tree, devices)),
        "efa": any(_rdma_driver(tree, device) == "efa" for device in tree.names(_RDMA)),
        "gpudirect": read_gpudirect(tree),
        "imex": any(name.startswith("channel") for name in tree.names("/dev/nvidia-caps-imex-channels")),
        "plugins": read_plugins(tree, loader),
        "nccl": nccl,
        "versions": {"nccl": nccl and nccl["version"], **read_packages(tree, python_env, ("torch", "vllm"))},
        "shm_bytes": shared_memory(tree),
        "acs_bridges": [bdf for bdf in bridges if validates_source(tree.data(f"{_PCI}/{bdf}/config"))],
        "environment": [],
        "netifaces": False,
        "problems": tree.problems,
    }
