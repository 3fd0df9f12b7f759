# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What real hosts bring along that spoils a stage half way: read on the node, judged on the controller before it starts.

Locks of apt, an interrupted dpkg, a full or read-only disk, noexec, a clock that is off, an own name that leads to the
loopback, IPv6 that only partly works, and Python in different versions.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._dpkg import UNFINISHED, Holder, describe_holder, duration, has_journal, lock_holders
from ._fabric import Run
from ._pythons import fetched_version, is_version, python_candidates
from ._tree import read_text

Resolve = Callable[..., "list[tuple[Any, ...]]"]

#: Seconds that a node's clock may be off.
CLOCK_TOLERANCE = 60
#: What apt fetches and unpacks for all stages: the engine, the NFS tools, Python's parts.
PACKAGES_BYTES = 2**29
PACKAGES_INODES = 20_000
#: The files of an environment with Ray, torch and CUDA.
ENVIRONMENT_INODES = 50_000
#: What every stage needs for the few small files that it writes.
LEAST_BYTES = 2**26
LEAST_INODES = 1_000

_IPV6_SECONDS = 3.0
_IPV6_HOSTS = 4
# The kernel's word (adjtimex(2)) for a clock that nothing keeps in step.
_TIME_ERROR = 5
_ENGINES = ("docker-ce", "docker.io")


# --- reading, on the node ----------------------------------------------------------------------------------------


def parse_status(text: str) -> dict[str, str]:
    """Packages and their states from dpkg's status file; dpkg-query says the same and takes ten times as long."""
    rows = re.findall(r"^Package: (\S+)\nStatus: \S+ (\S+) (\S+)$", text, re.MULTILINE)
    return {name: state if flag == "ok" else f"{state}, {flag}" for name, flag, state in rows}


def own_name_addresses(text: str, hostname: str) -> list[str]:
    """The addresses that /etc/hosts gives to this node's own name, in its order."""
    names = {hostname, hostname.partition(".")[0]} - {""}
    rows = (line.partition("#")[0].split() for line in text.splitlines())
    return list(dict.fromkeys(row[0] for row in rows if names & set(row[1:])))


def clock_synchronised() -> bool | None:
    """Whether something keeps the kernel's clock in step (NTP, PTP); None where the kernel does not tell."""
    try:
        # Larger than struct timex anywhere; all zero asks and sets nothing.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def read_disk(path: str) -> dict[str, Any]:
    """The file system that a path lies on or would lie on. ``free_inodes`` is None where it has no fixed number."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    seen = os.statvfs(path)
    return {
        "device": os.stat(path).st_dev,
        "free_bytes": seen.f_bavail * seen.f_frsize,
        "free_inodes": seen.f_favail if seen.f_files else None,
        "read_only": bool(seen.f_flag & os.ST_RDONLY),
        "noexec": bool(seen.f_flag & os.ST_NOEXEC),
    }


def minor_version(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_full(version: str) -> bool:
    return version.count(".") > 1


def interpreter_version(path: str, run: Run, exactly: bool = False) -> str:
    """The version of an interpreter, or '' where there is none; of one named by its minor version that alone, if not ``exactly``."""
    real = os.path.realpath(path)
    if real == os.path.realpath(sys.executable):
        return platform.python_version()
    # Distributions name the file by its version, uv the directory.
    named = re.fullmatch(r"python(3\.\d+)", os.path.basename(real))
    known = fetched_version(Path(real)) or (named.group(1) if named else "")
    if not os.path.exists(real):
        return ""
    if _is_full(known) or (known and not exactly):
        return known
    rc, out, _err = run([path, "-I", "-S", "-c", "import platform; print(platform.python_version())"], 10.0)
    return out.strip() if rc == 0 and re.fullmatch(r"3\.\d+\.\S+", out.strip()) else known


def python_to_come(wanted: str, environment_root: str, run: Run) -> str:
    """The version of Python that the stage would take: what was asked for where it would fetch it, '' where it cannot say."""
    if wanted.startswith("/"):
        return interpreter_version(wanted, run)
    if not is_version(wanted):
        return ""
    if _is_full(wanted):
        return wanted
    found = (
        interpreter_version(str(path), run, exactly=True) for path in python_candidates(wanted, Path(environment_root))
    )
    return next((version for version in found if version.startswith(f"{wanted}.")), wanted)


def apt_uris(root: str) -> list[str]:
    """Every address that apt fetches from: /etc/apt/sources.list and what lies in sources.list.d, in both formats."""
    directory = os.path.join(root, "etc/apt/sources.list.d")
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    texts = {name: read_text(os.path.join(directory, name)) for name in names}
    found = []
    for text in [read_text(os.path.join(root, "etc/apt/sources.list"))] + [
        text for name, text in texts.items() if name.endswith(".list")
    ]:
        found += re.findall(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)", text, re.MULTILINE)
    for name, text in texts.items():
        if not name.endswith(".sources"):
            continue
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
            if not re.search(r"(?mi)^Enabled:\s*(no|false|without|off|disable|0)\s*$", stanza):
                field = re.search(r"(?mi)^URIs:((?:.*)(?:\n[ \t]+.*)*)", stanza)
                found += field.group(1).split() if field else []
    return list(dict.fromkeys(found))


def apt_endpoints(uris: Iterable[str], config: str) -> list[tuple[str, int]]:
    """Host and port of each connection that apt makes for these addresses; ``config`` is what 'apt-config dump' prints."""
    options = {name.lower(): value for name, value in re.findall(r'^(\S+) "(.*)";$', config, re.MULTILINE)}
    found = []
    for uri in uris:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        names = [f"acquire::{kind}::proxy" for kind in dict.fromkeys([parts.scheme, "http"])]
        names = [f"{name}::{parts.hostname}" for name in names] + names
        proxy = next((options[name] for name in names if options.get(name)), "")
        if proxy and proxy.upper() != "DIRECT":
            parts = urlsplit(proxy)
        try:
            port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)
        except ValueError:
            continue
        if parts.hostname:
            found.append((parts.hostname, port))
    return list(dict.fromkeys(found))


def _connects(address: tuple[Any, ...], seconds: float) -> OSError | None:
    family, kind, protocol, _name, where = address
    try:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(max(0.1, seconds))
            connection.connect(where)
    except OSError as error:
        return error
    return None


def ipv6_problem(host: str, port: int, resolve: Resolve = socket.getaddrinfo, seconds: float = _IPV6_SECONDS) -> str:
    """Why programs that follow the system's order lose time on IPv6 to a host that IPv4 reaches; '' where they do not."""
    try:
        addresses = resolve(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    # The order is the system's (gai.conf, routes): IPv6 that comes last is in nobody's way.
    if not addresses or addresses[0][0] != socket.AF_INET6:
        return ""
    error = _connects(addresses[0], seconds / 2)
    if error is None or error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        # No way at all is told at once, and costs nothing.
        return ""
    ipv4 = [address for address in addresses if address[0] == socket.AF_INET]
    if not ipv4 or _connects(ipv4[0], seconds / 2) is not None:
        return ""
    return "no answer" if isinstance(error, TimeoutError) or error.errno is None else os.strerror(error.errno)


def broken_ipv6(
    endpoints: Sequence[tuple[str, int]], resolve: Resolve = socket.getaddrinfo, seconds: float = _IPV6_SECONDS
) -> list[dict[str, Any]]:
    """The endpoints that IPv4 reaches and IPv6 does not, asked all at once. A name that is slow to resolve is left out."""
    found: dict[tuple[str, int], str] = {}

    def ask(host: str, port: int) -> None:
        found[host, port] = ipv6_problem(host, port, resolve, seconds)

    threads = [threading.Thread(target=ask, args=endpoint, daemon=True) for endpoint in endpoints[:_IPV6_HOSTS]]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [{"host": host, "port": port, "reason": why} for (host, port), why in sorted(dict(found).items()) if why]


def has_ipv6(routes: Iterable[Mapping[str, Any]], if_inet6: str) -> bool:
    """Whether the node would use IPv6 beyond its links: a default route, or a global address."""
    scopes = (line.split() for line in if_inet6.splitlines())
    return any(route.get("dst") in ("default", "::/0") for route in routes) or any(
        len(row) > 3 and row[3] == "00" and not row[0].startswith(("fc", "fd")) for row in scopes
    )


def read_first_contact(
    run: Run,
    routes6: Sequence[Mapping[str, Any]],
    hostname: str,
    environment_root: str = "/opt/metalray",
    python: str = "/usr/bin/python3",
    tmpdir: str = "/tmp",
    root: str = "/",
    resolve: Resolve = socket.getaddrinfo,
) -> dict[str, Any]:
    """The facts that ``judge`` takes. ``run`` runs a command for a bounded time, ``routes6`` is 'ip -6 -j route'."""
    status = parse_status(read_text(os.path.join(root, "var/lib/dpkg/status")))
    ipv6 = []
    if has_ipv6(routes6, read_text(os.path.join(root, "proc/net/if_inet6"))):
        _rc, config, _err = run(["apt-config", "dump"], 2.0)
        ipv6 = broken_ipv6(apt_endpoints(apt_uris(root), config), resolve)
    places = dict.fromkeys(["/", "/etc", "/usr", "/var", tmpdir, environment_root])
    return {
        "locks": [holder.to_dict() for holder in lock_holders(root)],
        "unfinished": [
            f"{name} ({state})" for name, state in status.items() if state.startswith(UNFINISHED) or "," in state
        ],
        "journal": has_journal(root),
        "engine": any(status.get(name) == "installed" for name in _ENGINES),
        "hostname": hostname,
        "own_addresses": own_name_addresses(read_text(os.path.join(root, "etc/hosts")), hostname),
        "clock": {"synchronised": clock_synchronised()},
        "ipv6": ipv6,
        "disks": {place: read_disk(os.path.join(root, place.lstrip("/"))) for place in places},
        "environment_root": environment_root,
        "tmpdir": tmpdir,
        "python": python,
        "python_version": python_to_come(python, environment_root, run),
    }


# --- judging, on the controller ----------------------------------------------------------------------------------


def together(found: Iterable[tuple[str, str]]) -> list[str]:
    """One sentence for all the hosts that it is true of."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, sentence in found:
        hosts[sentence].append(host)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in hosts.items()]


def check_clocks(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Refusals and warnings. Each clock is known as an interval, as long as the connection took to ask.

    Whom most agree with is right; the controller in doubt.
    """
    clocks = {host: facts["clock"] for host, facts in nodes.items() if facts["clock"].get("ahead")}
    controller = ""
    seen = {controller: (0.0, 0.0), **{host: tuple(clock["ahead"]) for host, clock in clocks.items()}}

    def gap(one: str, other: str) -> float:
        """How far one is ahead of the other at least; negative where it is behind."""
        if seen[one][0] > seen[other][1]:
            return seen[one][0] - seen[other][1]
        return min(0.0, seen[one][1] - seen[other][0])

    agree = {one: sum(abs(gap(one, other)) <= CLOCK_TOLERANCE for other in seen) for one in seen}
    right = max(seen, key=lambda one: (agree[one], one == controller))
    refusals, warnings = [], []
    for host in seen:
        off = gap(host, right)
        if abs(off) <= CLOCK_TOLERANCE:
            continue
        size = f"{abs(off):.0f} s" if abs(off) < 7200 else duration(abs(off))
        words = f"{size} {'ahead of' if off > 0 else 'behind'}"
        if host == controller:
            warnings.append(
                f"the clock of this controller is {words} that of the nodes, which agree with one another. Set it right "
                "(timedatectl set-ntp true)"
            )
            continue
        kept = {True: ", although something keeps it in step", False: ", and nothing keeps it in step", None: ""}
        whose = "that of this controller" if right == controller else "those of the other nodes"
        refusals.append(
            f"{host}: the clock is {words} {whose}{kept[clocks[host]['synchronised']]}; {CLOCK_TOLERANCE} s are allowed. apt, TLS and "
            "Ray's timeouts fail by it. Set it right on the node: 'timedatectl set-ntp true', or 'chronyc makestep' where chrony "
            "runs"
        )
    return refusals, warnings


def _groups(hosts: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{version} on {', '.join(names)}" for version, names in hosts.items())


def _by_version(nodes: Mapping[str, Mapping[str, Any]], show: Callable[[str], str]) -> dict[str, list[str]]:
    """The hosts of each version, oldest first."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, facts in nodes.items():
        hosts[show(facts["python_version"])].append(host)
    return dict(sorted(hosts.items(), key=lambda item: [int(part) for part in re.findall(r"\d+", item[0])]))


def check_pythons(nodes: Mapping[str, Mapping[str, Any]], exactly: bool = True) -> list[str]:
    """Ray and pickled objects need one minor version of Python on all nodes, and an environment one full version.

    ``exactly`` tells whether this run cares for the latter.
    """
    refusals = together(
        (host, f"python_env_python is '{facts['python']}': allowed is an absolute path, or a version such as '3.12.16'")
        for host, facts in nodes.items()
        if not facts["python"].startswith("/") and not is_version(facts["python"])
    )
    known = {host: facts for host, facts in nodes.items() if facts["python_version"]}
    named = ", ".join(map(repr, sorted({facts["python"] for facts in known.values()})))
    mend = (
        "Set python_env_python for the group 'cluster' to one full version, '3.12.16' say, which uv then fetches where it is "
        "missing (it has not every one that a distribution has), or install the same release of the system on every node"
    )
    minors = _by_version(known, minor_version)
    # One that is there and would not tell more than its minor version may be any.
    told = {
        host: facts for host, facts in known.items() if is_version(facts["python"]) or _is_full(facts["python_version"])
    }
    versions = _by_version(told, str) if exactly else {}
    if len(minors) > 1:
        refusals.append(
            f"python_env_python is {named}, and that is Python {_groups(minors)}; Ray needs the same minor version on every node. {mend}"
        )
    elif len(versions) > 1:
        shown = _groups({version: hosts for version, hosts in versions.items() if _is_full(version)})
        for version, hosts in versions.items():
            if not _is_full(version):
                shown += (
                    f", and none yet on {', '.join(hosts)}, where uv would fetch the newest {version} that it knows"
                )
        refusals.append(
            f"python_env_python is {named}, and that is Python {shown}; environments need the same full version on every node. {mend}"
        )
    return refusals


def lock_python(text: str) -> tuple[str, bool] | None:
    """The version of Python that the comments at the head of a lock name, and whether newer ones will do too."""
    head = "\n".join(line for line in text[:4000].splitlines() if line.startswith("#"))
    own = re.search(r"CPython (3\.\d+)(?:\.\d+)?( and newer)?", head)
    if own:
        return own.group(1), bool(own.group(2))
    # The command line that 'uv pip compile' writes there.
    given = re.search(r"--python-version[= ](3\.\d+)", head)
    return (given.group(1), "--universal" in head) if given else None


def check_locks(
    nodes: Mapping[str, Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Refusals and warnings for a lock that was made for another Python than the node's."""
    refused: list[tuple[str, str]] = []
    warned: list[tuple[str, str]] = []
    for host, facts in nodes.items():
        lock = str(values[host].get("python_env_lock") or "")
        made = lock_python(read_text(lock)) if lock else None
        if not made or not facts["python_version"]:
            continue
        wanted, have = (
            tuple(map(int, version.split("."))) for version in (made[0], minor_version(facts["python_version"]))
        )
        text = (
            f"python_env_lock is '{lock}', made for Python {made[0]}{' and newer' if made[1] else ''}, and python_env_python "
            f"'{facts['python']}' is {facts['python_version']} there. Use a lock made for it, or set python_env_python to the full "
            f"version of a Python {made[0]}"
        )
        if have < wanted:
            refused.append((host, text))
        elif have > wanted and not made[1]:
            warned.append((host, text))
    return refused, warned


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MiB"


def _check_room(facts: Mapping[str, Any], builds: bool, installs: bool, least: int) -> list[str]:
    """What is short of bytes or inodes: needs add up where places share a file system."""
    root = facts["environment_root"]
    needs = [(place, "what every stage writes", LEAST_BYTES, LEAST_INODES) for place in facts["disks"]]
    if installs:
        # The download lies in /var, what is unpacked in /usr.
        needs.append(("/usr", "packages", PACKAGES_BYTES, PACKAGES_INODES))
        needs.append(("/var", "packages", PACKAGES_BYTES // 2, LEAST_INODES))
    if builds:
        needs.append((root, "the environment (python_env_min_free_bytes)", least, ENVIRONMENT_INODES if least else 0))
    by_device: dict[int, list[tuple[str, str, int, int]]] = defaultdict(list)
    for need in needs:
        by_device[facts["disks"][need[0]]["device"]].append(need)
    problems = []
    for members in by_device.values():
        # Small files are the same few for all places on one disk.
        small = [member for member in members if member[2] <= LEAST_BYTES][:1]
        large = [member for member in members if member[2] > LEAST_BYTES]
        wanted = large or small
        disk = facts["disks"][members[0][0]]
        for index, unit, have in ((2, "", disk["free_bytes"]), (3, " inodes", disk["free_inodes"])):
            total = sum(member[index] for member in wanted)
            if have is None or have >= total:
                continue
            show = _gib if not unit else str
            parts = "; ".join(f"{show(member[index])}{unit} for {member[1]} below {member[0]}" for member in wanted)
            mend = "Make room there"
            if any(member[0] == root and member[2] == least for member in large):
                mend += f" ('rm -rf {root}/cache' after an earlier build), or set python_env_root to another disk"
            problems.append(f"{show(have)}{unit} are free, {show(total)}{unit} are needed: {parts}. {mend}")
    return problems


def _judge_node(
    facts: Mapping[str, Any], values: Mapping[str, Any], node: Mapping[str, Any], runs: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    refusals: list[str] = []
    warnings: list[str] = []
    disks, root, tmpdir = facts["disks"], facts["environment_root"], facts["tmpdir"]
    read_only: dict[int, list[str]] = defaultdict(list)
    for place, disk in disks.items():
        if disk["read_only"]:
            read_only[disk["device"]].append(place)
    for places in read_only.values():
        refusals.append(
            f"the file system of {', '.join(places)} is mounted read-only, as the kernel does after an error of the disk. See 'dmesg', "
            f"check the disk, then 'mount -o remount,rw {places[0]}'"
        )
    if disks[tmpdir]["noexec"]:
        named = "" if tmpdir == "/tmp" else " (TMPDIR in network_env_extra)"
        refusals.append(
            f"{tmpdir}{named} is mounted noexec; torch.compile, Triton and vLLM load from there what they compile. Run 'mount -o "
            f"remount,exec {tmpdir}' and take noexec out of its line in /etc/fstab or of tmp.mount, or name a directory that may "
            "execute as TMPDIR in network_env_extra"
        )
    if disks[root]["noexec"]:
        refusals.append(
            f"{root} lies on a file system that is mounted noexec, and the environment's programs and libraries are there. Mount it "
            "with exec (mount -o remount,exec, and in /etc/fstab), or set python_env_root to another disk"
        )
    if not read_only:
        builds = runs("python_env") and not node.get("environment_path")
        installs = runs("docker") and not facts["engine"]
        refusals += _check_room(facts, builds, installs, int(values.get("python_env_min_free_bytes") or 0))
    if facts["locks"]:
        holders = "; ".join(describe_holder(Holder(**lock)) for lock in facts["locks"])
        warnings.append(
            f"{holders}. Stages that install packages wait for it, up to their apt_lock_timeout. To go on at once, let it finish "
            "first ('systemctl stop unattended-upgrades' ends that one in order)"
        )
    elif facts["journal"] or facts["unfinished"]:
        left = facts["unfinished"] + (["its journal"] if facts["journal"] else [])
        warnings.append(
            f"dpkg was interrupted and has left {', '.join(left)}. The first stage that installs a package mends it "
            "('dpkg --configure -a')"
        )
    for broken in facts["ipv6"]:
        warnings.append(
            f"IPv6 only partly works: {broken['host']} port {broken['port']}, where apt fetches from, is reached over IPv4 and not over "
            f"IPv6 ({broken['reason']}), which every download tries first. Mend the node's IPv6 (ip -6 route), or let IPv4 come "
            "first: 'precedence ::ffff:0:0/96 100' in /etc/gai.conf"
        )
    return refusals, warnings


def judge(
    nodes: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Any]],
    addresses: Mapping[str, str],
    runs: Callable[[str], bool] = lambda stage: True,
) -> tuple[list[str], list[str]]:
    """What stands in the way, and what is only to be known, each a sentence with its mend.

    ``nodes`` are the facts of ``node_facts``, ``addresses`` each node's in the cluster where it is known, and ``runs`` tells
    whether a stage takes part in this run: room for others is not asked for.
    """
    known = {host: node["first_contact"] for host, node in nodes.items() if node.get("first_contact")}
    refused: list[tuple[str, str]] = []
    warned: list[tuple[str, str]] = []
    for host, facts in known.items():
        refusals, warnings = _judge_node(facts, values[host], nodes[host], runs)
        refused += [(host, text) for text in refusals]
        warned += [(host, text) for text in warnings]
    old, other = check_locks(known, values)
    refused += old
    warned += other
    off, odd = check_clocks(known)
    pythons = check_pythons(known, exactly=runs("python_env") or runs("versions"))
    return together(refused) + off + pythons, together(warned) + odd + _own_names(known, addresses)


def _own_names(nodes: Mapping[str, Mapping[str, Any]], addresses: Mapping[str, str]) -> list[str]:
    """Nodes whose own name leads to nothing but their loopback, as Debian's installer writes it."""
    found = {
        host: facts
        for host, facts in nodes.items()
        if facts["own_addresses"]
        and all(address.startswith("127.") or address == "::1" for address in facts["own_addresses"])
    }
    if not found:
        return []
    lines = "; ".join(
        f"on {host} '{addresses.get(host, 'ADDRESS')} {facts['hostname']}', and take the name from {', '.join(facts['own_addresses'])}"
        for host, facts in found.items()
    )
    return [
        f"the own name leads to the loopback in /etc/hosts. Ray, NCCL and Gloo are given addresses here and are not harmed; other "
        f"programs that ask for their own name are. To mend it, write {lines}"
    ]
