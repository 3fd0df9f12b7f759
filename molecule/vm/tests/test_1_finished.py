# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The finished cluster on kernels of its own: the share and the limits."""

from __future__ import annotations

import pytest
from guests import ADDRESSES, NODES, SHARED, as_root, incomplete, on, ssh, wait_for


def test_everything_is_in_force():
    assert incomplete() == ""


def test_sudo_asks_for_a_password():
    """As on many a rented node, and so everything above was done with one."""
    assert ssh("node1", "sudo -n true").returncode != 0


def test_the_share_is_one_and_files_belong_to_the_same_account():
    on("node2", f"echo from-node2 >{SHARED}/written")
    assert on("node1", f"cat {SHARED}/written; stat -c %U {SHARED}/written").split() == ["from-node2", "ops"]
    on("node1", f"rm {SHARED}/written")


def test_root_of_a_worker_is_nobody_on_the_share():
    on("node1", f"install -m 0600 /dev/null {SHARED}/private")
    assert ssh("node2", f"test -r {SHARED}/private").returncode == 0
    with pytest.raises(AssertionError, match="Permission denied"):
        as_root("node2", f"cat {SHARED}/private")
    on("node1", f"rm {SHARED}/private")


def test_the_mount_is_hard_fast_and_of_the_newest_version():
    options = on("node2", f"findmnt --noheadings --output FSTYPE,OPTIONS --types nfs4 {SHARED}").split()
    wanted = {"vers=4.2", "hard", "nconnect=8", "rsize=1048576", "wsize=1048576", "nosuid", "nodev", "noatime"}
    assert options[0] == "nfs4" and wanted <= set(options[1].split(",")), options


def test_the_export_is_for_the_other_node_alone():
    exports = [line for line in as_root("node1", "cat /var/lib/nfs/etab").splitlines() if line.startswith(SHARED)]
    assert len(exports) == 1, exports
    client, _, options = exports[0].split()[1].partition("(")
    assert client == ADDRESSES["node2"]
    assert {"rw", "root_squash", "sync"} <= set(options.rstrip(")").split(","))


def test_ray_s_workers_have_the_limits():
    """The processes that run a job's code, not only the service that begins them."""
    look = (
        "for pid in $(pgrep -f '^ray::'); do "
        "awk '/open files|locked memory/ {print $(NF-2), $(NF-1)}' /proc/$pid/limits; done | sort -u"
    )
    begun = on(
        "node2",
        # A task that stays until its node was looked at.
        "bash -lc 'nohup python -c \"import ray, time; ray.init(log_to_driver=False); "
        'ray.get(ray.remote(scheduling_strategy=\\"SPREAD\\")(lambda: time.sleep(3600)).remote())" '
        ">/tmp/driver.log 2>&1 & echo $!'",
    )
    try:
        wait_for("a worker process", lambda: "" if workers_of_ray() else "no ray:: process on any node")
        for node in workers_of_ray():
            assert as_root(node, look).splitlines() == ["65536 65536", "unlimited unlimited"]
    finally:
        ssh("node2", f"kill {begun}")


def workers_of_ray() -> list[str]:
    return [node for node in NODES if ssh(node, "pgrep -f '^ray::'").returncode == 0]
