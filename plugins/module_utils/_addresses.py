# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of a node, from netifaces or from iproute2: both give the same answer.

Internal to metalray.cluster: not a public interface.

Order matters. Gloo takes the first address that getifaddrs lists under the name of its interface, and so does NCCL within a
family. netifaces is getifaddrs; ``ip`` prints in the same order, that of the kernel.
"""

from __future__ import annotations

import importlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# Flags of /proc/net/if_inet6 (linux/if_addr.h).
_TEMPORARY, _OPTIMISTIC, _DEPRECATED, _TENTATIVE = 0x01, 0x04, 0x20, 0x40

IF_INET6 = "/proc/net/if_inet6"


@dataclass(frozen=True)
class Address:
    """An address that other machines can reach. ``first`` tells that Gloo and NCCL take it for its interface and family."""

    interface: str
    address: str
    prefix: int
    first: bool


def find_netifaces() -> ModuleType | None:
    """netifaces, or netifaces2, which has the same name; None where this Python has neither."""
    try:
        return importlib.import_module("netifaces")
    except ImportError:
        return None


# Name that getifaddrs shows, address, prefix.
_Entry = tuple[str, str, int]


def _prefix(mask: str | None, version: int) -> int:
    """netifaces writes an IPv6 mask as ``ffff::/16``, netifaces2 as ``ffff::``."""
    address = (mask or "").partition("/")[0]
    try:
        return bin(int(ipaddress.ip_address(address))).count("1")
    except ValueError:
        return 32 if version == 4 else 128


def _from_netifaces(netifaces: Any) -> Iterator[_Entry]:
    for name in netifaces.interfaces():
        try:
            families = netifaces.ifaddresses(name)
        except ValueError:
            continue  # gone since it was listed
        for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            for info in families.get(family, []):
                if info.get("addr"):
                    yield (
                        name,
                        info["addr"],
                        _prefix(info.get("netmask") or info.get("mask"), version),
                    )


def _from_ip(devices: Iterable[Mapping[str, Any]]) -> Iterator[_Entry]:
    for device in devices:
        for info in device.get("addr_info", []):
            if info.get("local"):
                yield info.get("label") or device.get("ifname", ""), info["local"], int(info["prefixlen"])


def _flags(if_inet6: str) -> dict[tuple[str, str], int]:
    """Flags of the IPv6 addresses, by interface and address, from the text of /proc/net/if_inet6."""
    found = {}
    for line in if_inet6.splitlines():
        fields = line.split()
        try:
            found[fields[5], str(ipaddress.IPv6Address(int(fields[0], 16)))] = int(fields[4], 16)
        except (IndexError, ValueError):
            continue
    return found


def _reachable(address: ipaddress.IPv4Address | ipaddress.IPv6Address, flags: int) -> bool:
    # By the address, not by the kernel's scope, which netifaces does not tell.
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    waiting = flags & _TENTATIVE and not flags & _OPTIMISTIC
    return not (flags & (_TEMPORARY | _DEPRECATED) or waiting or getattr(address, "is_site_local", False))


def read_addresses(netifaces: Any, if_inet6: str, devices: Iterable[Mapping[str, Any]] = ()) -> list[Address]:
    """The addresses of every interface that other machines can reach, in the kernel's order.

    They come from the module ``netifaces``, or where that is None from ``devices``, the answer of ``ip -j address``.
    Temporary, deprecated and tentative IPv6 addresses, told by the text of /proc/net/if_inet6, are left out.
    """
    flags = _flags(if_inet6)
    seen: set[tuple[str, int]] = set()
    found = []
    for label, text, prefix in _from_netifaces(netifaces) if netifaces else _from_ip(devices):
        address = ipaddress.ip_address(text)
        # An IPv4 address may have a label of its own, eth0:1. It belongs to eth0, and whoever asks for 'eth0' misses it.
        interface = label.partition(":")[0]
        first = label == interface and (label, address.version) not in seen
        seen.add((label, address.version))
        if _reachable(address, flags.get((interface, str(address)), 0)):
            found.append(Address(interface, str(address), prefix, first))
    return found
