# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scenario's tests share: the guests' power, and what they say."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from typing import Any, Callable

from sandbox import PROJECT

STATE = PROJECT / ".sandbox" / "vm"
NODES = ("node1", "node2")
INTERFACES = {"node1": "ens16", "node2": "ens27"}
ADDRESSES = {"node1": "10.77.253.11", "node2": "10.77.253.12"}
PUBLIC = {"node1": "172.30.253.11", "node2": "172.30.253.12", "stranger": "172.30.253.66"}
RAY_PORTS = [6379, 6380, 6381, 6382, 6383, 6384, 8265, 10001, 10002, 44217, 44227, 52365]
# Beside them, what NFS opens where.
NFS_PORTS = {"node1": [111, 2049], "node2": [111]}
# Of the container that Docker publishes on node2.
PUBLISHED = 8080
SHARED = "/mnt/shared"
# Emulated guests are slow: a bound for what should happen, not a measure of it.
PATIENCE = 600.0

_PASSWORD = "sudo-asks"

# What a reboot must bring back, as a node itself sees it.
_LOOK = r"""
import json, os, subprocess, urllib.request
def out(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()
def limits(pid):
    lines = open(f"/proc/{pid}/limits").read().splitlines()
    return [line.split()[-3:-1] for line in lines if line.startswith(("Max open files", "Max locked memory"))]
head = os.uname().nodename == "node1"
unit = "metalray-head" if head else "metalray-worker"
seen = dict(
    boot=open("/proc/sys/kernel/random/boot_id").read().strip(),
    units={name: out("systemctl", "is-active", name) for name in ("docker", "metalray-firewall", unit)},
    service=out("systemd-run", "--quiet", "--pipe", "--wait", "sh", "-c", "ulimit -Hn; ulimit -l").split(),
    raylet=[limits(pid) for pid in out("pgrep", "-x", "raylet").split()],
    table=bool(out("nft", "list", "table", "inet", "metalray")),
    engine=out("docker", "info", "--format", "{{.ServerVersion}}"),
)
if head:
    seen["nfs"] = out("systemctl", "is-active", "nfs-server")
    request = urllib.request.Request("http://127.0.0.1:8265/api/v0/nodes?detail=1")
    request.add_header("Authorization", "Bearer " + open("/etc/metalray/ray_token").read().strip())
    try:
        answer = json.load(urllib.request.urlopen(request, timeout=20))
        seen["alive"] = sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])
    except (OSError, ValueError, KeyError) as error:
        seen["alive"] = f"{type(error).__name__}: {error}"
else:
    # Bounded: a server that is gone must not hold up who looks.
    seen["nfs"] = out("timeout", "10", "stat", "--file-system", "--format=%T", "/mnt/shared")
print(json.dumps(seen))
"""

_KNOCK = """
import errno, json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def knock(port):
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=3).close()
        return "open"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(zip(sys.argv[2:], pool.map(knock, sys.argv[2:])))))
"""


def ssh(node: str, command: str, text: str = "", timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command on a guest, over a connection of its own."""
    options = ["-F", str(STATE / "ssh_config"), "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5"]
    return subprocess.run(
        ["ssh", *options, node, command], input=text, capture_output=True, text=True, timeout=timeout, check=False
    )


def on(node: str, command: str, timeout: float = 300) -> str:
    """What a command of the account that logs in prints."""
    done = ssh(node, command, timeout=timeout)
    assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
    return done.stdout.strip()


def sudo(node: str, command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command under sudo, which asks for a password."""
    return ssh(node, f"sudo -S -p '' sh -c {shlex.quote(command)}", _PASSWORD + "\n", timeout)


def as_root(node: str, command: str, timeout: float = 300) -> str:
    """What a command prints that runs under sudo."""
    done = sudo(node, command, timeout)
    assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
    return done.stdout.strip()


def look(node: str) -> dict[str, Any]:
    login = on(node, "bash -lc 'ulimit -Sn; ulimit -Hn; ulimit -l; echo $GLOO_SOCKET_IFNAME'").split()
    return {"login": login, **json.loads(as_root(node, f"python3 -c {shlex.quote(_LOOK)}"))}


def wrong(seen: dict[str, Any], node: str) -> list[str]:
    """What a node still lacks of a complete one."""
    unlimited = ["65536", "65536"], ["unlimited", "unlimited"]
    wanted = {
        "login": ["65536", "65536", "unlimited", INTERFACES[node]],
        "service": ["65536", "unlimited"],
        "raylet": [list(unlimited)],
        "table": True,
        "nfs": "active" if node == "node1" else "nfs",
        **({"alive": len(NODES)} if node == "node1" else {}),
    }
    lacks = [f"{key} is {seen.get(key)!r}" for key, value in wanted.items() if seen.get(key) != value]
    lacks += [f"{unit} is {state}" for unit, state in seen["units"].items() if state != "active"]
    return lacks + ([] if seen["engine"] else ["docker does not answer"])


def knock(guest: str, address: str, ports: Iterable[int]) -> dict[int, str]:
    """What a guest meets at an address' ports: ``open``, ``silent``, or an error's name."""
    answer = on(guest, f"python3 -c {shlex.quote(_KNOCK)} {address} {' '.join(map(str, ports))}")
    return {int(port): state for port, state in json.loads(answer).items()}


def met_by_a_stranger(node: str) -> str:
    """What the stranger meets at a node that it should not, or does not meet that it should."""
    states = knock("stranger", PUBLIC[node], [22, PUBLISHED, *RAY_PORTS, *NFS_PORTS[node]])
    wanted = {port: "silent" for port in states}
    wanted |= {22: "open", **({PUBLISHED: "open"} if node == "node2" else {})}
    return ", ".join(f"{node} port {port} is {state}" for port, state in states.items() if state != wanted[port])


def wait_for(what: str, condition: Callable[[], str], seconds: float = PATIENCE) -> float:
    """Seconds until the condition names nothing that is missing."""
    begun = time.monotonic()
    while missing := condition():
        assert time.monotonic() - begun < seconds, f"{what}: not after {seconds:.0f} s: {missing}"
        time.sleep(2)
    return time.monotonic() - begun


def unreachable(node: str) -> str:
    try:
        done = ssh(node, "true", timeout=20)
    except subprocess.TimeoutExpired:
        return "SSH does not answer"
    return "" if done.returncode == 0 else done.stderr.strip() or "SSH failed"


def incomplete(nodes: Iterable[str] = NODES) -> str:
    for node in nodes:
        try:
            lacks = wrong(look(node), node)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            lacks = [str(error)[-300:]]
        if lacks:
            return f"{node}: {'; '.join(lacks)}"
    return ""


def cut_power(*guests: str) -> None:
    """Like pulling the plug: what a guest had not written to its disk is lost."""
    for guest in guests:
        process = int((STATE / f"{guest}.pid").read_text())
        os.kill(process, signal.SIGKILL)
        wait_for(f"the end of {guest}", lambda pid=process: "it runs" if os.path.exists(f"/proc/{pid}") else "", 30)


def switch_on(*guests: str) -> None:
    for guest in guests:
        subprocess.run([STATE / "switch-on", guest], check=True, capture_output=True, timeout=60)


def reboot(node: str) -> None:
    """A clean reboot, and the wait until the node answers again."""
    before = on(node, "cat /proc/sys/kernel/random/boot_id")
    # The connection ends with the node.
    sudo(node, "systemctl reboot", timeout=60)

    def same_boot() -> str:
        missing = unreachable(node)
        return missing or ("still the same boot" if on(node, "cat /proc/sys/kernel/random/boot_id") == before else "")

    wait_for(f"{node} to boot again", same_boot)
