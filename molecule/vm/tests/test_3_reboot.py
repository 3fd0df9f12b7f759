# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The morning after: nobody touches a node, and everything is back. The times are printed, not judged."""

from __future__ import annotations

import time

import pytest
from guests import (
    NODES,
    SHARED,
    cut_power,
    incomplete,
    met_by_a_stranger,
    on,
    reboot,
    ssh,
    switch_on,
    unreachable,
    wait_for,
)
from sandbox import site


@pytest.fixture
def say(capsys):
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")

    return say


def test_a_worker_reboots(say):
    begun = time.monotonic()
    reboot("node2")
    wait_for("a complete cluster", incomplete)
    say(f"worker rebooted: complete after {time.monotonic() - begun:.0f} s")


def test_a_worker_boots_while_the_head_is_dead_and_the_head_returns(say):
    cut_power("node1")
    begun = time.monotonic()
    reboot("node2")
    say(f"worker rebooted without its head: login after {time.monotonic() - begun:.0f} s")
    # A look at the share ends, with an error, and a login does not need it.
    begun = time.monotonic()
    assert ssh("node2", f"timeout 120 ls {SHARED}", timeout=150).returncode not in (0, 124)
    say(f"a look at the share gave up after {time.monotonic() - begun:.0f} s")

    begun = time.monotonic()
    switch_on("node1")
    wait_for("a complete cluster", incomplete)
    say(f"head switched on: complete after {time.monotonic() - begun:.0f} s")


def test_what_waits_for_the_share_goes_on_when_the_server_returns():
    """A hard mount: a job that writes while the head reboots loses nothing."""
    on("node2", f"nohup sh -c 'for i in $(seq 1 200); do echo $i; sleep 0.5; done >{SHARED}/lines' >/dev/null 2>&1 & :")
    reboot("node1")
    wait_for("all lines", lambda: "" if on("node1", f"cat {SHARED}/lines").split()[-1:] == ["200"] else "not all lines")
    assert on("node1", f"cat {SHARED}/lines").split() == [str(number) for number in range(1, 201)]
    on("node1", f"rm {SHARED}/lines")
    wait_for("a complete cluster", incomplete)


def test_all_lose_power_at_once(say):
    cut_power(*NODES)
    begun = time.monotonic()
    switch_on(*NODES)
    for node in NODES:
        wait_for(f"a login on {node}", lambda node=node: unreachable(node))
    say(f"all switched on: logins after {time.monotonic() - begun:.0f} s")
    wait_for("a complete cluster", incomplete)
    say(f"all switched on: complete after {time.monotonic() - begun:.0f} s")
    trained = site("--tags", "training,summary", "-e", "training_force=true")
    assert trained.status == 0, trained.text[-4000:]
    assert "SUCCEEDED" in trained.text, trained.text[-4000:]


@pytest.mark.parametrize("node", NODES)
def test_the_rules_are_in_force_after_it(stranger, node):
    assert met_by_a_stranger(node) == ""
