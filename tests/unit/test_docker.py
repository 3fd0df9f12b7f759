# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import getpass
import grp
import http.server
import json
import os
import shutil
import socketserver
import subprocess
import threading

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _docker as docker
from ansible_collections.metalray.cluster.plugins.module_utils import _docker_repository as repository
from ansible_collections.metalray.cluster.plugins.module_utils import _openpgp as openpgp
from ansible_collections.metalray.cluster.plugins.module_utils._docker import DockerError

POOLS = [{"base": "172.17.0.0/16", "size": 24}, {"base": "192.168.0.0/16", "size": 24}]
NVIDIA = {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}

# --- daemon.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "want", "merged"),
    [
        ({}, {"debug": True}, {"debug": True}),
        ({"runtimes": NVIDIA}, {"debug": True}, {"runtimes": NVIDIA, "debug": True}),
        ({"runtimes": NVIDIA}, {"runtimes": {"other": {}}}, {"runtimes": {**NVIDIA, "other": {}}}),
        ({"dns": ["10.0.0.1", "10.0.0.2"]}, {"dns": ["10.0.0.3"]}, {"dns": ["10.0.0.3"]}),
        ({"debug": True, "mtu": 1500}, {"debug": None}, {"mtu": 1500}),
        (
            {"log-opts": {"max-size": "1m", "max-file": "3"}},
            {"log-opts": {"max-file": None}},
            {"log-opts": {"max-size": "1m"}},
        ),
        ({"log-opts": "odd"}, {"log-opts": {"max-file": "3"}}, {"log-opts": {"max-file": "3"}}),
        ({"log-opts": {"max-file": "3"}}, {"log-opts": "odd"}, {"log-opts": "odd"}),
        ({}, {"debug": None}, {}),
    ],
)
def test_merge(have, want, merged):
    before = json.dumps(have)
    assert docker.merge_options(have, want) == merged
    assert docker.merge_options(merged, want) == merged
    assert json.dumps(have) == before


@pytest.mark.parametrize("text", ["", " \n", "\ufeff", "{}"])
def test_empty_file_holds_no_options(text):
    assert docker.parse_daemon_json(text) == {}


def test_invalid_json_is_named_with_its_place():
    with pytest.raises(DockerError, match=r"/x is not valid JSON: .* at line 3, column 3"):
        docker.parse_daemon_json('{\n  "debug": true\n  "ipv6": true\n}\n', "/x")
    with pytest.raises(DockerError, match="not a JSON object"):
        docker.parse_daemon_json("[1]")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"live-restore": "yes"}, 'live-restore is "yes"; allowed is true or false'),
        ({"max-concurrent-downloads": "10"}, "allowed is a whole number"),
        ({"max-concurrent-downloads": True}, "allowed is a whole number"),
        ({"dns": "10.0.0.1"}, "allowed is a list of texts"),
        ({"runtimes": []}, "allowed is a dictionary"),
        ({"data-root": 1}, "allowed is a text"),
        ({"log-opts": {"max-file": 3}}, 'log-opts.max-file is 3; allowed is a text, write "3" in quotes'),
        ({"default-address-pools": {}}, "allowed is a list of pools"),
        ({"default-address-pools": [{"base": "172.17.0.0/16"}]}, "a pool is like"),
        ({"default-address-pools": ["172.17.0.0/16"]}, "a pool is like"),
        ({"default-address-pools": [{"base": "172.17.0.0/33", "size": 24}]}, "is not a network"),
        ({"default-address-pools": [{"base": "172.17.0.1/16", "size": 24}]}, "the network is 172.17.0.0/16"),
        ({"default-address-pools": [{"base": "172.17.0.0/16", "size": 8}]}, "allowed is 16 to 32"),
        ({"default-address-pools": [{"base": "172.17.0.0/16", "size": "24"}]}, "without quotes"),
        ({"default-address-pools": [{"base": "fd00::/48", "size": 129}]}, "allowed is 48 to 128"),
    ],
)
def test_option_problems(options, problem):
    assert any(problem in text for text in docker.option_problems(options)), docker.option_problems(options)


def test_good_options_have_no_problems():
    good = {
        "default-address-pools": [*POOLS, {"base": "fd00:1::/48", "size": 64}],
        "live-restore": True,
        "log-opts": {"max-size": "10m"},
        "runtimes": NVIDIA,
        "a-key-of-tomorrow": 1,
    }
    assert docker.option_problems(good) == []


# --- flags of the unit ---------------------------------------------------------------------------

SHOW = (
    "ExecStart={ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock "
    "$DOCKER_OPTS ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
)


def test_arguments_of_the_unit():
    environment = docker.environment_file('# comment\nDOCKER_OPTS="--dns 8.8.8.8 --label a=b"\n;x=y\n')
    assert docker.dockerd_arguments(SHOW, environment) == [
        "-H",
        "fd://",
        "--containerd=/run/containerd/containerd.sock",
        "--dns",
        "8.8.8.8",
        "--label",
        "a=b",
    ]
    assert docker.dockerd_arguments(SHOW)[-1] == "--containerd=/run/containerd/containerd.sock"
    assert docker.dockerd_arguments("ExecStart=\n") == []


@pytest.mark.parametrize(
    ("arguments", "options", "clashes"),
    [
        (["-H", "fd://"], {"hosts": []}, [("-H", "hosts")]),
        (["-Hfd://"], {"hosts": []}, [("-H", "hosts")]),
        (["--containerd=/x"], {"containerd": "/y"}, [("--containerd", "containerd")]),
        (["--label", "a=b", "--label", "c=d"], {"labels": []}, [("--label", "labels")]),
        (
            ["--default-address-pool", "base=1"],
            {"default-address-pools": []},
            [("--default-address-pool", "default-address-pools")],
        ),
        (["-H", "fd://"], {"debug": True}, []),
        (["dns"], {"dns": []}, []),
    ],
)
def test_flag_clashes(arguments, options, clashes):
    found = [
        (flag[:2] if flag.startswith("-H") else flag, key) for flag, key in docker.flag_clashes(arguments, options)
    ]
    assert found == clashes


# --- pools and routes ----------------------------------------------------------------------------

# `ip -j route show table all` of a node with two uplinks, a VPN, an engine and a policy table.
ROUTES = json.loads("""[
 {"dst":"default","gateway":"10.15.22.38","dev":"enp27s0f0np0","protocol":"static","flags":[]},
 {"dst":"0.0.0.0/1","dev":"tun0","flags":[]},
 {"dst":"10.15.22.0/24","dev":"enp27s0f0np0","protocol":"kernel","scope":"link","prefsrc":"10.15.22.33","flags":[]},
 {"dst":"10.99.0.0/16","dev":"enp157s0f0np0","table":"101","flags":[]},
 {"dst":"10.40.0.0/16","nexthops":[{"gateway":"10.15.22.1","dev":"eth1"},{"gateway":"10.15.22.2","dev":"eth2"}],"flags":[]},
 {"dst":"172.17.0.0/16","dev":"docker0","protocol":"kernel","scope":"link","flags":["linkdown"]},
 {"dst":"172.18.0.0/24","dev":"br-0123456789ab","protocol":"kernel","scope":"link","flags":[]},
 {"dst":"172.19.0.0/24","dev":"training0","protocol":"kernel","scope":"link","flags":[]},
 {"dst":"172.30.0.0/24","dev":"br-lan","protocol":"kernel","scope":"link","flags":[]},
 {"type":"blackhole","dst":"192.168.0.0/16","flags":[]},
 {"type":"unreachable","dst":"10.0.0.0/8","dev":"lo","flags":[]},
 {"type":"local","dst":"127.0.0.0/8","dev":"lo","table":"local","flags":[]},
 {"type":"local","dst":"10.15.22.33","dev":"enp27s0f0np0","table":"local","flags":[]},
 {"type":"local","dst":"10.200.0.1","dev":"lo","table":"local","flags":[]},
 {"type":"broadcast","dst":"10.15.22.255","dev":"enp27s0f0np0","table":"local","flags":[]},
 {"dst":"fe80::/64","dev":"enp27s0f0np0","protocol":"kernel","metric":256,"flags":[]},
 {"dst":"fd12:3456::/64","dev":"enp27s0f0np0","protocol":"kernel","metric":256,"flags":[]},
 {"type":"multicast","dst":"ff00::/8","dev":"enp27s0f0np0","table":"local","flags":[]},
 {"type":"local","dst":"::1","dev":"lo","table":"local","flags":[]}
]""")


def pool(base: str) -> dict:
    size = 64 if ":" in base else 24
    return {"default-address-pools": [{"base": base, "size": size}]}


def test_networks_that_count():
    taken = docker.taken_by_routes(ROUTES, own=["172.19.0.0/24"])
    assert [str(one.network) for one in taken] == [
        "10.40.0.0/16",
        "10.99.0.0/16",
        "10.15.22.0/24",
        "172.30.0.0/24",
        "10.15.22.33/32",
        "10.200.0.1/32",
        "fd12:3456::/64",
    ]


@pytest.mark.parametrize("base", ["172.17.0.0/16", "172.18.0.0/16", "192.168.0.0/16", "172.19.0.0/16", "fd00::/48"])
def test_free_pools_pass(base):
    docker.check_pools(pool(base), docker.taken_by_routes(ROUTES, own=["172.19.0.0/24"]))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("10.15.0.0/16", r"10\.15\.0\.0/16 overlaps the route 10\.15\.22\.0/24 of this node \(device enp27s0f0np0\)\."),
        ("10.99.5.0/24", r"route 10\.99\.0\.0/16 of this node \(device enp157s0f0np0, table 101\)"),
        ("10.40.0.0/16", r"device eth1 and eth2"),
        ("10.200.0.0/16", r"route 10\.200\.0\.1/32 of this node \(device lo\)"),
        ("172.30.0.0/16", r"device br-lan"),
        ("fd12:3456::/48", r"fd12:3456::/48 overlaps the route fd12:3456::/64"),
        ("10.77.0.0/16", r"10\.77\.0\.0/24, which the cluster uses"),
    ],
)
def test_taken_pools_are_refused(base, message):
    taken = docker.taken_by_routes(ROUTES) + docker.taken_by_reservation(["10.77.0.0/24", "0.0.0.0/0"])
    with pytest.raises(DockerError, match=message):
        docker.check_pools(pool(base), taken)


def test_refusal_names_every_pool_and_a_free_one():
    taken = docker.taken_by_reservation(["172.17.3.0/24", "192.168.1.0/24", "172.18.0.0/15"])
    with pytest.raises(DockerError) as refused:
        docker.check_pools({"default-address-pools": POOLS}, taken)
    assert "172.17.0.0/16 overlaps 172.17.3.0/24" in str(refused.value)
    assert "192.168.0.0/16 overlaps 192.168.1.0/24" in str(refused.value)
    assert "for example 172.20.0.0/16" in str(refused.value)


def test_one_network_is_named_once():
    routes = [{"dst": "10.15.22.0/24", "dev": "eth0"}, {"dst": "10.15.22.7", "dev": "eth0", "type": "local"}]
    taken = docker.taken_by_routes(routes) + docker.taken_by_reservation(["10.15.22.0/24"])
    with pytest.raises(DockerError) as refused:
        docker.check_pools(pool("10.15.0.0/16"), taken)
    assert str(refused.value).count("overlaps") == 1
    assert "device eth0" in str(refused.value)


def test_malformed_pool_of_others_is_no_traceback():
    with pytest.raises(DockerError, match="a pool is like"):
        docker.check_pools({"default-address-pools": [{"base": "10.0.0.0/8"}]}, [])


# --- reload or restart ---------------------------------------------------------------------------

INFO = {
    "DefaultAddressPools": [{"Base": "172.17.0.0/16", "Size": 24}, {"Base": "192.168.0.0/16", "Size": 24}],
    "LiveRestoreEnabled": True,
    "LoggingDriver": "json-file",
}
SAME = {"default-address-pools": POOLS, "live-restore": True}


@pytest.mark.parametrize(
    ("have", "want", "info", "reload", "restart"),
    [
        (SAME, SAME, INFO, False, False),
        (SAME, SAME, {}, False, False),
        (SAME, {**SAME, "max-concurrent-downloads": 5}, INFO, True, False),
        ({**SAME, "max-concurrent-downloads": 5}, SAME, INFO, False, True),
        (SAME, {**SAME, "mtu": 9000}, INFO, False, True),
        # live-restore comes into force before the restart.
        ({}, SAME, {**INFO, "DefaultAddressPools": None, "LiveRestoreEnabled": False}, True, True),
        ({}, {"default-address-pools": POOLS}, {"LiveRestoreEnabled": False}, False, True),
        # An earlier run wrote the file and ended before the engine took it on.
        (SAME, SAME, {**INFO, "DefaultAddressPools": [{"Base": "10.0.0.0/8", "Size": 24}]}, False, True),
        (SAME, SAME, {"LiveRestoreEnabled": True}, False, True),
        (SAME, SAME, {**INFO, "LiveRestoreEnabled": False}, True, False),
        ({"log-driver": "local"}, {"log-driver": "local"}, INFO, False, True),
    ],
)
def test_next_step(have, want, info, reload, restart):
    assert docker.next_step(have, want, info) == docker.Step(reload=reload, restart=restart)


# --- the module docker_daemon --------------------------------------------------------------------


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Commands of a node: its routes, and a dockerd whose --validate answers as told."""
    commands = tmp_path / "bin"
    commands.mkdir()

    class Node:
        path = tmp_path / "daemon.json"

        def command(self, name: str, script: str) -> None:
            file = commands / name
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)

        def routes(self, routes: list) -> None:
            (tmp_path / "routes.json").write_text(json.dumps(routes))
            self.command("ip", f'[ "$2" = -4 ] && cat {tmp_path}/routes.json || echo "[]"')

        def holds(self, options: dict, **render) -> str:
            # A pid file of its own, so that an engine of this machine is not asked.
            text = json.dumps({"pidfile": str(tmp_path / "docker.pid"), **options}, **render)
            self.path.write_text(text)
            return text

    made = Node()
    made.routes([])
    made.command("systemctl", "exit 1")
    made.command("dockerd", "echo 'configuration OK'")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return made


def test_module_merges_once_and_keeps_what_others_wrote(run_module, node):
    node.holds({"runtimes": NVIDIA, "log-opts": {"max-size": "10m"}}, indent=7)
    node.path.chmod(0o640)
    options = {"default-address-pools": POOLS, "live-restore": True, "log-opts": {"max-file": "3"}}
    seen = run_module("docker_daemon", check=True, path=str(node.path), options=options)
    first = run_module("docker_daemon", path=str(node.path), options=options)
    assert seen["changed"] and first["changed"]
    assert seen["diff"] == first["diff"]
    assert first["validated_by"] == "dockerd"
    assert not first["running"] and not first["restart_required"] and not first["reload_required"]
    written = json.loads(node.path.read_text())
    assert written == first["options"]
    assert written["runtimes"] == NVIDIA
    assert written["log-opts"] == {"max-size": "10m", "max-file": "3"}
    assert node.path.stat().st_mode & 0o777 == 0o640
    assert not run_module("docker_daemon", path=str(node.path), options=options)["changed"]


def test_module_leaves_formatting_alone_where_nothing_changes(run_module, node):
    text = node.holds({"live-restore": True}, indent=9)
    assert not run_module("docker_daemon", path=str(node.path), options={"live-restore": True})["changed"]
    assert node.path.read_text() == text


def test_module_follows_a_link(run_module, node, tmp_path):
    node.holds({})
    link = tmp_path / "link.json"
    link.symlink_to(node.path)
    assert run_module("docker_daemon", path=str(link), options={"debug": True})["changed"]
    assert link.is_symlink()
    assert json.loads(node.path.read_text())["debug"] is True


def refuses(run_module, node, message: str, **options) -> None:
    before = node.path.read_text()
    answer = run_module("docker_daemon", path=str(node.path), **options)
    assert answer.get("failed"), answer
    assert message in answer["msg"]
    assert node.path.read_text() == before


def test_module_refuses_and_writes_nothing(run_module, node):
    node.holds({})
    node.routes(ROUTES)
    refuses(run_module, node, "10.15.0.0/16 overlaps the route 10.15.22.0/24", options=pool("10.15.0.0/16"))
    refuses(
        run_module,
        node,
        "which the cluster uses",
        options={"default-address-pools": POOLS},
        reserved_networks=["192.168.9.0/24"],
    )
    refuses(run_module, node, "reserved_networks holds 'ten'", options={}, reserved_networks=["ten"])
    refuses(run_module, node, "allowed is a whole number", options={"mtu": "9000"})
    node.command("dockerd", 'echo "unable to configure the Docker daemon with file $3: bad key: foo" >&2; exit 1')
    refuses(
        run_module,
        node,
        f"dockerd refuses it: unable to configure the Docker daemon with file {node.path}",
        options={"foo": 1},
    )
    node.command("systemctl", f"cat <<'END'\n{SHOW}END")
    refuses(run_module, node, "hosts (flag -H)", options={"hosts": ["tcp://127.0.0.1:1"]})
    node.path.write_text("{")
    refuses(run_module, node, "is not valid JSON", options={"debug": True})
    node.path.write_bytes(b"caf\xc3\xa9")
    refuses(run_module, node, "at line 1, column 1", options={"debug": True})


def test_module_checks_itself_where_dockerd_cannot(run_module, node):
    node.command("dockerd", "echo 'unknown flag: --validate' >&2; exit 125")
    node.holds({"a-key-of-others": 1})
    refuses(run_module, node, "does not know live-restor", options={"live-restor": True})
    assert run_module("docker_daemon", path=str(node.path), options={"live-restore": True})["validated_by"] == "module"


def test_overlap_is_seen_without_a_change_too(run_module, node):
    node.holds({"default-address-pools": POOLS})
    node.routes([{"dst": "192.168.4.0/22", "dev": "wg0"}])
    refuses(run_module, node, "(device wg0)", options={"default-address-pools": POOLS})


@pytest.fixture
def engine(tmp_path):
    """A process named dockerd, and a socket that answers as the engine does."""
    answers = {
        "/info": dict(INFO),
        "/networks": [{"IPAM": {"Config": [{"Subnet": "192.168.0.0/24"}]}}, {"IPAM": {"Config": None}}],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self):
            return "test"

        def log_message(self, *_arguments):
            pass

    path = str(tmp_path / "docker.sock")
    program = shutil.copy(shutil.which("sleep"), tmp_path / "dockerd")
    process = subprocess.Popen([program, "60"])
    (tmp_path / "docker.pid").write_text(str(process.pid))
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path, answers
        server.shutdown()
    process.kill()
    process.wait()


def test_module_tells_what_a_running_engine_needs(run_module, node, engine):
    socket, answers = engine
    # The engine's own network, on a bridge with a name of its own, is no reason to refuse its pool.
    node.routes([{"dst": "192.168.0.0/24", "dev": "training0"}])
    node.holds(SAME)

    def run(options: dict, **more):
        return run_module("docker_daemon", path=str(node.path), socket=socket, options=options, **more)

    idle = run(SAME)
    assert idle["running"] and not idle["changed"] and not idle["reload_required"] and not idle["restart_required"]
    reload = run({"max-concurrent-downloads": 3}, check=True)
    assert reload["changed"] and reload["reload_required"] and not reload["restart_required"]
    restart = run({"mtu": 9000}, check=True)
    assert restart["restart_required"] and not restart["reload_required"]
    answers["/info"].update(LiveRestoreEnabled=False, ContainersRunning=2)
    warned = run({"live-restore": False, "mtu": 9000}, check=True)
    assert "2 running container(s) stop" in str(warned["warnings"])
    answers["/info"]["Swarm"] = {"LocalNodeState": "active"}
    assert "swarm" in run({"debug": True}, check=True)["msg"]


# --- keys ----------------------------------------------------------------------------------------

KEY_ONE = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawNn4hYJKwYBBAHaRw8BAQdAVS33F47Y+Zli9ur6boiOgqRbfenS6IYfNo5x
uu22tyi0CHRlc3Qgb25liJAEExYIADgWIQS9SS29UkTQNDKhKWsLKUaV33ztxwUC
awNn4gIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRALKUaV33ztxxDQAP4x
nEE+6LLLbPr2vioFixqH9SKVsj4+4jHcEhffCKp5mgEA7EHXwZO8b2xcT0LZP1P3
XblfADiliGddByVVanObyA0=
=vPQQ
-----END PGP PUBLIC KEY BLOCK-----
"""
KEY_TWO = """-----BEGIN PGP PUBLIC KEY BLOCK-----
Comment: another

mDMEawNn4hYJKwYBBAHaRw8BAQdAhJ46BFI9+wIwxjzekZ0Q9Hr5ZwWcrbyKDK7P
OrzOvme0CHRlc3QgdHdviJAEExYIADgWIQScVA0JVHYUbdTUdbJNu0EIlyEUyAUC
awNn4gIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRBNu0EIlyEUyH+tAQDd
9Xbag6gZud/2cGvgqp2q+9heSAFhTluC2bE6lBCL1wEAr5qDQQNMIuCRQPB0Sg3R
eL6InnRBOmrkDvopoIYAmwQ=
=jmBb
-----END PGP PUBLIC KEY BLOCK-----
"""
ONE = "BD492DBD5244D03432A1296B0B294695DF7CEDC7"
TWO = "9C540D095476146DD4D475B24DBB4108972114C8"
BINARY_ONE = openpgp.dearmor(KEY_ONE.encode())


def test_fingerprints_are_those_of_gpg():
    assert openpgp.fingerprints(KEY_ONE.encode()) == [ONE]
    assert openpgp.fingerprints(KEY_TWO.replace("\n", "\r\n").encode()) == [TWO]
    assert openpgp.fingerprints(BINARY_ONE) == [ONE]
    assert openpgp.fingerprints((KEY_ONE + KEY_TWO).encode()) == [ONE, TWO]


def test_armor_is_that_of_gpg():
    assert openpgp.armor(BINARY_ONE) == KEY_ONE


def rewrapped(tag: int, body: bytes, form: str) -> bytes:
    """A packet in one of the length forms of the format."""
    if form == "two octets":
        return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body
    if form == "four octets":
        return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4, "big") + body
    return bytes([0xC0 | tag, 224 + 4]) + body[:16] + bytes([len(body) - 16]) + body[16:]


@pytest.mark.parametrize("form", ["two octets", "four octets", "partial"])
def test_all_forms_of_packets_are_read(form):
    tag, body = next(openpgp._packets(BINARY_ONE))
    rest = BINARY_ONE[2 + len(body) :]
    assert openpgp.fingerprints(rewrapped(tag, body, form) + rest) == [ONE]


def test_version_6_fingerprint_is_that_of_the_standard():
    # The sample certificate of RFC 9580, appendix A.3: its primary key packet.
    packet = base64.b64decode("xioGY4d/4xsAAAAg+U2nu0jWCmHlZ3BqZYfQMxmZu52JGggkLq2EVD34laM=")
    assert openpgp.fingerprints(packet) == ["CB186C4F0609A697E4D52DFA6C722B0C1F1E27C18A56708F6525EC27BAD9ACC9"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an OpenPGP key"),
        (b"<html>Sign in</html>", "not an OpenPGP key"),
        (BINARY_ONE[:40], "cut short"),
        (BINARY_ONE + b"trailing", "does not begin a packet"),
        (KEY_ONE.replace("AHaRw8", "A*aRw8").encode(), "broken base64"),
        (BINARY_ONE[53:], "does not begin with a public key"),
        (rewrapped(6, b"\x03abc", "two octets"), "version 3"),
        (rewrapped(5, b"\x04abc", "two octets"), "secret key"),
    ],
)
def test_what_is_no_key(data, message):
    with pytest.raises(openpgp.KeyFormatError, match=message):
        openpgp.fingerprints(data)


@pytest.mark.parametrize("text", [ONE, ONE.lower(), f"0x{ONE}", "BD49 2DBD 5244 D034 32A1  296B 0B29 4695 DF7C EDC7"])
def test_fingerprints_as_people_write_them(text):
    assert openpgp.normalised(text) == ONE
    repository.check_key(KEY_ONE.encode(), text, "there")


@pytest.mark.parametrize("text", ["", "DF7CEDC7", "0B294695DF7CEDC7", "z" * 40])
def test_short_ids_are_no_fingerprints(text):
    with pytest.raises(ValueError, match="hexadecimal"):
        openpgp.normalised(text)


def test_a_second_key_is_refused():
    with pytest.raises(DockerError, match=f"{TWO}, but docker_repository_key_fingerprint is {ONE}"):
        repository.check_key(KEY_TWO.encode(), ONE, "there")
    for data in (KEY_ONE + KEY_TWO, KEY_TWO + KEY_ONE):
        with pytest.raises(DockerError, match="has the fingerprint"):
            repository.check_key(data.encode(), ONE, "there")
        assert not repository.is_pinned_key(data.encode(), ONE)
    with pytest.raises(DockerError, match="there is not the key of the repository"):
        repository.check_key(b"<html>", ONE, "there")


# --- repository and packages ---------------------------------------------------------------------

BOOKWORM = repository.Release("debian", "bookworm", "12")
TRIXIE = repository.Release("debian", "trixie", "13")
NOBLE = repository.Release("ubuntu", "noble", "24.04")
URL = "https://packages.example.org/linux/debian"


def test_os_release():
    assert repository.parse_os_release('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n') == BOOKWORM
    with pytest.raises(DockerError, match=r"runs Rocky Linux 9\.4.*Debian and Ubuntu"):
        repository.parse_os_release('ID="rocky"\nPRETTY_NAME="Rocky Linux 9.4"\n')


def test_packages_of_each_source():
    assert "docker-compose-plugin" in repository.default_packages("docker", BOOKWORM)
    assert repository.default_packages("distro", BOOKWORM) == ["docker.io"]
    assert "docker-cli" in repository.default_packages("distro", TRIXIE)
    assert "docker-compose-v2" in repository.default_packages("distro", NOBLE)


@pytest.mark.parametrize("source", ["docker", "distro"])
def test_an_engine_whose_kernel_uses_apparmor_needs_its_parser(source, tmp_path):
    assert "apparmor" in repository.default_packages(source, BOOKWORM, confined=True)
    assert "apparmor" not in repository.default_packages(source, BOOKWORM)
    assert not repository.is_confined(str(tmp_path))
    enabled = tmp_path / "sys/module/apparmor/parameters/enabled"
    enabled.parent.mkdir(parents=True)
    enabled.write_text("N\n")
    assert not repository.is_confined(str(tmp_path))
    enabled.write_text("Y\n")
    assert repository.is_confined(str(tmp_path))


def test_missing_packages():
    installed = repository.parse_installed(
        "installed docker-ce 5:29.0.2-1~debian.12~bookworm\ninstalled runc 1.1\n"
        "config-files docker.io 20.10\nnot-installed x \n"
    )
    assert set(installed) == {"docker-ce", "runc"}
    assert repository.missing_packages(["docker-ce", "docker.io"], installed) == ["docker.io"]
    assert repository.missing_packages(["docker-ce=5:29.0.*"], installed) == []
    assert repository.missing_packages(["docker-ce=5:28.*"], installed) == ["docker-ce=5:28.*"]
    with pytest.raises(DockerError, match="holds '--force'"):
        repository.missing_packages(["--force"], installed)


def test_conflicts_only_where_the_engine_is_to_come():
    assert repository.conflicts("docker", {"podman-docker": "1", "runc": "1"}) == ["podman-docker", "runc"]
    assert repository.conflicts("docker", {"docker-ce": "5", "docker-doc": "1"}) == []
    assert repository.conflicts("distro", {"docker-ce": "5", "containerd.io": "1"}) == ["docker-ce", "containerd.io"]


def test_an_engine_at_work_is_not_replaced_unasked():
    with pytest.raises(DockerError, match=r"has docker\.io 20\.10, with 3 container.*docker_source: distro to keep it"):
        repository.check_engine("docker", {"docker.io": "20.10"}, replace=False, containers=3)
    with pytest.raises(DockerError, match=r"has containerd 1\.6.*To accept that, set docker_replace_engine: true"):
        repository.check_engine("docker", {"containerd": "1.6"}, replace=False)
    with pytest.raises(DockerError, match="does not know: the snap docker"):
        repository.check_engine("docker", {}, replace=True, others=["the snap docker"])
    repository.check_engine("docker", {"docker.io": "20.10"}, replace=True)
    repository.check_engine("docker", {"docker-ce": "5"}, replace=False)
    repository.check_engine("docker", {"runc": "1.1"}, replace=False)


def test_sources_file():
    url = repository.expand_url("https://packages.example.org/linux/{id}/{codename}/", BOOKWORM)
    assert url == "https://packages.example.org/linux/debian/bookworm"
    text = repository.render_sources("docker", url, BOOKWORM, "amd64", repository.KEY_FILE)
    assert f"\nURIs: {url}\nSuites: bookworm\nComponents: stable\nArchitectures: amd64\nSigned-By: /etc/apt" in text
    assert "main universe" in repository.render_sources("distro", url, NOBLE, "amd64", "/x")


def test_older_entries_of_the_same_repository():
    guide = f"deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] {URL} bookworm stable\n"
    files = {
        "/etc/apt/sources.list": "deb http://deb.example.org/debian bookworm main\n",
        "/etc/apt/sources.list.d/docker.list": guide,
        "/etc/apt/sources.list.d/off.list": f"# deb {URL} bookworm stable\n",
        "/etc/apt/sources.list.d/off.sources": f"Types: deb\nURIs: {URL}\nSuites: x\nEnabled: no\n",
        "/etc/apt/sources.list.d/other.sources": f"# {URL}\nTypes: deb\nURIs: {URL}/\nSuites: bookworm\n",
        repository.SOURCES_FILE: f"Types: deb\nURIs: {URL}\n",
    }
    assert repository.doubles(files, URL) == [
        "/etc/apt/sources.list.d/docker.list",
        "/etc/apt/sources.list.d/other.sources",
    ]
    with pytest.raises(DockerError, match=r"/etc/apt/sources\.list names .* beside other repositories"):
        repository.doubles({"/etc/apt/sources.list": files["/etc/apt/sources.list"] + guide}, URL)


# --- the module group_members --------------------------------------------------------------------


def test_module_adds_nobody_where_one_is_unknown(run_module):
    answer = run_module("group_members", group="docker", users=[getpass.getuser(), "no-such-account"])
    assert answer["failed"]
    assert "'no-such-account'" in answer["msg"]


def test_module_knows_members_and_groups_to_come(run_module):
    me = getpass.getuser()
    mine = grp.getgrgid(os.getgid()).gr_name
    assert not run_module("group_members", group=mine, users=[me])["changed"]
    assert run_module("group_members", check=True, group="no-such-group", users=[me, me])["added"] == [me]
    assert "no group named" in run_module("group_members", group="no-such-group", users=[me])["msg"]
