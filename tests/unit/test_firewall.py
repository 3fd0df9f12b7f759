# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall: its decisions as pure functions, and its rules in network namespaces with the kernel's own filters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _firewall as fw
from namespaces import needs_namespaces

pytestmark = pytest.mark.tools

MEMBER, STRANGER, NODE, NODE_TO_STRANGER = "10.99.1.2", "10.99.2.2", "10.99.1.1", "10.99.2.1"


def nets(*addresses: str) -> list[fw.Network]:
    return fw.parse_networks(addresses, "members")


def closing(*addresses: str, tcp: str = "6379-6384", udp: str | None = None) -> fw.Closing:
    return fw.Closing(nets(*addresses), [fw.parse_port(tcp)], [fw.parse_port(udp)] if udp else [])


# Ports


@pytest.mark.parametrize(
    ("text", "expected"),
    [(6379, (6379, 6379)), ("8265", (8265, 8265)), ("10002-19999", (10002, 19999)), (" 1 - 65535 ", (1, 65535))],
)
def test_ports_are_numbers_or_ranges(text, expected):
    assert fw.parse_port(text) == expected


@pytest.mark.parametrize("text", ["", "0", "65536", "9-8", "1-65536", "ssh", "-1", "6379; drop", "6379,6380", None])
def test_what_is_no_port_is_refused_with_its_value(text):
    with pytest.raises(fw.FirewallError, match="no port: give a number"):
        fw.parse_port(text)


def test_ranges_merge_where_they_touch():
    assert fw.merge([(5, 9), (1, 3), (4, 4), (20, 30), (25, 26)]) == [(1, 9), (20, 30)]


def test_single_ports_are_cut_out_of_ranges():
    assert fw.subtract([(20, 30)], [20, 25, 30, 99]) == [(21, 24), (26, 29)]
    assert fw.subtract([(22, 22)], [22]) == []


def test_ssh_inside_a_closed_range_stays_open():
    closed = fw.closed_ports(["10001-19999", 8265], (32768, 60999), ssh=[22, 12222, 40000])
    assert closed == [(8265, 8265), (10001, 12221), (12223, 19999), (32768, 39999), (40001, 60999)]


@pytest.mark.parametrize("port", [22, "2222", "22-22"])
def test_closing_ssh_by_name_is_refused(port):
    with pytest.raises(fw.FirewallError, match=r"SSH's on this node \(22, 2222\) and SSH is never closed"):
        fw.closed_ports([6379, port], None, ssh=[2222, 22])


# Addresses


def test_networks_are_sorted_and_those_inside_another_are_left_out():
    assert [str(net) for net in nets("fd00::2", "10.0.0.9", "10.0.0.7/24", "10.0.1.1", "10.0.1.1")] == [
        "10.0.0.0/24",
        "10.0.1.1/32",
        "fd00::2/128",
    ]


@pytest.mark.parametrize("value", ["node1", "", "10.0.0.300", "10.0.0.1/33", "fe80::1/64x", "0.0.0.0/0", "::/0", None])
def test_bad_addresses_are_refused_with_the_option(value):
    with pytest.raises(fw.FirewallError, match="members: "):
        nets(value)


# SSH


SS = """\
LISTEN 0      128          0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=38,fd=3))
LISTEN 0      4096      127.0.0.11:43233      0.0.0.0:*
LISTEN 0      128             [::]:2222          [::]:*    users:(("sshd",pid=38,fd=4),("systemd",pid=1,fd=9))
LISTEN 0      4096               *:10250             *:*    users:(("kubelet",pid=9,fd=4))
LISTEN 0      10     fe80::1%eth0]:2022          [::]:*    users:(("dropbear",pid=5,fd=4))
"""


def test_ssh_daemons_are_found_by_their_name():
    assert fw.ssh_listeners(SS) == {22, 2222, 2022}


def test_socket_activated_ssh_is_found():
    lines = ["0.0.0.0:22 (Stream)", "[::]:2222 (Stream)", "/run/x.sock (Stream)", "2022 (Stream)", "53 (Datagram)"]
    shown = "".join(f"Listen={line}\n" for line in lines)
    assert fw.ssh_sockets(shown) == {22, 2222, 2022}


def test_the_present_connection_is_found_through_sudo(tmp_path):
    for pid, parent, environ in (
        (30, 20, b"PATH=/bin\0"),
        (20, 10, b"A=1\0SSH_CONNECTION=198.51.100.7 50000 10.0.0.1 2200\0B=2\0"),
        (10, 1, b""),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "environ").write_bytes(environ)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (odd) name)) S {parent} 0 0")
    assert fw.ssh_connection_port(30, str(tmp_path)) == 2200
    assert fw.ssh_connection_port(10, str(tmp_path)) is None
    assert fw.ssh_connection_port(99, str(tmp_path)) is None


def test_port_22_counts_as_ssh_whatever_listens():
    assert 22 in fw.find_ssh_ports(lambda argv, stdin=None: (0, "", ""))


def test_the_ephemeral_range_is_read(tmp_path):
    (tmp_path / "range").write_text("32768\t60999\n")
    assert fw.ephemeral_ports(str(tmp_path / "range")) == (32768, 60999)


# Our own table


def test_the_table_names_members_networks_and_ports():
    text = fw.render_table(closing("10.0.0.1", "fd00::1", "10.1.0.0/16", udp="111"))
    assert "elements = { 10.0.0.1, 10.1.0.0/16 }" in text
    assert "elements = { fd00::1 }" in text
    assert "elements = { 6379-6384 }" in text
    assert text.index("delete table inet metalray") < text.index("set allowed4")


def test_set_elements_compare_in_every_spelling_of_nft():
    spelled = [
        "10.0.0.1",
        {"elem": {"val": "10.0.0.2", "counter": {"packets": 1}}},
        {"prefix": {"addr": "10.0.1.0", "len": 24}},
        {"range": ["10.0.0.3", "10.0.0.4"]},
    ]
    assert fw.element_ranges(spelled) == fw.network_ranges(
        nets("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.0/24")
    )
    assert fw.element_ranges([22, {"range": [6379, 6384]}]) == [(22, 22), (6379, 6384)]


# Other nftables tables


def chain(name: str, *, hook: str | None = None, policy: str = "accept", table: str = "site") -> dict:
    base = {"hook": hook, "type": "filter", "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": "inet", "table": table, "name": name, "handle": 1, **base}}


def rule(chain_name: str, *expr: dict, handle: int = 5, comment: str | None = None, table: str = "site") -> dict:
    extra = {"comment": comment} if comment else {}
    return {
        "rule": {"family": "inet", "table": table, "chain": chain_name, "handle": handle, "expr": list(expr), **extra}
    }


def ruleset(*items: dict, table: str = "site", family: str = "inet") -> fw.Ruleset:
    return fw.parse_ruleset(
        json.dumps({"nftables": [{"metainfo": {}}, {"table": {"family": family, "name": table}}, *items]})
    )


ACCEPT_MEMBER = (
    {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"set": [MEMBER]}}},
    {"accept": None},
)


@pytest.mark.parametrize(
    "items",
    [
        [chain("in", hook="input", policy="drop")],
        [chain("in", hook="input"), rule("in", {"reject": {"type": "icmpx"}})],
        [chain("in", hook="input"), chain("sub"), rule("in", {"jump": {"target": "sub"}}), rule("sub", {"drop": None})],
        [chain("in", hook="input"), rule("in", {"vmap": {"key": {}, "data": {"set": [[22, {"drop": None}]]}}})],
        [
            chain("in", hook="input"),
            {"map": {"family": "inet", "table": "site", "name": "m", "elem": [[22, {"goto": {"target": "sub"}}]]}},
            chain("sub"),
            rule("sub", {"drop": None}),
            rule("in", {"vmap": {"key": {}, "data": "@m"}}),
        ],
    ],
    ids=["policy", "reject", "jump", "vmap", "named map"],
)
def test_whatever_can_drop_input_is_opened_for_members(items):
    (step,) = fw.plan_tables(ruleset(*items), nets(MEMBER), set())
    assert step.stdin == f'insert rule inet site in ip saddr {{ {MEMBER} }} accept comment "metalray"\n'


@pytest.mark.parametrize(
    "items",
    [
        [chain("in", hook="input"), rule("in", {"accept": None})],
        [chain("out", hook="output", policy="drop")],
        [chain("in", hook="input"), chain("unused"), rule("unused", {"drop": None})],
        [
            chain("in", hook="input"),
            chain("a"),
            rule("in", {"jump": {"target": "a"}}),
            rule("a", {"jump": {"target": "a"}}),
        ],
        [chain("in", hook="input"), rule("in", {"log": {"prefix": "drop"}}, comment="drop")],
    ],
    ids=["accepts", "output", "unreachable", "loop", "only words"],
)
def test_what_cannot_drop_input_is_left_alone(items):
    assert fw.plan_tables(ruleset(*items), nets(MEMBER), set()) == []


def test_a_rule_of_ours_at_the_head_is_enough():
    items = [chain("in", hook="input", policy="drop"), rule("in", *ACCEPT_MEMBER, comment="metalray")]
    assert fw.plan_tables(ruleset(*items), nets(MEMBER), set()) == []
    assert fw.plan_tables(ruleset(*items, rule("in", {"drop": None})), nets(MEMBER), set()) == []


@pytest.mark.parametrize("change", ["members", "behind a drop", "twice", "not needed", "tampered"])
def test_a_rule_of_ours_that_does_not_serve_is_replaced(change):
    ours = rule("in", *ACCEPT_MEMBER, handle=7, comment="metalray")
    base = chain("in", hook="input", policy="accept" if change == "not needed" else "drop")
    items = {
        "behind a drop": [base, rule("in", {"drop": None}), ours],
        "twice": [base, ours, ours],
        "tampered": [base, rule("in", {"counter": {}}, *ACCEPT_MEMBER, handle=7, comment="metalray")],
    }.get(change, [base, ours])
    (step,) = fw.plan_tables(ruleset(*items), nets("10.0.0.8" if change == "members" else MEMBER), set())
    assert "delete rule inet site in handle 7" in step.stdin
    assert ("insert rule" in step.stdin) == (change != "not needed")


def test_tables_of_others_who_keep_them_are_left_alone():
    drop = chain("in", hook="input", policy="drop")
    assert fw.plan_tables(ruleset(drop), nets(MEMBER), {("inet", "site")}) == []
    owned = ruleset(drop)
    owned["inet", "site"].owned = True
    assert fw.plan_tables(owned, nets(MEMBER), set()) == []


# iptables

DOCKER = """\
# Generated by iptables-save v1.8.9 (nf_tables)
*nat
:INPUT ACCEPT [0:0]
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:f2b-sshd - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "not -j DROP" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
-A f2b-sshd -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN
COMMIT
"""


def test_the_filter_table_is_read():
    chains = fw.parse_save(DOCKER)
    assert chains["INPUT"].policy == "DROP"
    assert fw.rule_target(chains["INPUT"].rules[1]) == "ACCEPT"
    assert fw.iptables_filters(chains, "f2b-sshd")
    assert fw.docker_filters(chains)


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        # Started where forwarding was on already: it drops nothing, until the next boot.
        (":FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n", True),
        (":FORWARD DROP [0:0]\n", False),
        ("", False),
    ],
)
def test_docker_is_known_by_its_chain(text, filters):
    chains = fw.parse_save(f"*filter\n:INPUT ACCEPT [0:0]\n{text}COMMIT\n")
    assert fw.docker_filters(chains) is filters


def test_a_table_that_only_nft_can_show_is_not_iptables():
    assert fw.parse_save("# Table `filter' is incompatible, use 'nft' tool.\n") is None


def test_members_are_accepted_before_anything_in_input_and_docker():
    (step,) = fw.plan_iptables("iptables-nft", fw.parse_save(DOCKER), nets(MEMBER), forward=True)
    lines = step.stdin.splitlines()
    assert "-I INPUT 1 -j METALRAY-INPUT" in lines
    assert f"-A METALRAY-INPUT -s {MEMBER}/32 -j ACCEPT" in lines
    assert "-I DOCKER-USER 1 -j METALRAY-FORWARD" in lines
    assert f"-A METALRAY-MEMBERS -d {MEMBER}/32 -j ACCEPT" in lines
    assert not any(line.startswith((":INPUT", ":DOCKER", ":f2b")) for line in lines), "declaring a chain empties it"


@pytest.mark.parametrize("text", ["-A INPUT -j ufw-before-input\n", "-A INPUT -j INPUT_ZONES\n"])
def test_ufw_and_firewalld_keep_their_own_iptables(text):
    chains = fw.parse_save("*filter\n:INPUT DROP [0:0]\n" + text + "COMMIT\n")
    assert fw.plan_iptables("iptables-nft", chains, nets(MEMBER), forward=False) == []


def test_an_input_that_accepts_all_gets_no_chain():
    chains = fw.parse_save("*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    assert fw.plan_iptables("iptables-nft", chains, nets(MEMBER), forward=False) == []


def test_docker_that_has_not_started_finds_its_chain_made():
    (step,) = fw.plan_iptables("iptables-nft", {}, nets(MEMBER), forward=True)
    assert ":DOCKER-USER - [0:0]" in step.stdin


# ufw

UFW = """\
Added user rules (see 'ufw status' for running firewall):
ufw allow from 10.77.0.12 comment 'metalray'
ufw allow 22/tcp
ufw deny from 10.9.0.0/24 comment 'their rule'
ufw allow from 10.77.0.13
ufw allow from fd00::12 comment 'metalray'
"""


def test_ufw_gets_what_is_missing_and_loses_what_is_stale():
    rules = fw.parse_ufw(UFW)
    assert rules[0] == ("allow from 10.77.0.12", "metalray")
    (step,) = fw.plan_ufw(rules, nets("10.77.0.12", "10.77.0.13", "10.77.0.14"))
    assert step.commands == [
        ["ufw", "--force", "delete", "allow", "from", "fd00::12"],
        ["ufw", "prepend", "allow", "from", "10.77.0.14", "comment", "metalray"],
    ]


def test_ufw_keeps_a_rule_that_an_administrator_wrote():
    assert fw.plan_ufw(fw.parse_ufw(UFW), nets("10.77.0.12", "10.77.0.13", "fd00::12")) == []
    (step,) = fw.plan_ufw(fw.parse_ufw(UFW), [])
    assert [command[-1] for command in step.commands] == ["10.77.0.12", "fd00::12"]


def test_ufw_is_not_asked_where_it_is_off(tmp_path):
    (tmp_path / "ufw.conf").write_text("# ENABLED=yes\nENABLED=no\n")

    def run(argv, stdin=None):
        raise AssertionError(argv)

    assert not fw.ufw_active(run, str(tmp_path / "ufw.conf"))
    assert not fw.ufw_active(run, str(tmp_path / "missing"))


# firewalld

ZONES = """\
drop
  target: DROP
  rich rules:

public (default, active)
  target: default
  interfaces: eth0
  rich rules:
\trule priority="-31867" family="ipv4" source address="10.77.0.12" accept
\trule family="ipv4" source address="10.9.0.0/24" reject

trusted (active)
  target: ACCEPT
  interfaces: cni0
  rich rules:
"""


def test_firewalld_zones_in_use_are_opened_now_and_for_good():
    zones = fw.parse_zones(ZONES)
    steps = fw.plan_firewalld(zones, fw.parse_zones(""), "public", nets("10.77.0.13"))
    assert [command for step in steps for command in step.commands] == [
        [
            "firewall-cmd",
            "--zone=public",
            '--remove-rich-rule=rule priority="-31867" family="ipv4" source address="10.77.0.12" accept',
        ],
        [
            "firewall-cmd",
            "--zone=public",
            '--add-rich-rule=rule priority="-31867" family="ipv4" source address="10.77.0.13" accept',
        ],
    ]
    assert fw.plan_firewalld(zones, zones, "public", nets("10.77.0.12")) == []


def test_firewalld_loses_only_our_rules():
    (step,) = fw.plan_firewalld(fw.parse_zones(ZONES), {}, "public", [])
    assert len(step.commands) == 1
    assert "10.9.0.0" not in str(step.commands)


# Files


def test_the_unit_comes_back_after_the_systems_own_rules_and_opens_nothing_when_stopped():
    text = fw.unit_text("/usr/sbin/nft", "/usr/bin/python3")
    assert "ExecStop=" not in text
    assert "PartOf=nftables.service" in text
    assert "ExecStart=/usr/sbin/nft -f /etc/metalray/firewall.nft" in text


def test_the_config_of_an_earlier_run_is_read_and_nonsense_is_not(tmp_path):
    path = tmp_path / "firewall.json"
    path.write_text(fw.config_text(nets(MEMBER), ["iptables-nft"]))
    assert fw.read_config(str(path)) == (nets(MEMBER), ["iptables-nft"])
    for nonsense in ("", "{", "[]", '"x"'):
        path.write_text(nonsense)
        assert fw.read_config(str(path)) == ([], [])


def test_rules_saved_by_others_with_ours_in_them_are_named(tmp_path):
    (tmp_path / "a").write_text("-A INPUT -j METALRAY-INPUT\n")
    (tmp_path / "b").write_text("table inet site {}\n")
    paths = [str(tmp_path / name) for name in "abc"]
    assert fw.saved_copies(paths) == paths[:1]


# In the kernel: a node with a member on one link and a stranger on another

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("nft", "iptables-nft", "iptables-legacy"))), reason="needs nft and iptables"
)

# Runs inside the node: plans, applies, and says what it did.
DRIVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("fw", sys.argv[1])
fw = importlib.util.module_from_spec(spec); sys.modules["fw"] = fw; spec.loader.exec_module(fw)
import subprocess
def run(argv, stdin=None):
    done = subprocess.run([fw.which(argv[0]) or argv[0], *argv[1:]], input=stdin, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr
want = json.loads(sys.argv[2])
members = fw.parse_networks(want["members"], "members")
kernel = fw.observe(run)
forward = fw.forward_tools(kernel, []) if members else []
closing = fw.Closing(members, [tuple(r) for r in want["tcp"]], [(111, 111)]) if members else None
steps = fw.plan_kernel(kernel, members, forward) + fw.plan_table(kernel.ruleset, closing)
for step in steps:
    fw.apply_step(run, step)
print(json.dumps([step.what for step in steps]))
"""

SERVER = """
import socket, sys, threading
def serve(family, host, port):
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((host, port)); s.listen()
    held = []
    while True:
        c = s.accept()[0]
        threading.Thread(target=lambda c=c: [c.sendall(b) for b in iter(lambda: c.recv(64), b"")], daemon=True).start()
for port in map(int, sys.argv[1:]):
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        threading.Thread(target=serve, args=(family, host, port)).start()
print("ready", flush=True)
"""

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.7).close(); print("open")
except socket.timeout: print("silent")
except OSError as error: print(error.strerror)
"""


class Lab:
    """Three network namespaces."""

    def __init__(self) -> None:
        self.names = {who: f"mrfw-{who}-{os.getpid()}" for who in ("node", "member", "stranger")}
        self.servers: list[subprocess.Popen[str]] = []

    def sh(self, who: str, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[who], *argv], input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stderr}"
        return done.stdout

    def nft(self, text: str) -> None:
        self.sh("node", "nft", "-f", "-", stdin=text)

    def up(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
        for who, net in (("member", 1), ("stranger", 2)):
            link = f"to-{who}"
            self.sh("node", "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.names[who])
            for side, device, last in (("node", link, 1), (who, "eth0", 2)):
                self.sh(side, "ip", "addr", "add", f"10.99.{net}.{last}/24", "dev", device)
                self.sh(side, "ip", "addr", "add", f"fd99:{net}::{last}/64", "dev", device, "nodad")
                self.sh(side, "ip", "link", "set", device, "up")
            self.sh(who, "ip", "route", "add", "default", "via", f"10.99.{net}.1")
        for who in self.names:
            self.sh(who, "ip", "link", "set", "lo", "up")
        self.serve("node", 22, 6379, 8080, 40000)

    def serve(self, who: str, *ports: int) -> None:
        command = ["ip", "netns", "exec", self.names[who], sys.executable, "-c", SERVER, *map(str, ports)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout.readline() == "ready\n"

    def down(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)

    def apply(self, *members: str) -> list[str]:
        want = {"members": members, "tcp": [[6379, 6384], [32768, 60999]]}
        return json.loads(self.sh("node", sys.executable, "-c", DRIVER, fw.__file__, json.dumps(want)))

    def connect(self, who: str, address: str, port: int) -> str:
        return self.sh(who, sys.executable, "-c", CONNECT, address, str(port)).strip()

    def everything(self) -> str:
        """All rules there are, without counters."""
        texts = [self.sh("node", "nft", "-s", "list", "ruleset")]
        texts += [
            "".join(
                line.split("[")[0] + "\n"
                for line in self.sh("node", tool + "-save").splitlines()
                if not line.startswith("#")
            )
            for tool in ("iptables-legacy", "ip6tables-legacy")
        ]
        return "".join(texts)


@pytest.fixture
def lab():
    lab = Lab()
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


MEMBERS = (MEMBER, "fd99:1::2")


@needs_namespaces
@needs_tools
def test_closed_to_strangers_open_to_members_ssh_open_to_all(lab):
    assert lab.apply(*MEMBERS) == ["nftables: table inet metalray"]
    assert lab.connect("member", NODE, 6379) == "open"
    assert lab.connect("member", "fd99:1::1", 40000) == "open"
    assert lab.connect("node", NODE, 6379) == "open"
    assert lab.connect("stranger", NODE_TO_STRANGER, 6379) == "silent"
    assert lab.connect("stranger", NODE, 6379) == "silent"
    assert lab.connect("stranger", "fd99:2::1", 40000) == "silent"
    assert lab.connect("stranger", NODE_TO_STRANGER, 22) == "open"
    assert lab.connect("stranger", NODE_TO_STRANGER, 8080) == "open"
    # The node's own connections use ports of the closed range.
    lab.serve("stranger", 443)
    assert lab.connect("node", STRANGER, 443) == "open"

    assert lab.apply(*MEMBERS) == [], "a second run changes nothing"
    assert lab.apply() == ["nftables: table inet metalray"]
    assert lab.everything().strip().replace("table inet metalray", "") == ""
    assert lab.connect("stranger", NODE_TO_STRANGER, 6379) == "open"


@needs_namespaces
@needs_tools
def test_a_connection_that_is_open_is_not_cut(lab):
    code = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],6379),5); s.settimeout(3); print('up',flush=True); "
        "sys.stdin.readline(); s.sendall(b'x'); print(s.recv(1).decode())"
    )
    client = subprocess.Popen(
        ["ip", "netns", "exec", lab.names["stranger"], sys.executable, "-c", code, NODE_TO_STRANGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout.readline() == "up\n"
    lab.apply(*MEMBERS)
    assert client.communicate("\n", timeout=10)[0] == "x\n"


@needs_namespaces
@needs_tools
def test_a_table_that_was_tampered_with_is_put_right(lab):
    lab.apply(*MEMBERS)
    for damage in (
        "flush chain inet metalray input",
        "add element inet metalray allowed4 { 10.99.2.2 }",
        'insert rule inet metalray outside accept comment "for a moment"',
        "add chain inet metalray input { policy drop ; }",
    ):
        lab.nft(damage)
        assert lab.apply(*MEMBERS) == ["nftables: table inet metalray"], damage
        assert lab.apply(*MEMBERS) == [], damage


SITE = """
table inet site {
    chain in {
        type filter hook input priority filter; policy drop;
        iif lo accept
        tcp dport { 22, 8080 } accept
        meta l4proto { icmp, ipv6-icmp } accept
        ct state established,related accept
    }
    chain out { type filter hook output priority filter; policy accept; }
}
"""


@needs_namespaces
@needs_tools
def test_another_nftables_firewall_is_opened_and_given_back(lab):
    lab.nft(SITE)
    theirs = lab.everything()
    assert lab.connect("member", NODE, 6379) == "silent"
    assert lab.apply(*MEMBERS) == ["nftables: chain inet site in", "nftables: table inet metalray"]
    assert lab.connect("member", NODE, 6379) == "open"
    assert lab.connect("member", "fd99:1::1", 6379) == "open"
    assert lab.connect("stranger", NODE_TO_STRANGER, 6379) == "silent"
    assert lab.connect("stranger", NODE_TO_STRANGER, 8080) == "open"
    assert lab.apply(*MEMBERS) == []
    assert lab.apply(MEMBER) == ["nftables: chain inet site in", "nftables: table inet metalray"]
    # Their rules loaded anew: ours are gone, and come back.
    lab.nft("flush ruleset\n" + SITE)
    assert lab.connect("member", NODE, 6379) == "silent"
    assert len(lab.apply(*MEMBERS)) == 2
    assert lab.connect("member", NODE, 6379) == "open"
    lab.apply()
    assert lab.everything() == theirs


@needs_namespaces
@needs_tools
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_is_opened_and_given_back(lab, kind):
    for tool in (f"iptables-{kind}", f"ip6tables-{kind}"):
        lab.sh("node", tool, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
        lab.sh("node", tool, "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
        lab.sh("node", tool, "-A", "INPUT", "-p", "tcp", "-m", "comment", "--comment", 'their "rule"', "-j", "REJECT")
    theirs = lab.everything()
    assert lab.connect("member", NODE, 6379) == "Connection refused"
    applied = lab.apply(*MEMBERS)
    assert applied == [
        f"iptables-{kind}: METALRAY-INPUT",
        f"ip6tables-{kind}: METALRAY-INPUT",
        "nftables: table inet metalray",
    ]
    assert lab.connect("member", NODE, 6379) == "open"
    assert lab.connect("member", "fd99:1::1", 6379) == "open"
    assert lab.connect("stranger", NODE_TO_STRANGER, 6379) == "silent"
    assert lab.connect("stranger", NODE_TO_STRANGER, 8080) == "Connection refused", "their rule holds"
    assert lab.connect("stranger", NODE_TO_STRANGER, 22) == "open"
    assert lab.apply(*MEMBERS) == []
    lab.sh("node", f"iptables-{kind}", "-I", "INPUT", "1", "-p", "tcp", "--dport", "9", "-j", "DROP")
    assert lab.apply(*MEMBERS) == [f"iptables-{kind}: METALRAY-INPUT"], "a drop above our jump"
    lab.sh("node", f"iptables-{kind}", "-D", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP")
    assert lab.apply("10.99.1.3") == [
        f"iptables-{kind}: METALRAY-INPUT",
        f"ip6tables-{kind}: METALRAY-INPUT",
        "nftables: table inet metalray",
    ]
    assert lab.connect("member", NODE, 6379) == "silent"
    lab.apply()
    assert lab.everything() == theirs


@needs_namespaces
@needs_tools
def test_what_docker_forbids_to_forward_is_allowed_between_members(lab):
    lab.sh("node", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for rule_text in ("-P FORWARD DROP", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER"):
        lab.sh("node", "iptables-nft", *rule_text.split())
    theirs = lab.everything()
    lab.serve("stranger", 443)
    assert lab.connect("member", STRANGER, 443) == "silent"
    lab.apply(MEMBER, STRANGER)
    assert lab.connect("member", STRANGER, 443) == "open"
    assert lab.apply(MEMBER, STRANGER) == []
    lab.apply(MEMBER)
    assert lab.connect("member", STRANGER, 443) == "silent"
    lab.apply()
    assert lab.everything() == theirs


@needs_namespaces
@needs_tools
def test_the_proof_tells_an_answer_from_a_firewall(lab):
    def probed(port: int) -> str:
        code = (
            "import importlib.util,sys; spec=importlib.util.spec_from_file_location('fw',sys.argv[1]); "
            "fw=importlib.util.module_from_spec(spec); sys.modules['fw']=fw; spec.loader.exec_module(fw); "
            "print(fw.probe(['10.99.2.1'],int(sys.argv[2]),0.7)['10.99.2.1'])"
        )
        return lab.sh("stranger", sys.executable, "-c", code, fw.__file__, str(port)).strip()

    assert probed(8080) == "open"
    assert probed(9) == "open", "nothing listens there, but the packet arrived"
    lab.apply(*MEMBERS)
    assert probed(6379) == "no answer within 0.7 s"
    lab.sh("node", "iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "REJECT")
    assert probed(8080) == "rejected on the way (Connection refused)"
