# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fabrics of nodes, as the module ``node_facts`` returns them, for the tests of what is decided from them."""

from __future__ import annotations

from typing import Any

from ansible_collections.metalray.cluster.plugins.module_utils._network_env import Member


def port(device: str, link_layer: str = "InfiniBand", **more: Any) -> dict[str, Any]:
    return {
        "device": device,
        "port": 1,
        "driver": "mlx5_core",
        "active": True,
        "state": "ACTIVE",
        "physical_state": "LinkUp",
        "link_layer": link_layer,
        "rate_mbps": 400_000,
        "interfaces": [],
        "roce_gids": [],
        "bdf": None,
        "numa": None,
        "distance": "PIX",
        **more,
    }


def roce_port(device: str, *addresses: str, index: int = 3, **more: Any) -> dict[str, Any]:
    gids = [{"index": index + 2 * n, "address": address, "interface": "eth2"} for n, address in enumerate(addresses)]
    return port(device, "Ethernet", roce_gids=gids, **{"interfaces": [f"net_{device}"], **more})


def fabric(gpus: int = 8, **more: Any) -> dict[str, Any]:
    """A node with NVLink between its GPUs and no RDMA, unless told otherwise."""
    return {
        "interfaces": [{"name": name, "up": True, "physical": name != "lo"} for name in ("lo", "eth0", "eth1")],
        "gpus": [{"bdf": f"0000:{n:02x}:00.0", "model": "H100", "numa": 0, "driver": True} for n in range(gpus)],
        "nvlink": "all" if gpus > 1 else "none",
        "rdma": [],
        "efa": False,
        "gpudirect": {"peermem": True, "dmabuf": False},
        "imex": False,
        "plugins": [],
        "nccl": {"version": "2.28.9", "path": "/opt/metalray/venv"} if gpus else None,
        "versions": {"nccl": "2.28.9", "torch": "2.11.0", "vllm": None},
        "shm_bytes": 64 << 30,
        "acs_bridges": [],
        "environment": [],
        "netifaces": True,
        "problems": [],
        **more,
    }


def member(name: str = "node1", fabric_: dict[str, Any] | None = None, **more: Any) -> Member:
    number = int(name[-1]) if name[-1].isdigit() else 9
    return Member(
        **{
            "name": name,
            "interface": "eth1",
            "address": f"10.0.0.{number}",
            "mtu": 1500,
            "speed_mbps": 100_000,
            "default_interfaces": ("eth0",),
            "networks": {"eth1": ["10.0.0.0/24"]},
            "fabric": fabric() if fabric_ is None else fabric_,
            **more,
        }
    )
