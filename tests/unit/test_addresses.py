# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of a node: from netifaces and from iproute2, which must not differ."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._addresses import Address, find_netifaces, read_addresses
from namespaces import Namespace, needs_namespaces


class Netifaces:
    """The functions of netifaces over {interface: [address/prefix]}. netifaces2 writes masks under another key, and plainly."""

    def __init__(self, addresses, *, second=False, gone=()):
        self.addresses, self.second, self.gone = addresses, second, gone

    def interfaces(self):
        return [*self.addresses, *self.gone]

    def ifaddresses(self, name):
        if name in self.gone:
            raise ValueError("You must specify a valid interface name.")
        found = {socket.AF_PACKET: [{"addr": "02:fc:00:00:00:01", "broadcast": "ff:ff:ff:ff:ff:ff"}]}
        for text in self.addresses[name]:
            item = ipaddress.ip_interface(text)
            mask = str(item.netmask)
            if item.version == 4:
                found.setdefault(socket.AF_INET, []).append({"addr": str(item.ip), self._key: mask})
            else:
                zone = f"%{name}" if item.ip.is_link_local and not self.second else ""
                mask = mask if self.second else f"{mask}/{item.network.prefixlen}"
                found.setdefault(socket.AF_INET6, []).append({"addr": f"{item.ip}{zone}", self._key: mask})
        return found

    @property
    def _key(self):
        return "mask" if self.second else "netmask"

    def gateways(self):
        raise AssertionError("the kernel is asked for routes")


def inet6(*entries):
    """/proc/net/if_inet6 of (address, flags, interface)."""
    return "".join(
        f"{int(ipaddress.IPv6Address(address)):032x} 02 40 00 {flags:02x} {name:>8}\n"
        for address, flags, name in entries
    )


@pytest.mark.parametrize("second", [False, True])
def test_addresses_and_prefixes_of_both_libraries(second):
    have = {
        "lo": ["127.0.0.1/8", "::1/128"],
        "eth0": ["10.0.0.9/24", "10.9.0.1/32", "fd00::2/64", "fe80::1/64"],
        "enp27s0f0np0.10": ["192.168.5.1/31"],
        "docker0": [],
    }
    assert read_addresses(Netifaces(have, second=second, gone=["veth1"]), "") == [
        Address("eth0", "10.0.0.9", 24, True),
        Address("eth0", "10.9.0.1", 32, False),
        Address("eth0", "fd00::2", 64, True),
        Address("enp27s0f0np0.10", "192.168.5.1", 31, True),
    ]


def test_flags_that_only_the_kernel_tells():
    have = {"eth0": [f"2001:db8::{n}/64" for n in range(1, 7)]}
    flags = [(f"2001:db8::{n}", flag, "eth0") for n, flag in enumerate([0x01, 0x20, 0x40, 0x44, 0x80], start=1)]
    kernel = inet6(*flags, ("2001:db8::6", 0x01, "eth1"))
    found = read_addresses(Netifaces(have), kernel + "garbage\n\nzz 0 0 0 0 eth0\n")
    # Optimistic, permanent, and one whose flags are those of another interface.
    assert [address.address for address in found] == ["2001:db8::4", "2001:db8::5", "2001:db8::6"]
    # A temporary address stands before them, and Gloo and NCCL would take it.
    assert not any(address.first for address in found)


def test_an_address_with_a_label_of_its_own_is_missed_by_who_asks_for_the_interface():
    labelled = {"eth0": ["169.254.7.7/16", "10.0.0.9/24"], "eth0:1": ["10.0.0.4/24"]}
    assert read_addresses(Netifaces(labelled), "") == [
        Address("eth0", "10.0.0.9", 24, False),
        Address("eth0", "10.0.0.4", 24, False),
    ]


def test_what_iproute2_prints_is_read_where_netifaces_is_not_there(monkeypatch):
    devices = [
        {"ifname": "eth0", "addr_info": [{"local": "10.0.0.9", "prefixlen": 24, "label": "eth0"}, {}]},
        {"ifname": "eth1"},
        {},
    ]
    assert read_addresses(None, "", devices) == [Address("eth0", "10.0.0.9", 24, True)]
    monkeypatch.setitem(sys.modules, "netifaces", None)
    assert find_netifaces() is None
    monkeypatch.setitem(sys.modules, "netifaces", json)
    assert find_netifaces() is json


# getifaddrs(3) itself, in the shape of netifaces: what Gloo and NCCL see.
BOTH = """
import ctypes, ipaddress, json, socket, struct, subprocess, sys
from ansible_collections.metalray.cluster.plugins.module_utils import _addresses as subject

class Entry(ctypes.Structure):
    pass

Entry._fields_ = [("next", ctypes.POINTER(Entry)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint),
                  ("addr", ctypes.c_void_p), ("mask", ctypes.c_void_p), ("other", ctypes.c_void_p), ("data", ctypes.c_void_p)]

def text(place):
    family = ctypes.cast(place, ctypes.POINTER(ctypes.c_ushort)).contents.value
    start, size = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}[family]
    return family, socket.inet_ntop(family, ctypes.string_at(place + start, size))

class Getifaddrs:
    def __init__(self):
        head = ctypes.POINTER(Entry)()
        assert ctypes.CDLL(None).getifaddrs(ctypes.byref(head)) == 0
        self.found = {}
        while head:
            entry = head.contents
            families = self.found.setdefault(entry.name.decode(), {})
            family = ctypes.cast(entry.addr, ctypes.POINTER(ctypes.c_ushort)).contents.value if entry.addr else 0
            if family in (socket.AF_INET, socket.AF_INET6):
                families.setdefault(family, []).append({"addr": text(entry.addr)[1], "netmask": text(entry.mask)[1]})
            head = entry.next

    def interfaces(self):
        return list(self.found)

    def ifaddresses(self, name):
        return self.found[name]

kernel = open(subject.IF_INET6).read()
listed = json.loads(subprocess.run(["ip", "-j", "address"], capture_output=True, text=True, check=True).stdout)
module = subject.find_netifaces() or Getifaddrs()
sources = [subject.read_addresses(Getifaddrs(), kernel), subject.read_addresses(module, kernel),
           subject.read_addresses(None, kernel, listed)]
print(json.dumps([sorted([a.interface, a.address, a.prefix, a.first] for a in found) for found in sources]))
"""


@needs_namespaces
def test_both_ways_give_the_same_for_an_odd_node(tmp_path):
    node = Namespace(tmp_path)
    try:
        node.pair(
            "eth0.100",
            "enp27s0f0np0.10",
            "10.0.0.9/24",
            "10.0.0.3/24",
            "192.168.5.1/31",
            "10.9.0.1/32",
            "2001:db8::5/64",
        )
        node.batch(
            "addr add 10.0.0.4/24 dev eth0.100 label eth0.100:1",
            "addr add 169.254.7.7/16 dev eth0.100 scope link",
            "addr add 10.20.0.1 peer 10.20.0.2/32 dev eth0.100",
            "addr add 10.40.0.1/24 dev eth0.100 scope link",
            "addr add 10.41.0.1/24 dev eth0.100 preferred_lft 0",
            "addr add 10.50.0.1/24 dev lo",
            "addr add 10.60.0.1/24 dev enp27s0f0np0.10",
            "addr add 2001:db8:1::5/64 dev eth0.100 preferred_lft 0 nodad",
            "addr add 2001:db8:2::5/128 dev eth0.100 nodad",
            "addr add fec0::5/64 dev eth0.100 nodad",
            "addr add 2001:db8:4::1 peer 2001:db8:4::2/128 dev enp27s0f0np0.10 nodad",
            "link add labelled type bridge",
            "addr add 10.70.0.1/24 dev labelled label labelled:1",
            "link add docker0 type bridge",
            "addr add 172.17.0.1/16 dev docker0",
        )
        by_libc, by_module, by_ip = json.loads(node.python(BOTH))
    finally:
        node.remove()
    assert by_libc == by_module == by_ip
    found = {address: (interface, prefix, first) for interface, address, prefix, first in by_ip}
    # The kernel lists addresses of a narrower scope first, secondary ones last, and labelled ones under another name.
    assert found == {
        "10.40.0.1": ("eth0.100", 24, False),
        "10.0.0.9": ("eth0.100", 24, False),
        "192.168.5.1": ("eth0.100", 31, False),
        "10.9.0.1": ("eth0.100", 32, False),
        "10.20.0.1": ("eth0.100", 32, False),
        "10.41.0.1": ("eth0.100", 24, False),
        "10.0.0.3": ("eth0.100", 24, False),
        "10.0.0.4": ("eth0.100", 24, False),
        "2001:db8:2::5": ("eth0.100", 128, True),
        "2001:db8::5": ("eth0.100", 64, False),
        "10.60.0.1": ("enp27s0f0np0.10", 24, True),
        "2001:db8:4::1": ("enp27s0f0np0.10", 128, True),
        "10.70.0.1": ("labelled", 24, False),
        "10.50.0.1": ("lo", 24, False),
        "172.17.0.1": ("docker0", 16, True),
    }
