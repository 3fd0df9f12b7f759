# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the files that a kernel, a driver and a distribution show of a machine, under a directory."""

from __future__ import annotations

import os
from pathlib import Path

_BRIDGES_ABOVE_A_GPU = "0x060400"


class FakeRoot:
    """Names and contents are as real machines show them; links are relative, like sysfs's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = str(root)

    def write(self, path: str, text: str | bytes | int) -> FakeRoot:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
        return self

    def link(self, path: str, target: str) -> FakeRoot:
        """``path`` becomes a relative link to ``target``, which need not be there."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.root / target.lstrip("/"), place.parent))
        return self

    def pci(self, *chain: str, vendor: str, kind: str, numa: int = -1, driver: str | None = None) -> FakeRoot:
        """A PCI device at the end of its way down: host bridge, bridges, itself."""
        for depth in range(2, len(chain)):
            self._pci(chain[:depth], "0x1000", _BRIDGES_ABOVE_A_GPU, -1, "pcieport")
        return self._pci(chain, vendor, kind, numa, driver)

    def _pci(self, chain: tuple[str, ...], vendor: str, kind: str, numa: int, driver: str | None) -> FakeRoot:
        place = "/sys/devices/" + "/".join(chain)
        if not (self.root / place.lstrip("/") / "vendor").exists():
            self.write(f"{place}/vendor", vendor).write(f"{place}/class", kind).write(f"{place}/numa_node", numa)
            self.link(f"/sys/bus/pci/devices/{chain[-1]}", place)
            if driver:
                self.link(f"{place}/driver", f"/sys/bus/pci/drivers/{driver}")
        return self

    def gpu(self, *chain: str, numa: int = -1, driver: bool = True, model: str = "NVIDIA H200") -> FakeRoot:
        self.pci(*chain, vendor="0x10de", kind="0x030200", numa=numa, driver="nvidia" if driver else None)
        if driver:
            place = f"/proc/driver/nvidia/gpus/{chain[-1]}/information"
            self.write(place, f"Model: \t\t {model}\nIRQ:   \t\t 41\nBus Type: \t PCIe\nBus Location: \t {chain[-1]}")
        return self

    def rdma(self, device: str, *chain: str, port: int = 1, link_layer: str = "InfiniBand", state: str = "4: ACTIVE",
             physical: str = "5: LinkUp", rate: str = "400 Gb/sec (4X NDR)", numa: int = -1, driver: str = "mlx5_core",
             interfaces: tuple[str, ...] = (), gids: tuple[tuple[str, str, str], ...] = ()) -> FakeRoot:  # fmt: skip
        """A port. ``gids`` are (GID, type, interface); an empty interface is an index that is not in use."""
        self.pci(*chain, vendor="0x15b3", kind="0x020700", numa=numa, driver=driver)
        function = "/sys/devices/" + "/".join(chain)
        base = f"/sys/class/infiniband/{device}"
        if not (self.root / base.lstrip("/") / "device").exists():
            self.link(f"{base}/device", function)
        for place, name in enumerate(interfaces):
            self.write(f"{function}/net/{name}/dev_port", port - 1 + place)
        path = f"{base}/ports/{port}"
        for name, text in (("state", state), ("phys_state", physical), ("rate", rate), ("link_layer", link_layer)):
            self.write(f"{path}/{name}", text)
        for index, (gid, kind, interface) in enumerate(gids):
            self.write(f"{path}/gids/{index}", gid)
            if interface:
                self.write(f"{path}/gid_attrs/types/{index}", kind)
                self.write(f"{path}/gid_attrs/ndevs/{index}", interface)
            else:
                # The kernel answers EINVAL; a directory in its place cannot be read either.
                (self.root / f"{path}/gid_attrs/types/{index}".lstrip("/")).mkdir(parents=True)
                (self.root / f"{path}/gid_attrs/ndevs/{index}".lstrip("/")).mkdir(parents=True)
        return self

    def net(self, name: str, device: str | None = None, *, driver: str = "mlx5_core", lower: tuple[str, ...] = (),
            **files: str | int) -> FakeRoot:  # fmt: skip
        base = f"/sys/devices/virtual/net/{name}" if device is None else f"{device}/net/{name}"
        for key, value in {"operstate": "up", "carrier": 1, "type": 1, "mtu": 1500, "speed": -1, **files}.items():
            self.write(f"{base}/{key}", value)
        self.link(f"/sys/class/net/{name}", base)
        if device is not None:
            self.link(f"{base}/device", device)
            if not (self.root / device.lstrip("/") / "driver").is_symlink():
                self.link(f"{device}/driver", f"/sys/bus/pci/drivers/{driver}")
        for below in lower:
            self.link(f"{base}/lower_{below}", f"/sys/class/net/{below}")
        return self
