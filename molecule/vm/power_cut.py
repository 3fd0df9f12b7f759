# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs of the site in which the power fails: the head's in mid-installation, then a worker's in mid-build.

Each node is switched on again as the cut left it: the next run has to converge. Needs ``molecule/sandbox`` on PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys

from guests import PATIENCE, STATE, cut_power, ssh, switch_on, unreachable, wait_for
from sandbox import INVENTORY, PROJECT

# What must be going on when the plug is pulled.
_CONFIGURES = "tail -n 1 /var/log/dpkg.log | grep -q 'half-configured nfs-kernel-server'"
_INSTALLS = "pgrep -f 'uv pip sync'"


def at_work(node: str, command: str, run: subprocess.Popen[bytes]) -> str:
    if run.poll() is not None:
        raise SystemExit(f"the run ended too early, see {STATE}/power_cut_{node}.log")
    return "" if ssh(node, command).returncode == 0 else "not yet"


def run_and_cut(node: str, command: str) -> None:
    with (STATE / f"power_cut_{node}.log").open("wb") as log:
        run = subprocess.Popen(
            ["ansible-playbook", "-i", INVENTORY, "site.yml"],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"{node} to be busy", lambda: at_work(node, command, run), 2 * PATIENCE)
            cut_power(node)
            print(f"{node}: no power while {command!r} held", flush=True)
            # What does not need the node goes on, as it would for anybody.
            status = run.wait(2 * PATIENCE)
        finally:
            run.kill()
    if status == 0:
        sys.exit(f"the run did not notice that {node} had lost its power")
    switch_on(node)
    wait_for(f"{node} to boot", lambda: unreachable(node))


if __name__ == "__main__":
    run_and_cut("node1", _CONFIGURES)
    run_and_cut("node2", _INSTALLS)
