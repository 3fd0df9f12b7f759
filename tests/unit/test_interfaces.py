# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._addresses import read_addresses
from ansible_collections.metalray.cluster.plugins.module_utils._interfaces import (
    Candidate,
    InterfaceError,
    check_routes,
    check_steady,
    choose,
    default_route_devices,
    find_candidates,
    narrow,
    parse_routes,
    read_links,
    route_batch,
    routed_networks,
)
from namespaces import Namespace, needs_namespaces


class Host:
    """A sysfs tree and the JSON of iproute2, as a kernel shows them for the devices that are added."""

    def __init__(self, root: Path) -> None:
        self.root, self.addresses, self.routes = root, [], []

    def add(self, name, address=None, *, speed=None, mtu=1500, device=True, state="up", carrier=1, lower=(), ports=None,
            master=None, arp_type=1, default=False, metric=None, scope="global"):  # fmt: skip
        path = self.root / "sys/class/net" / name
        path.mkdir(parents=True)
        for key, value in {
            "operstate": state,
            "carrier": carrier,
            "type": arp_type,
            "mtu": mtu,
            "speed": speed or -1,
        }.items():
            (path / key).write_text(f"{value}\n")
        for present, entry in (
            (device, "device"),
            (ports is not None, "bridge"),
            (ports is not None, "brif"),
            (master, "master"),
        ):
            if present:
                (path / entry).mkdir()
        for port in ports or ():
            (path / "brif" / port).mkdir()
        for below in lower:
            (path / f"lower_{below}").mkdir()
        info = []
        for text in [address] if isinstance(address, str) else address or []:
            local, prefix = text.split("/")
            info.append(
                {
                    "family": "inet6" if ":" in local else "inet",
                    "local": local,
                    "prefixlen": int(prefix),
                    "scope": scope,
                }
            )
        self.addresses.append({"ifname": name, "addr_info": info})
        if default:
            self.routes.append(
                {"dst": "default", "gateway": "192.0.2.1", "dev": name, **({"metric": metric} if metric else {})}
            )
        return self

    def candidates(self):
        return find_candidates(read_links(str(self.root)), read_addresses(None, "", self.addresses), self.routes)

    def names(self):
        return [c.interface for c in self.candidates()]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_real_devices_with_an_address_that_are_up(host):
    host.add("lo", "127.0.0.1/8", device=False, arp_type=772, scope="host")
    host.add("eno1", "198.51.100.7/24", default=True, speed=1000)
    host.add("enp27s0f0np0", "10.15.22.7/24", speed=100000, mtu=9000)
    host.add("enp27s0f1np1", "10.15.23.7/24", carrier=0, state="down")
    host.add("enp28s0")
    found = host.candidates()
    assert [(c.interface, c.default_route) for c in found] == [("eno1", True), ("enp27s0f0np0", False)]
    assert (found[1].mtu, found[1].speed_mbps, found[1].network, found[1].physical) == (
        9000,
        100000,
        "10.15.22.0/24",
        True,
    )


def test_what_engines_and_overlays_make_is_never_a_candidate(host):
    # Each of them sorts before the real device.
    host.add("br-1a2b3c", "172.18.0.1/16", device=False, ports=["veth1"])
    host.add("cni0", "10.244.0.1/24", device=False, ports=[])
    host.add("docker0", "172.17.0.1/16", device=False, ports=[])
    host.add("enp1s0", "10.0.0.5/24")
    host.add("tun0", "10.8.0.2/24", device=False, arp_type=65534)
    host.add("veth1", "169.254.9.9/16", device=False, master="br-1a2b3c")
    host.add("virbr0", "192.168.122.1/24", device=False, ports=[])
    host.add("wg0", "10.9.0.2/24", device=False)
    assert host.names() == ["enp1s0"]


def test_a_bond_a_vlan_on_it_and_a_bridge_over_a_real_device_count_as_real(host):
    host.add("enp1s0f0", master="bond0", speed=25000).add("enp1s0f1", master="bond0", speed=25000)
    host.add("bond0", "10.0.0.5/24", device=False, lower=["enp1s0f0", "enp1s0f1"], speed=50000)
    host.add("bond0.100", "10.0.100.5/24", device=False, lower=["bond0"])
    host.add("enp2s0", master="vmbr0", speed=10000)
    host.add("vmbr0", "10.1.0.5/24", device=False, ports=["enp2s0"], lower=["enp2s0"])
    found = {c.interface: c for c in host.candidates()}
    assert set(found) == {"bond0", "bond0.100", "vmbr0"} and all(c.physical for c in found.values())
    assert found["bond0.100"].speed_mbps == 50000


def test_ipoib_counts_and_a_container_s_own_ends_do_where_nothing_real_is(host):
    host.add("ib0", "10.3.0.5/24", arp_type=32)
    assert host.names() == ["ib0"]
    host.add("eth0", "10.2.0.5/24", device=False)
    assert [c.interface for c in host.candidates() if not c.physical] == ["eth0"]


def test_link_local_and_temporary_addresses_do_not_count(host):
    host.add("enp1s0", ["fe80::1/64"], scope="link")
    assert host.candidates() == []
    host.add("enp2s0", ["2001:db8::5/64"])
    assert [(c.address, c.version) for c in host.candidates()] == [("2001:db8::5", 6)]


def test_the_default_route_with_the_lowest_metric_counts(host):
    host.add("eno1", "198.51.100.7/24", default=True, metric=100)
    host.add("eno2", "203.0.113.7/24", default=True, metric=200)
    assert default_route_devices(host.routes) == ["eno1"]
    assert [c.default_route for c in host.candidates()] == [True, False]
    several = [{"dst": "default", "nexthops": [{"dev": "a"}, {"dev": "b"}]}]
    assert default_route_devices(several) == ["a", "b"]


def candidate(interface, address, prefix=24, **more) -> Candidate:
    defaults = {"mtu": 1500, "speed_mbps": None, "physical": True, "default_route": False}
    return Candidate(interface=interface, address=address, prefix=prefix, **{**defaults, **more})


def test_the_private_shared_network_wins_over_the_default_route():
    nodes = {
        "a": [
            candidate("eno1", "198.51.100.1", default_route=True, speed_mbps=200000),
            candidate("enp27s0f0np0", "10.15.22.1"),
        ],
        "b": [
            candidate("eno1", "198.51.100.2", default_route=True, speed_mbps=200000),
            candidate("enp157s0f0np0", "10.15.22.2"),
        ],
    }
    picked, network = choose(nodes, "a")
    assert network == "10.15.22.0/24"
    assert {node: c.interface for node, c in picked.items()} == {"a": "enp27s0f0np0", "b": "enp157s0f0np0"}


def test_of_two_private_networks_the_faster_one_wins_by_its_slowest_node():
    nodes = {
        node: [
            candidate("slow", f"10.1.0.{n}", speed_mbps=100000 if n == 1 else 1000),
            candidate("fast", f"10.2.0.{n}", speed_mbps=25000),
        ]
        for n, node in enumerate("ab", start=1)
    }
    assert choose(nodes, "a")[1] == "10.2.0.0/24"


def test_the_same_address_on_every_node_is_not_a_shared_network():
    nodes = {
        node: [candidate("aaa", "192.168.122.1"), candidate("eno1", f"10.0.0.{n}", default_route=True)]
        for n, node in enumerate("abc", start=1)
    }
    assert choose(nodes, "a")[1] == "10.0.0.0/24"


def test_a_network_that_one_node_lacks_is_not_shared():
    nodes = {
        "a": [candidate("x", "10.1.0.1"), candidate("eno1", "10.0.0.1", default_route=True)],
        "b": [candidate("x", "10.1.0.2"), candidate("eno1", "10.0.0.2", default_route=True)],
        "c": [candidate("eno1", "10.0.0.3", default_route=True)],
    }
    assert choose(nodes, "a")[1] == "10.0.0.0/24"


def test_a_subnet_a_node_falls_back_to_each_node_s_best():
    nodes = {
        "a": [candidate("eno1", "203.0.113.1", 32, default_route=True), candidate("fab0", "10.0.1.1", 31)],
        "b": [candidate("eno1", "203.0.113.9", 32, default_route=True), candidate("fab0", "10.0.2.1", 31)],
    }
    picked, network = choose(nodes, "a")
    assert {c.interface for c in picked.values()} == {"fab0"} and network == "10.0.1.0/31"


def test_ipv6_only_and_a_mixture():
    six = {"a": [candidate("e", "2001:db8::1", 64)], "b": [candidate("e", "2001:db8::2", 64)]}
    assert choose(six, "a")[1] == "2001:db8::/64"
    with pytest.raises(InterfaceError, match="only IPv4 and some only IPv6"):
        choose({"a": [candidate("e", "2001:db8::1", 64)], "b": [candidate("e", "10.0.0.2")]}, "a")
    with pytest.raises(InterfaceError, match="b has no interface"):
        choose({"a": six["a"], "b": []}, "a")


def test_the_user_s_choice_narrows_and_names_what_there_is():
    have = [candidate("eno1", "198.51.100.1"), candidate("fab0", "10.0.1.1"), candidate("fab0", "10.0.2.1")]
    assert [c.address for c in narrow(have, "fab0", None)] == ["10.0.1.1", "10.0.2.1"]
    assert [c.address for c in narrow(have, None, "10.0.2.0/24")] == ["10.0.2.1"]
    assert narrow(have, None, None) == have
    with pytest.raises(InterfaceError, match=r"'eth7', but this node has eno1 198\.51\.100\.1/24, fab0"):
        narrow(have, "eth7", None)
    with pytest.raises(InterfaceError, match=r"cluster_cidr is 192\.0\.2\.0/24"):
        narrow(have, None, "192.0.2.0/24")


def test_one_answer_of_the_kernel_must_hold_for_all_peers():
    one = {"dst": "10.0.0.2", "dev": "fab0", "prefsrc": "10.0.0.1"}
    other = {"dst": "10.0.1.2", "dev": "eno1", "prefsrc": "198.51.100.1"}
    assert check_routes({"10.0.0.2": one, "10.0.0.3": one}, "fab0") == ("fab0", "10.0.0.1")
    with pytest.raises(InterfaceError, match=r"eno1 \(from 198.51.100.1\) to 10.0.1.2; fab0"):
        check_routes({"10.0.0.2": one, "10.0.1.2": other})
    with pytest.raises(InterfaceError, match=r"by fab0 .* not by eno1"):
        check_routes({"10.0.0.2": one}, "eno1")


def test_networks_that_a_pool_must_keep_clear_of():
    routes = [
        {"dst": "default", "dev": "eno1"},
        {"dst": "10.15.22.0/24", "dev": "fab0"},
        {"dst": "192.168.7.9", "dev": "eno1"},
        {"dst": "172.17.0.0/16", "dev": "docker0"},
        {"dst": "172.18.0.0/16", "dev": "br-0a1b"},
        {"dst": "169.254.0.0/16", "dev": "eno1"},
        {"dst": "fe80::/64", "dev": "eno1"},
        {"dst": "2001:db8::/64", "dev": "eno1"},
        {"type": "unreachable", "dst": "not-a-network", "dev": "lo"},
    ]
    assert routed_networks(routes) == ["10.15.22.0/24", "192.168.7.9/32", "2001:db8::/64"]


def test_a_candidate_from_an_older_run_has_no_word_on_being_first():
    have = candidate("eno1", "10.0.0.1", first=False)
    assert Candidate.from_dict(have.to_dict()) == have
    older = {name: value for name, value in have.to_dict().items() if name != "first"}
    assert Candidate.from_dict(older).first


def test_names_with_dots_and_of_the_greatest_length_and_links_in_a_circle(host):
    host.add("enp27s0f0np0.10", "10.0.0.5/24", device=False, lower=["enp27s0f0np0"])
    host.add("enp27s0f0np0", speed=100000)
    host.add("a", "10.1.0.5/24", device=False, lower=["b"]).add("b", device=False, lower=["a"])
    found = {c.interface: (c.physical, c.speed_mbps) for c in host.candidates()}
    assert found == {"enp27s0f0np0.10": (True, 100000), "a": (False, None)}


@pytest.mark.parametrize(
    ("name", "text"), [("mtu", ""), ("mtu", "0"), ("type", "x"), ("carrier", ""), ("operstate", "")]
)
def test_an_interface_with_a_file_that_cannot_be_is_no_candidate(host, name, text):
    host.add("eno1", "10.0.0.5/24").add("eno2", "10.1.0.5/24")
    (host.root / "sys/class/net/eno1" / name).write_text(text)
    assert host.names() == ["eno2"]


def test_a_file_that_cannot_be_read_is_no_candidate_either(host):
    host.add("eno1", "10.0.0.5/24", speed=1000)
    for name in ("speed", "carrier"):
        path = host.root / "sys/class/net/eno1" / name
        path.unlink()
        path.mkdir()
        assert host.candidates() == ([] if name == "carrier" else [candidate("eno1", "10.0.0.5")])


def answer(peer, dev="fab0", source="10.0.0.1", **more):
    return json.dumps([{**more, "dst": peer, "dev": dev, "prefsrc": source, "flags": [], "uid": 0, "cache": []}])


def test_answers_for_many_peers_are_told_apart():
    peers = ["10.0.0.2", "10.0.0.3", "2001:DB8::0:1"]
    assert route_batch(peers) == "route get 10.0.0.2\nroute get 10.0.0.3\nroute get 2001:DB8::0:1\n"
    out = "\n".join([answer("10.0.0.3"), answer("2001:db8::1", source="2001:db8::5"), answer("10.0.0.2", dev="eno1")])
    found = parse_routes(peers, out, "")
    assert {peer: route["dev"] for peer, route in found.items()} == {
        "10.0.0.2": "eno1",
        "10.0.0.3": "fab0",
        "2001:DB8::0:1": "fab0",
    }


def test_no_answer_names_the_command_the_peer_and_the_reason():
    err = "RTNETLINK answers: Network is unreachable\nCommand failed -:2\n"
    with pytest.raises(
        InterfaceError, match=r"no route to a peer: 'ip route get 10.9.9.9' failed: RTNETLINK .* unreachable\. "
    ):
        parse_routes(["10.0.0.2", "10.9.9.9"], answer("10.0.0.2"), err)
    with pytest.raises(InterfaceError, match=r"get 10.9.9.9' failed: no answer"):
        parse_routes(["10.9.9.9"], "", "")
    with pytest.raises(InterfaceError, match=r"'ip route get 10\.9\.9\.2' .* \(and 7 more\)"):
        parse_routes([f"10.9.9.{n}" for n in range(10)], "", "")
    with pytest.raises(InterfaceError, match=r"'ip -j route get' answered '\[{\"dst\"', which is no JSON"):
        parse_routes(["10.0.0.2"], '[{"dst"', "")
    with pytest.raises(InterfaceError, match=r"10\.0\.0\.1 is an address of this node"):
        parse_routes(["10.0.0.1"], answer("10.0.0.1", dev="lo", type="local"), "")


def test_a_route_that_changes_between_two_looks():
    before, now = ({"10.0.0.2": {"dev": dev, "prefsrc": "10.0.0.1", "cache": [dev]}} for dev in ("fab0", "eno1"))
    check_steady(before, {"10.0.0.2": {**before["10.0.0.2"], "cache": []}})
    with pytest.raises(InterfaceError, match=r"10.0.0.2 changed .* by fab0 \(from 10.0.0.1\), then by eno1 \(from 10"):
        check_steady(before, now)


# On a real kernel, in a namespace


@pytest.fixture
def node(tmp_path):
    node = Namespace(tmp_path / "bin")
    yield node
    node.remove()


def default_interface(node, *peers, **options):
    result = node.module("default_interface_facts", peers=list(peers), **options)
    assert "ansible_facts" in result, result
    return result["ansible_facts"]["default_interface"]


def wrap_ip(node, before=""):
    """An ip in front of the real one that writes down its calls, and runs ``before`` at the second batch."""
    node.tools.mkdir()
    script = node.tools / "ip"
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {node.tools}/calls\n'
        f'[ "$(grep -c batch {node.tools}/calls)" != 2 ] || {{ {before or ":"}; }}\nexec {shutil.which("ip")} "$@"\n'
    )
    script.chmod(0o755)


@needs_namespaces
def test_rules_metrics_and_two_default_routes_on_a_real_kernel(node):
    node.pair("eno1", "far1", "10.1.0.1/24", "2001:db8:1::1/64")
    node.pair("fab0", "far2", "10.2.0.1/24")
    node.batch(
        "route add default via 10.1.0.254 dev eno1 metric 200",
        "route add default via 10.2.0.254 dev fab0 metric 100",
        "route add 10.9.0.0/24 via 10.1.0.254 dev eno1",
        # The main table says eno1 for this one; the rule has the last word.
        "route add 10.9.0.0/24 via 10.2.0.254 dev fab0 table 100",
        "rule add to 10.9.0.128/25 lookup 100",
    )
    both = default_interface(node, "203.0.113.5")
    assert (both["interface"], both["address"], both["default_route"]) == ("fab0", "10.2.0.1", True)
    assert default_interface(node, "10.9.0.5")["interface"] == "eno1"
    assert default_interface(node, "10.9.0.200", "10.2.0.7")["interface"] == "fab0"
    assert default_interface(node, "2001:db8:1::9")["address"] == "2001:db8:1::1"
    assert (
        "different interfaces: eno1" in node.module("default_interface_facts", peers=["10.9.0.5", "10.9.0.200"])["msg"]
    )
    wrong = node.module("default_interface_facts", peers=["10.9.0.200"], interface="eno1")
    assert "reaches 10.9.0.200 by fab0 (from 10.2.0.1), not by eno1" in wrong["msg"]


@needs_namespaces
def test_no_route_and_an_address_of_its_own_on_a_real_kernel(node):
    node.pair("fab0", "far0", "10.2.0.1/24")
    node.batch("rule add to 10.2.0.9 unreachable")
    for peer, reason in (
        ("192.0.2.9", "Network is unreachable"),
        ("10.2.0.9", "No route to host|Network is unreachable"),
    ):
        refused = node.module("default_interface_facts", peers=["10.2.0.2", peer])
        pattern = rf"no route to a peer: 'ip route get {re.escape(peer)}' failed: RTNETLINK answers: ({reason})\. Bring"
        assert refused["failed"] and re.search(pattern, refused["msg"])
    assert "10.2.0.1 is an address of this node" in node.module("default_interface_facts", peers=["10.2.0.1"])["msg"]


@needs_namespaces
def test_a_docker_bridge_that_sorts_first_and_an_address_that_is_not_the_first(node):
    node.pair("fab0", "veth0", "10.2.0.1/24", "10.3.0.1/24")
    node.batch("link add docker0 type bridge", "addr add 10.0.0.1/16 dev docker0", "link set veth0 master docker0",
               "link set docker0 up")  # fmt: skip
    assert default_interface(node)["interface"] == "fab0"
    assert [default_interface(node, peer)["first"] for peer in ("10.2.0.5", "10.3.0.5")] == [True, False]
    assert (
        "by docker0 (from 10.0.0.1), which cannot" in node.module("default_interface_facts", peers=["10.0.0.7"])["msg"]
    )


@needs_namespaces
def test_two_hundred_peers_cost_two_processes_and_sixty_four_interfaces_are_read(node):
    for n in range(32):
        node.pair(f"enp{n}s0f0np0.{100 + n}"[:15], f"far{n}", f"10.{n}.0.1/16")
    wrap_ip(node)
    start = time.monotonic()
    found = default_interface(node, *(f"10.31.{n // 250}.{n % 250 + 2}" for n in range(200)))
    assert (found["interface"], found["address"]) == ("enp31s0f0np0.13", "10.31.0.1")
    calls = (node.tools / "calls").read_text().splitlines()
    assert [call for call in calls if "batch" in call] == ["-j -force -batch -"] * 2 and len(calls) <= 5
    assert time.monotonic() - start < 10
    facts = node.module("node_facts")["ansible_facts"]["metalray_node"]
    assert len(facts["fabric"]["interfaces"]) == 65 and len(facts["candidates"]) == 32


@needs_namespaces
def test_a_route_that_flaps_while_the_module_looks(node):
    node.pair("eno1", "far1", "10.1.0.1/24")
    node.pair("fab0", "far2", "10.2.0.1/24")
    node.batch("route add 10.9.0.0/24 via 10.1.0.254 dev eno1")
    wrap_ip(node, before=f"{shutil.which('ip')} route replace 10.9.0.0/24 via 10.2.0.254 dev fab0")
    refused = node.module("default_interface_facts", peers=["10.9.0.5"])
    assert "the route to 10.9.0.5 changed" in refused["msg"]
    assert "first by eno1 (from 10.1.0.1), then by fab0 (from 10.2.0.1)" in refused["msg"]


def test_this_machine_s_own_network_is_read(run_module):
    """The module on a real kernel: whatever it names exists and carries the address."""
    result = run_module("default_interface_facts")
    if result.get("failed"):
        assert "no interface that is up" in result["msg"] or "has no interface" in result["msg"]
        return
    facts = result["ansible_facts"]["default_interface"]
    assert Path("/sys/class/net", facts["interface"]).exists()
    mismatch = run_module("default_interface_facts", interface="no-such-device")
    assert mismatch["failed"] and facts["address"] in mismatch["msg"]
    assert run_module("default_interface_facts", peers=["not-an-address"])["failed"]
