# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The morning after: nobody touches a node, and everything is back. The times are printed, not judged."""

from __future__ import annotations

import json
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
    """In order: what uses the share ends before the share, and the share before the network."""
    begun = time.monotonic()
    reboot("node2")
    say(f"worker rebooted: login after {time.monotonic() - begun:.0f} s")
    wait_for("a complete cluster", incomplete)
    say(f"worker rebooted: complete after {time.monotonic() - begun:.0f} s")


def test_the_head_loses_power_and_who_writes_to_the_share_goes_on_when_it_returns(say):
    """A hard mount: a job that writes meanwhile loses nothing."""
    on("node2", f"nohup sh -c 'for i in $(seq 1 200); do echo $i; sleep 0.5; done >{SHARED}/lines' >/dev/null 2>&1 & :")
    wait_for(
        "the first lines", lambda: "" if on("node2", f"cat {SHARED}/lines 2>/dev/null | wc -l") != "0" else "none yet"
    )
    cut_power("node1")
    begun = time.monotonic()
    switch_on("node1")
    wait_for("the head", lambda: unreachable("node1"))
    wanted = [str(number) for number in range(1, 201)]
    wait_for("all lines", lambda: "" if on("node1", f"cat {SHARED}/lines").split() == wanted else "not all lines")
    say(f"head switched on: the writer went on, and had ended after {time.monotonic() - begun:.0f} s")
    on("node1", f"rm {SHARED}/lines")


def attempts(node: str) -> int:
    """How often systemd has started the worker's Ray again since the boot."""
    return int(on(node, "systemctl show --property NRestarts --value metalray-worker"))


def test_all_lose_power_and_the_worker_is_back_before_the_head(say):
    cut_power(*NODES)
    begun = time.monotonic()
    switch_on("node2")
    wait_for("a login", lambda: unreachable("node2"))
    say(f"worker without its head: login after {time.monotonic() - begun:.0f} s")
    begun = time.monotonic()
    assert ssh("node2", f"timeout 120 ls {SHARED}", timeout=150).returncode not in (0, 124)
    say(f"a look at the share gave up after {time.monotonic() - begun:.0f} s")
    wait_for("a second attempt of Ray", lambda: "" if attempts("node2") else "none so far")
    begun = time.monotonic()
    switch_on("node1")
    wait_for("a login", lambda: unreachable("node1"))
    say(f"head switched on: login after {time.monotonic() - begun:.0f} s")
    wait_for("a complete cluster", incomplete)
    say(f"head switched on: complete after {time.monotonic() - begun:.0f} s")


def test_the_stages_that_a_reboot_may_undo_find_nothing_to_do_and_a_job_runs():
    """After all that: nothing but the first job and the place for its result is a change."""
    run = site("--tags", "nfs,limits,firewall,ray,training")
    assert run.status == 0, run.text[-4000:]
    assert {host: counts["changed"] for host, counts in run.recap.items()} == {"node1": 2, "node2": 0}, run.text
    assert "2 tasks, on node1, node2" in run.text
    # The processes that run a job's code, not only the service that begins them.
    result = json.loads(on("node2", f"cat {SHARED}/results/look.json"))
    assert sorted(task["node"] for task in result["tasks"]) == list(NODES)
    for task in result["tasks"]:
        assert task["nofile"] == [65536, 65536] and task["memlock"] == [-1, -1], task


@pytest.mark.parametrize("node", NODES)
def test_the_rules_are_in_force_after_it(stranger, node):
    assert met_by_a_stranger(node) == ""
