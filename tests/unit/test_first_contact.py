# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What real hosts bring along: read from trees, sockets, mounts and processes, judged, and told by a real play."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.action.cluster_plan import runs
from ansible_collections.metalray.cluster.plugins.module_utils import _first_contact as first
from ansible_collections.metalray.cluster.plugins.module_utils._fabric import run_bounded
from ansible_collections.metalray.cluster.plugins.plugin_utils._failures import explain_failure, was_reached
from namespaces import COLLECTIONS, needs_namespaces
from trees import FakeRoot

REPOSITORY = COLLECTIONS.parent
GIB = 2**30


def nothing(argv, seconds):
    raise AssertionError(argv)


def read(root: FakeRoot, run=nothing, **more):
    return first.read_first_contact(run, more.pop("routes6", []), "node1", root=root.path, **more)


# --- dpkg --------------------------------------------------------------------------------------------------------


def test_the_state_of_dpkg(tmp_path):
    root = FakeRoot(tmp_path)
    row = "Package: {}\nStatus: {}\nPriority: optional\nDescription: Status: x\n"
    states = {
        "bash": "install ok installed",
        "docker-ce": "install ok installed",
        "nfs-common": "install ok half-configured",
        "old": "deinstall ok config-files",
        "torn": "install reinstreq half-installed",
    }
    root.write("/var/lib/dpkg/status", "\n".join(row.format(*item) for item in states.items()))
    root.write("/var/lib/dpkg/lock-frontend", "").write("/var/lib/dpkg/updates/tmp.i", "")
    facts = read(root)
    assert facts["unfinished"] == ["nfs-common (half-configured)", "torn (half-installed, reinstreq)"]
    assert (facts["journal"], facts["engine"], facts["locks"]) == (False, True, [])
    root.write("/var/lib/dpkg/updates/0000", "")
    assert read(root)["journal"] is True


def test_a_held_lock(tmp_path):
    root = FakeRoot(tmp_path).write("/var/lib/dpkg/lock-frontend", "")
    os.symlink("/proc", tmp_path / "proc")
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "var/lib/dpkg/lock-frontend")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            holder.stdout.readline()
            (lock,) = read(root)["locks"]
        finally:
            holder.kill()
    assert (lock["pid"], lock["path"]) == (holder.pid, str(tmp_path / "var/lib/dpkg/lock-frontend"))
    assert lock["command"].startswith(sys.executable) and lock["seconds"] in range(30)


# --- the own name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hostname", "addresses"),
    [
        ("127.0.0.1 localhost\n127.0.1.1\tnode1.example.org node1\n", "node1", ["127.0.1.1"]),
        ("127.0.0.1 localhost node1 # the installer's\n::1 node1\n", "node1", ["127.0.0.1", "::1"]),
        ("127.0.1.1 node1\n10.0.0.1 node1\n", "node1.example.org", ["127.0.1.1", "10.0.0.1"]),
        ("127.0.0.1 localhost\n# 127.0.1.1 node1\n127.0.1.1 node10 xnode1\n", "node1", []),
        ("", "node1", []),
    ],
)
def test_the_own_name_in_hosts(text, hostname, addresses):
    assert first.own_name_addresses(text, hostname) == addresses


# --- IPv6 --------------------------------------------------------------------------------------------------------

DEB822 = """\
# Types: deb
Types: deb
URIs: https://one.example/debian http://two.example:8080/x
 http://three.example
Suites: bookworm

Enabled: no
Types: deb
URIs: http://off.example/
"""


def test_where_apt_fetches_from(tmp_path):
    root = FakeRoot(tmp_path)
    root.write(
        "/etc/apt/sources.list",
        "deb [arch=amd64 trusted=yes] http://four.example/debian x main\n# deb http://no.example x y\n",
    )
    root.write("/etc/apt/sources.list.d/a.sources", DEB822).write(
        "/etc/apt/sources.list.d/b.list", "deb cdrom:[x]/ x main\n"
    )
    root.write("/etc/apt/sources.list.d/c.list.save", "deb http://no.example x main\n")
    uris = first.apt_uris(root.path)
    assert first.apt_endpoints(uris, "") == [
        ("four.example", 80),
        ("one.example", 443),
        ("two.example", 8080),
        ("three.example", 80),
    ]
    config = 'Acquire::http::Proxy "http://proxy.example:3142/";\nAcquire::http::Proxy::two.example "DIRECT";\n'
    # https uses http's proxy where it has none of its own.
    assert first.apt_endpoints(uris, config) == [("proxy.example", 3142), ("two.example", 8080)]
    config += 'Acquire::https::Proxy "DIRECT";\n'
    assert ("one.example", 443) in first.apt_endpoints(uris, config)


@pytest.fixture
def listener():
    """A server on IPv4 only, and a resolver that names it on both."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def resolver(*families):
    rows = {
        4: (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1",)),
        6: (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1",)),
    }
    return lambda host, port, type: [(*rows[one][:4], (*rows[one][4], port)) for one in families]


def test_ipv6_that_ipv4_must_stand_in_for(listener):
    refused = os.strerror(errno.ECONNREFUSED)
    assert first.ipv6_problem("x", listener, resolver(6, 4)) == refused
    assert first.broken_ipv6([("x", listener), ("y", listener)], resolver(6, 4)) == [
        {"host": "x", "port": listener, "reason": refused},
        {"host": "y", "port": listener, "reason": refused},
    ]


def test_ipv6_that_harms_nobody(listener):
    # gai.conf prefers IPv4; no name has IPv6; nothing answers at all; the name is unknown.
    assert first.ipv6_problem("x", listener, resolver(4, 6)) == ""
    assert first.ipv6_problem("x", listener, resolver(4)) == ""
    assert first.ipv6_problem("x", 1, resolver(6, 4)) == ""

    def unknown(*arguments, **more):
        raise socket.gaierror(socket.EAI_NONAME, "no")

    assert first.ipv6_problem("x", listener, unknown) == ""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert first.ipv6_problem("x", server.getsockname()[1], resolver(6, 4)) == ""


def test_a_name_server_that_does_not_answer_costs_no_more_than_its_time():
    def slow(*arguments, **more):
        time.sleep(5)
        return []

    began = time.monotonic()
    assert first.broken_ipv6([("x", 80), ("y", 80)], slow, seconds=0.3) == []
    assert time.monotonic() - began < 2


def test_a_node_without_ipv6_asks_nothing(tmp_path):
    root = FakeRoot(tmp_path).write("/etc/apt/sources.list", "deb http://one.example x main")
    root.write(
        "/proc/net/if_inet6", "fe80000000000000021122fffe334455 02 40 20 80 eth0\n" + "0" * 31 + "1 01 80 10 80 lo"
    )
    assert read(root)["ipv6"] == []
    asked = []

    def run(argv, seconds):
        asked.append(argv)
        return 0, "", ""

    read(root, run, routes6=[{"dst": "default"}], resolve=lambda *arguments, **more: [])
    assert asked == [["apt-config", "dump"]]
    assert first.has_ipv6([], "20010db8000000000000000000000001 02 40 00 80 eth0")
    assert not first.has_ipv6([{"dst": "fe80::/64"}], "fd000000000000000000000000000001 02 40 00 80 eth0")


# --- disks -------------------------------------------------------------------------------------------------------


def test_a_disk_of_what_is_not_there_yet(tmp_path):
    seen = first.read_disk(str(tmp_path / "a/b/c"))
    assert seen["device"] == tmp_path.stat().st_dev and not seen["read_only"]
    # Others write to that disk too, between the two looks.
    assert seen["free_bytes"] == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.05)


@needs_namespaces
def test_a_real_tmpfs_that_is_full_read_only_and_noexec(tmp_path):
    code = (
        "import json, subprocess, sys; "
        "from ansible_collections.metalray.cluster.plugins.module_utils import _first_contact as first; "
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro,noexec,size=1m,nr_inodes=100', 'x', sys.argv[1]], check=True); "
        "print(json.dumps(first.read_disk(sys.argv[1])))"
    )
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=COLLECTIONS,
        check=False,
    )
    seen = json.loads(done.stdout or "{}")
    assert (seen.pop("device"), seen) and seen == {
        "free_bytes": 2**20,
        "free_inodes": 99,
        "read_only": True,
        "noexec": True,
    }, done.stderr


# --- Python and the clock ----------------------------------------------------------------------------------------


def test_the_version_of_an_interpreter(tmp_path):
    assert first.interpreter_version(sys.executable, nothing) == platform.python_version()
    (tmp_path / "python3.42").touch()
    link = tmp_path / "python3"
    link.symlink_to("python3.42")
    assert first.interpreter_version(str(link), nothing) == "3.42"
    for answer, version in [((0, "3.42.1\n", ""), "3.42.1"), ((124, "", ""), "3.42"), ((0, "hello\n", ""), "3.42")]:
        assert first.interpreter_version(str(link), lambda *asked, said=answer: said, exactly=True) == version
    assert first.interpreter_version(str(tmp_path / "gone/python3.11"), nothing) == ""
    (tmp_path / "custom").touch()
    assert first.interpreter_version(str(tmp_path / "custom"), lambda argv, seconds: (1, "", "")) == ""
    # A second Python of the system answers for itself.
    script = tmp_path / "real"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    assert first.interpreter_version(str(script), run_bounded) == platform.python_version()


def test_the_python_that_the_stage_would_take(tmp_path):
    def version(wanted: str) -> str:
        return read(FakeRoot(tmp_path / "root"), python=wanted, environment_root=str(tmp_path))["python_version"]

    own = platform.python_version()
    assert version(sys.executable) == own
    # Another one than Ansible's is asked.
    script = tmp_path / "own/python/mine/bin/python3.97"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho 3.97.5\n")
    script.chmod(0o755)
    assert first.python_to_come("3.97", str(tmp_path / "own"), run_bounded) == "3.97.5"
    # uv would fetch these; what it fetched tells its version by its directory.
    assert (version("3.98.9"), version("3.98")) == ("3.98.9", "3.98")
    for patch in (9, 12):
        python = tmp_path / f"python/cpython-3.98.{patch}-linux-x86_64-gnu/bin/python3.98"
        python.parent.mkdir(parents=True)
        python.touch()
    (tmp_path / "python/cpython-3.98-linux-x86_64-gnu").symlink_to("cpython-3.98.12-linux-x86_64-gnu")
    assert (version("3.98"), version("3.98.9")) == ("3.98.12", "3.98.9")
    assert version(str(tmp_path / "python/cpython-3.98-linux-x86_64-gnu/bin/python3.98")) == "3.98.12"
    assert (version("python3"), version("3"), version("3.x")) == ("", "", "")


def test_the_kernel_s_word_on_its_clock():
    assert first.clock_synchronised() in (True, False, None)


# --- judging -----------------------------------------------------------------------------------------------------


def healthy(number: int) -> dict:
    disk = {"device": 1, "free_bytes": 100 * GIB, "free_inodes": 10**6, "read_only": False, "noexec": False}
    places = ("/", "/etc", "/usr", "/var", "/tmp", "/opt/metalray")
    return {
        "environment_path": "",
        "first_contact": {
            "locks": [],
            "unfinished": [],
            "journal": False,
            "engine": False,
            "hostname": f"node{number}",
            "own_addresses": [],
            "clock": {"synchronised": True, "ahead": [-0.2, 0.3]},
            "ipv6": [],
            "disks": {place: dict(disk) for place in places},
            "environment_root": "/opt/metalray",
            "tmpdir": "/tmp",
            "python": "/usr/bin/python3",
            "python_version": "3.11",
        },
    }


class Judged:
    def __init__(self) -> None:
        self.nodes = {f"n{number}": healthy(number) for number in (1, 2, 3)}
        self.stages = {"docker", "python_env"}
        self.lock = ""

    def __getitem__(self, host: str) -> dict:
        return self.nodes[host]["first_contact"]

    def disks(self, host: str, *places: str, **values) -> None:
        for place in places or self[host]["disks"]:
            self[host]["disks"][place].update(values)

    def ahead(self, **seconds: float) -> None:
        for host, value in seconds.items():
            self[host]["clock"]["ahead"] = [value - 0.2, value + 0.3]

    def judge(self) -> tuple[list[str], list[str]]:
        values = {host: {"python_env_min_free_bytes": 10 * GIB, "python_env_lock": self.lock} for host in self.nodes}
        addresses = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3"}
        return first.judge(self.nodes, values, addresses, lambda stage: stage in self.stages)

    def refusal(self) -> str:
        refusals, warnings = self.judge()
        assert len(refusals) == 1 and warnings == [], (refusals, warnings)
        return refusals[0]

    def warning(self) -> str:
        refusals, warnings = self.judge()
        assert refusals == [] and len(warnings) == 1, (refusals, warnings)
        return warnings[0]


@pytest.fixture
def judged():
    return Judged()


def test_healthy_nodes_and_nodes_without_these_facts(judged):
    assert judged.judge() == ([], [])
    judged.nodes = {"n1": {}}
    assert judged.judge() == ([], [])


def test_a_held_lock_and_an_interrupted_dpkg_are_warnings(judged):
    lock = {"path": "/var/lib/dpkg/lock-frontend", "pid": 812, "command": "unattended-upgrade", "seconds": 185}
    judged["n2"].update(locks=[lock], unfinished=["x (unpacked)"])
    assert judged.warning().startswith(
        "n2: process 812 ('unattended-upgrade', started 3 min ago) holds /var/lib/dpkg/lock-frontend. Stages that install"
    )
    judged["n2"].update(locks=[], journal=True)
    assert "n2: dpkg was interrupted and has left x (unpacked), its journal." in judged.warning()


def test_the_own_name_is_told_once_with_each_line_to_write(judged):
    judged["n1"]["own_addresses"] = ["127.0.1.1"]
    judged["n3"]["own_addresses"] = ["::1", "127.0.0.1"]
    judged["n2"]["own_addresses"] = ["127.0.1.1", "10.0.0.2"]
    text = judged.warning()
    assert "on n1 '10.0.0.1 node1', and take the name from 127.0.1.1; on n3 '10.0.0.3 node3'" in text
    assert "are not harmed" in text and "n2" not in text


def test_ipv6_that_partly_works_is_told_for_all_nodes_at_once(judged):
    for host in judged.nodes:
        judged[host]["ipv6"] = [{"host": "deb.example", "port": 80, "reason": "no answer"}]
    text = judged.warning()
    assert text.startswith("n1, n2, n3: IPv6 only partly works: deb.example port 80") and "/etc/gai.conf" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(300, "300 s ahead of"), (-7300, "2 h behind"), (61.5, "61 s ahead of")]
)
def test_a_clock_that_is_off_is_refused(judged, seconds, words):
    judged.ahead(n3=seconds)
    judged["n3"]["clock"]["synchronised"] = False
    text = judged.refusal()
    assert text.startswith(
        f"n3: the clock is {words} that of this controller, and nothing keeps it in step; 60 s are allowed"
    )
    assert "timedatectl set-ntp true" in text


def test_a_slow_connection_is_no_clock_that_is_off(judged):
    judged["n2"]["clock"]["ahead"] = [-5.0, 130.0]
    judged["n3"]["clock"]["ahead"] = [-130.0, 3.0]
    judged.ahead(n1=59)
    assert judged.judge() == ([], [])


def test_nodes_that_agree_are_right_against_the_controller(judged):
    judged.ahead(n1=300, n2=301, n3=299)
    assert judged.warning().startswith("the clock of this controller is 300 s behind that of the nodes, which agree")
    # One of them is wrong as well, and no more of one mind than the controller.
    judged.ahead(n3=1000)
    refusals, warnings = judged.judge()
    assert refusals[0].startswith("n3: the clock is 700 s ahead of those of the other nodes")
    assert len(refusals) == 1 and "this controller" in warnings[0]


def test_in_doubt_the_controller_is_right(judged):
    judged.ahead(n1=300, n2=301)
    refusals, warnings = judged.judge()
    assert [text[:3] for text in refusals] == ["n1:", "n2:"] and warnings == []
    judged.nodes = {"n1": judged.nodes["n1"]}
    assert "n1: the clock is 300 s ahead of that of this controller" in judged.refusal()


def test_different_pythons_are_refused_with_their_groups(judged):
    judged["n3"]["python_version"] = "3.13.5"
    judged["n2"]["python_version"] = "3.9.2"
    text = judged.refusal()
    assert "Python 3.9 on n2; 3.11 on n1; 3.13 on n3; Ray needs the same minor version" in text
    assert "'3.12.16' say" in text and "'/usr/bin/python3'" in text
    # That is so whatever this run is for.
    judged.stages = set()
    assert judged.refusal() == text
    for host in judged.nodes:
        judged[host].update(python="3.12.16", python_version="3.12.16")
    assert judged.judge() == ([], [])
    # One that is not there is the stage's to install.
    judged["n2"].update(python="/usr/bin/python3.12", python_version="")
    assert judged.judge() == ([], [])


def test_a_version_that_some_nodes_have_and_others_would_fetch_is_refused(judged):
    """Debian 12 beside 13: uv would bring a newer 3.11 to the second, and the stage 'versions' refuse that in the end."""
    for host in judged.nodes:
        judged[host].update(python="3.11", python_version="3.11.2")
    assert judged.judge() == ([], [])
    judged["n3"]["python_version"] = judged["n2"]["python_version"] = "3.11"
    text = judged.refusal()
    assert text.startswith(
        "python_env_python is '3.11', and that is Python 3.11.2 on n1, and none yet on n2, n3, where uv would fetch the newest 3.11 "
        "that it knows; environments need the same full version on every node. Set python_env_python for the group 'cluster' to "
        "one full version, '3.12.16' say"
    )
    # All fetch the same.
    judged["n1"]["python_version"] = "3.11"
    assert judged.judge() == ([], [])


@pytest.mark.parametrize("python", ["/usr/bin/python3", "3.10"])
def test_another_patch_is_refused_where_it_matters(judged, python):
    for host, version in {"n1": "3.10.12", "n2": "3.10.6", "n3": "3.10.12"}.items():
        judged[host].update(python=python, python_version=version)
    assert f"python_env_python is '{python}', and that is Python 3.10.6 on n2; 3.10.12 on n1, n3; " in judged.refusal()
    judged.stages = {"versions"}
    assert "3.10.6 on n2" in judged.refusal()
    judged.stages = {"docker"}
    assert judged.judge() == ([], [])
    judged.stages = {"python_env"}
    for host in judged.nodes:
        judged[host].update(python="/usr/bin/python3", python_version="3.10.12")
    # This one did not answer: it may be the same.
    judged["n2"]["python_version"] = "3.10"
    assert judged.judge() == ([], [])


def test_a_python_that_is_neither_path_nor_version_is_refused(judged):
    judged["n1"].update(python="python3", python_version="")
    judged["n2"].update(python="python3", python_version="")
    text = judged.refusal()
    assert text.startswith(
        "n1, n2: python_env_python is 'python3': allowed is an absolute path, or a version such as '3.12.16'"
    )


@pytest.mark.parametrize(
    ("head", "python", "verdict"),
    [
        ("# Ray and torch: Linux, CPython 3.11 and newer\n", "3.13", ""),
        ("# Ray and torch: Linux, CPython 3.12 and newer\n", "3.11", "refused"),
        ("# Ray and torch for CPUs: Linux x86_64, CPython 3.11; its torch is in no index\n", "3.13", "warned"),
        ("#    uv pip compile --generate-hashes --python-version 3.12 x.in\n", "3.9", "refused"),
        ("#    uv pip compile --universal --python-version=3.12 x.in\n", "3.13", ""),
        ("six==1.0\n# CPython 3.99\n" * 300, "3.11", "refused"),
        ("six==1.0\n", "3.11", ""),
        ("# Linux, CPython 3.11\n", "3.11.2", ""),
        ("# Linux, CPython 3.11\n", "3.12.1", "warned"),
    ],
)
def test_a_lock_that_says_for_which_python_it_is(judged, tmp_path, head, python, verdict):
    lock = tmp_path / "lock.txt"
    lock.write_text(head)
    judged.lock = str(lock)
    for host in judged.nodes:
        judged[host]["python_version"] = python
    refusals, warnings = judged.judge()
    assert (len(refusals), len(warnings)) == (int(verdict == "refused"), int(verdict == "warned"))
    if verdict:
        text = (refusals + warnings)[0]
        assert (
            text.startswith(f"n1, n2, n3: python_env_lock is '{lock}', made for Python 3.")
            and "or set python_env_python" in text
        )


def test_noexec(judged):
    judged.disks("n2", "/tmp", device=2, noexec=True)
    text = judged.refusal()
    assert text.startswith("n2: /tmp is mounted noexec") and "mount -o remount,exec /tmp" in text
    judged.disks("n2", "/tmp", noexec=False)
    judged.disks("n2", "/opt/metalray", noexec=True)
    assert "n2: /opt/metalray lies on a file system that is mounted noexec" in judged.refusal()
    judged.disks("n2", "/opt/metalray", noexec=False)
    judged["n2"]["tmpdir"] = "/scratch"
    judged["n2"]["disks"]["/scratch"] = {**judged["n2"]["disks"]["/tmp"], "noexec": True}
    assert "/scratch (TMPDIR in network_env_extra) is mounted noexec" in judged.refusal()


def test_a_read_only_disk_is_refused_once(judged):
    judged.disks("n1", read_only=True, free_bytes=0)
    text = judged.refusal()
    assert text.startswith("n1: the file system of /, /etc, /usr, /var, /tmp, /opt/metalray is mounted read-only")
    assert "mount -o remount,rw /" in text


def test_room_for_all_stages_that_share_a_disk(judged):
    judged.disks("n1", free_bytes=int(10.5 * GIB))
    text = judged.refusal()
    assert text.startswith(
        "n1: 10.5 GiB are free, 10.8 GiB are needed: 0.5 GiB for packages below /usr; 0.2 GiB for packages below"
    )
    assert "10.0 GiB for the environment (python_env_min_free_bytes) below /opt/metalray" in text
    assert "set python_env_root to another disk" in text
    # Each on its own disk it fits.
    judged.disks("n1", "/opt/metalray", device=2, free_bytes=10 * GIB)
    assert judged.judge() == ([], [])


@pytest.mark.parametrize("why", ["built", "installed", "left out"])
def test_room_is_asked_for_what_is_still_to_do_only(judged, why):
    judged.disks("n1", free_bytes=GIB if why == "built" else GIB // 4)
    if why == "left out":
        judged.stages = set()
    else:
        judged.nodes["n1"]["environment_path"] = "/opt/metalray/venvs/x"
        judged["n1"]["engine"] = why == "installed"
    assert judged.judge() == ([], [])
    judged.disks("n1", "/etc", device=3, free_bytes=2**20)
    text = judged.refusal()
    assert text.startswith(
        "n1: 1 MiB are free, 64 MiB are needed: 64 MiB for what every stage writes below /etc. Make room there"
    )


def test_inodes(judged):
    judged.disks("n1", free_inodes=None)
    judged.disks("n2", free_inodes=60_000)
    text = judged.refusal()
    assert text.startswith("n2: 60000 inodes are free, 71000 inodes are needed")


# --- a real play -------------------------------------------------------------------------------------------------

SUDO = {
    "nosudoers": "debian is not in the sudoers file.",
    "password": "sudo: a password is required",
    "again": "sudo: a password is required",
    "tty": "sudo: sorry, you must have a tty to run sudo",
}


def play(tmp_path: Path, **hosts: dict) -> subprocess.CompletedProcess:
    """Preflight's own tasks over nodes that all are this machine, each with its own trouble."""
    inventory = {
        "cluster": {
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "children": {"head": {"hosts": {"n0": {}}}, "workers": {"hosts": hosts}},
        }
    }
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    preflight = {"ansible.builtin.import_tasks": str(REPOSITORY / "playbooks/tasks/preflight.yml")}
    change = {"ansible.builtin.file": {"path": str(tmp_path / "changed"), "state": "touch"}}
    (tmp_path / "play.yml").write_text(
        json.dumps([{"hosts": "cluster", "gather_facts": False, "tasks": [preflight, change]}])
    )
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml"],
        cwd=tmp_path,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_BECOME_ALLOW_SAME_USER": "1",
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_all_nodes_that_cannot_be_read_are_told_at_once_and_nothing_is_changed(tmp_path):
    hosts = {}
    for name, said in SUDO.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        stub.chmod(0o755)
        hosts[name] = {"ansible_become_exe": str(stub)}
    hosts["nosudo"] = {"ansible_become_exe": str(tmp_path / "no/sudo")}
    hosts["nopython"] = {"ansible_python_interpreter": "/no/python3"}
    hosts["nohome"] = {"ansible_remote_tmp": "/proc/no", "ansible_pipelining": False}
    done = play(tmp_path, **hosts)
    assert done.returncode != 0 and not (tmp_path / "changed").exists()
    assert done.stdout.count("fatal: ") == 1, done.stdout
    text = done.stdout
    assert "Nothing was changed. " in text
    assert "- nosudoers: the account '" in text and "usermod -aG sudo" in text
    assert "- password, again: sudo asks for the password of the account" in text and "--ask-become-pass (-K)" in text
    assert "- tty: sudo wants a terminal (requiretty)" in text
    assert "- nosudo: sudo is not installed" in text
    assert "- nopython: there is no Python where Ansible looks for it" in text
    assert "- nohome: the account '" in text and "cannot write where Ansible puts its files" in text


@pytest.mark.parametrize(("seconds", "words"), [(300, "ahead of"), (-300, "behind")])
def test_a_node_with_another_time_is_measured_against_the_controller(tmp_path, seconds, words):
    other = f"import time\nreal = time.time\ntime.time = lambda: real() + {seconds}\n"
    (tmp_path / "sitecustomize.py").write_text(other)
    late = tmp_path / "python3"
    late.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    late.chmod(0o755)
    done = play(tmp_path, late={"ansible_python_interpreter": str(late)})
    assert done.returncode != 0 and not (tmp_path / "changed").exists()
    assert re.search(rf"- late: the clock is (29\d|30\d) s {words} that of this controller", done.stdout), done.stdout
    assert "n0: the clock" not in done.stdout


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Incorrect sudo password", "did not accept the password that Ansible was given for the account 'debian'"),
        ("Missing sudo password", "sudo asks for the password of the account 'debian'"),
        ("sudo: a terminal is required to read the password; either use", "asks for the password"),
        ("Sorry, user debian is not allowed to execute '/bin/sh' as root on n1.", "may not become root by sudo"),
        ("sudo: account validation failure, is your account locked?", "it is locked"),
        ("Timeout (12s) waiting for privilege escalation prompt: ", "did not answer in time"),
        ("ansible-core requires a minimum of Python version 3.9. Current version: 3.8.10", "too old for this Ansible"),
        ("mkdir: cannot create directory '/home/debian': No space left on device", "its disk is full"),
        ("OSError: [Errno 30] Read-only file system: '/root/.ansible'", "cannot write where Ansible puts its files"),
        ("a plain\nsurprise", "it cannot be read: 'a plain surprise'. Run 'ansible NODE"),
    ],
)
def test_causes_in_words(said, words):
    text = explain_failure(said, "debian", "sudo")
    assert words in text and "{" not in text


def test_a_lost_connection_is_no_answer():
    assert was_reached("Timeout (12s) waiting for privilege escalation prompt: ")
    assert not was_reached("Failed to connect to the host via ssh: debian@n1: Permission denied (publickey,password).")
    assert not was_reached("Data could not be sent to remote host")


@pytest.mark.parametrize(
    ("wanted", "left_out", "takes_part"),
    [
        (["all"], [], True),
        (["docker", "ray"], [], True),
        (["ray"], [], False),
        (["all"], ["docker"], False),
        (["tagged"], [], True),
    ],
)
def test_which_stages_take_part(wanted, left_out, takes_part):
    assert runs("docker", {"ansible_run_tags": wanted, "ansible_skip_tags": left_out}) is takes_part


def test_an_unreachable_node_is_as_before(tmp_path):
    done = play(tmp_path, gone={"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1})
    assert "gone" in done.stdout and "UNREACHABLE" in done.stdout and "gone: it cannot be read" not in done.stdout
