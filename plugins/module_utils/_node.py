# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one node is: read once, under any root, for the decisions that concern the cluster.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import grp
import json
import os
import platform
import pwd
import re
import socket
from typing import Any, Callable

from ._addresses import IF_INET6, read_addresses
from ._env_files import read_environment_files
from ._fabric import Run, read_fabric
from ._firewall import ssh_connection_port
from ._first_contact import read_first_contact
from ._interfaces import find_candidates, read_links, routed_networks
from ._nfs import read_shared_dir
from ._tree import read_text

_CAP_SYS_RESOURCE = 24
_SMI_SECONDS = 20
#: Of the last proof of the network, below the root.
PROOF_RECORD = "var/lib/metalray/network_proof.json"

RunIp = Callable[[list[str]], str]


def parse_os_release(text: str) -> dict[str, str]:
    """``id``, ``version`` and ``codename`` of /etc/os-release (os-release(5))."""
    values = dict(re.findall(r"^([A-Z_]+)=[\"']?([^\"'\n]*)", text, re.MULTILINE))
    return {
        "id": values.get("ID", ""),
        "version": values.get("VERSION_ID", ""),
        "codename": values.get("VERSION_CODENAME", ""),
        "name": values.get("PRETTY_NAME", ""),
    }


def parse_limits(text: str) -> dict[str, int | None]:
    """Hard limits of /proc/PID/limits: ``nofile`` in files, ``memlock`` in bytes; None is unlimited."""
    limits: dict[str, int | None] = {}
    for label, name in (("Max open files", "nofile"), ("Max locked memory", "memlock")):
        found = re.search(rf"^{label}\s+\S+\s+(\S+)", text, re.MULTILINE)
        limits[name] = int(found.group(1)) if found and found.group(1).isdigit() else None
    return limits


def can_raise_limits(status: str) -> bool:
    """Whether the first process may go above its hard limits (CAP_SYS_RESOURCE in its bounding set)."""
    found = re.search(r"^CapBnd:\s+([0-9a-f]+)", status, re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> _CAP_SYS_RESOURCE & 1)


def parse_meminfo(text: str) -> int:
    """Installed memory in bytes, from /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def count_gpus(root: str) -> int:
    """NVIDIA GPUs that the driver has taken: without a driver none can be used."""
    try:
        return len(os.listdir(os.path.join(root, "proc/driver/nvidia/gpus")))
    except OSError:
        return 0


def has_nvcc(root: str) -> bool:
    """Whether CUDA's compiler is on the node."""
    places = ("usr/local/cuda/bin", "usr/local/bin", "usr/bin")
    return any(os.access(os.path.join(root, place, "nvcc"), os.X_OK) for place in places)


def cuda_architectures(run: Run, gpus: int) -> list[str]:
    """Compute capabilities of the GPUs; none where nvidia-smi does not tell."""
    if not gpus:
        return []
    status, out, _err = run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], _SMI_SECONDS)
    return sorted(set(re.findall(r"^\s*(\d+\.\d+)\s*$", out, re.MULTILINE))) if status == 0 else []


def account(name: str) -> dict[str, Any] | None:
    """Ids, group and home of an account, or None where the node has no such account."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        group = str(entry.pw_gid)
    return {"name": name, "uid": entry.pw_uid, "gid": entry.pw_gid, "group": group, "home": entry.pw_dir}


def read_record(path: str) -> dict[str, Any]:
    """The record of the last proof of the network, or nothing."""
    try:
        record = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def host_name() -> str:
    """This node's name. The kernel takes any bytes; what is no text shows as such."""
    return os.fsencode(socket.gethostname()).decode("utf-8", "replace")


def read_node(
    run_ip: RunIp,
    run: Run,
    netifaces: Any,
    user: str,
    shared_dir: str,
    venv: str = "/opt/metalray/venv",
    root: str = "/",
    environment_root: str = "/opt/metalray",
    python: str = "/usr/bin/python3",
    tmpdir: str = "/tmp",
) -> dict[str, Any]:
    """Everything that preflight needs to know of a node.

    ``run_ip`` runs iproute2's ``ip`` and returns its output, ``run`` any command (see ``_fabric``). ``netifaces`` is that
    module, or None where it is not there.
    """
    routes6 = json.loads(run_ip(["-6", "-j", "route"]) or "[]")
    routes = json.loads(run_ip(["-j", "route"]) or "[]") + routes6
    devices = [] if netifaces else json.loads(run_ip(["-j", "address"]) or "[]")
    addresses = read_addresses(netifaces, read_text(root + IF_INET6), devices)
    candidates = find_candidates(read_links(root), addresses, routes)
    owner = account(user)
    return {
        "os": parse_os_release(read_text(os.path.join(root, "etc/os-release"))),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "systemd": os.path.isdir(os.path.join(root, "run/systemd/system")),
        "hostname": host_name(),
        "machine_id": read_text(os.path.join(root, "etc/machine-id")).strip(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": parse_meminfo(read_text(os.path.join(root, "proc/meminfo"))),
        "gpus": count_gpus(root),
        "nvcc": has_nvcc(root),
        "cuda_architectures": cuda_architectures(run, count_gpus(root)),
        "hard_limits": parse_limits(read_text(os.path.join(root, "proc/1/limits"))),
        "can_raise_limits": can_raise_limits(read_text(os.path.join(root, "proc/1/status"))),
        "user": owner,
        "user_wanted": user,
        "shared_dir": read_shared_dir(shared_dir, root),
        "candidates": [candidate.to_dict() for candidate in candidates],
        "networks": routed_networks(routes),
        "ssh_port": ssh_connection_port(os.getpid()) or 22,
        "boot_id": read_text(os.path.join(root, "proc/sys/kernel/random/boot_id")).strip(),
        "environment_path": os.path.realpath(venv) if os.path.isdir(venv) else "",
        "network_proof": read_record(os.path.join(root, PROOF_RECORD)),
        "first_contact": read_first_contact(run, routes6, host_name(), environment_root, python, tmpdir, root),
        "fabric": {
            **read_fabric(root, run, venv),
            "environment": read_environment_files(root, owner["home"] if owner else ""),
            "netifaces": netifaces is not None,
        },
    }
