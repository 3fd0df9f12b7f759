# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as they are found: each fault is really there, and preflight names it, with the mend, before anything is changed."""

from __future__ import annotations

import re
import time

import pytest
from guests import NODES, as_root, incomplete, on, wait_for
from sandbox import site

LOOK = "find /etc /opt -xdev ! -type d ! -name '*.pyc' -printf '%p %T@ %s %m %u\\n' | grep -v '^/etc/hosts ' | sort | sha256sum"


@pytest.fixture
def faults():
    """All of them at once on the worker, and away with them afterwards."""
    before = float(as_root("node2", "date +%s.%N"))
    source = on("node2", "grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list /etc/apt/sources.list.d | head -1")
    mirror = source.split("//")[1]
    as_root(
        "node2",
        # An installation that goes on.
        "systemd-run --quiet --unit=upgrades python3 -c "
        '\'import fcntl, time; f = open("/var/lib/dpkg/lock-frontend", "w"); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(3600)\';'
        "cp -p /etc/hosts /etc/hosts.kept;"
        # As Debian's installer writes it.
        "sed -i '/ node2$/d' /etc/hosts; echo 127.0.1.1 node2 >>/etc/hosts;"
        # An address and a way out, which leads nowhere.
        f"echo 2001:db8::5 {mirror} >>/etc/hosts; echo $(getent ahostsv4 {mirror} | awk '{{print $1; exit}}') {mirror} >>/etc/hosts;"
        "ip -6 address add 2001:db8::2/64 dev ens8 nodad; ip -6 route add default via 2001:db8::1;"
        "mount --bind /tmp /tmp; mount -o remount,bind,noexec /tmp;"
        "fallocate -l $(($(df --output=avail -B1 / | tail -1) - 20000000)) /filler;"
        "date -s '10 minutes' >/dev/null",
    )
    moved = time.monotonic()
    yield
    as_root(
        "node2",
        "systemctl stop upgrades; mv /etc/hosts.kept /etc/hosts; umount /tmp; rm -f /filler;"
        "ip -6 address del 2001:db8::2/64 dev ens8; ip -6 route flush 2001:db8::/64;"
        "date -s '10 minutes ago' >/dev/null",
    )
    # The clock is where it was, and has gone on.
    assert abs(float(as_root("node2", "date +%s.%N")) - before - (time.monotonic() - moved)) < 60
    wait_for("a complete cluster", incomplete)


def test_preflight_names_everything_that_is_wrong_with_a_host(faults):
    before = {node: as_root(node, LOOK) for node in NODES}
    run = site()
    assert run.status != 0 and run.changed == 0
    said = run.said
    for words in (
        "Nothing was changed",
        "node2: /tmp is mounted noexec",
        "are needed",
        "holds /var/lib/dpkg/lock-frontend",
        "the own name leads to the loopback",
        "write on node2 '10.77.253.12 node2'",
        "IPv6 only partly works",
    ):
        assert words in said, (words, run.text[-6000:])
    assert re.search(r"node2: the clock is (59\d|60\d) s ahead of that of this controller", said), run.text[-6000:]
    assert "node1: " not in said.partition("Nothing was changed")[2].partition("PLAY RECAP")[0]
    assert {node: as_root(node, LOOK) for node in NODES} == before


def test_a_password_that_is_missing_or_wrong_is_said_with_the_mend():
    for password, cause in (("", "asks for the password"), ("wrong", "did not accept")):
        run = site("-e", f"ansible_become_password='{password}'")
        assert run.status != 0 and run.changed == 0
        assert cause in run.said and "--ask-become-pass" in run.said, run.text[-4000:]
        assert "Traceback" not in run.text
