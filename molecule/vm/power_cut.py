# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A first run of the site in which the power fails, on one node in mid-installation, on the other in mid-build.

Leaves both nodes switched on again, as the cut left them: the scenario's next run has to converge. Needs
``molecule/sandbox`` on PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys

from guests import PATIENCE, STATE, cut_power, ssh, switch_on, unreachable, wait_for
from sandbox import INVENTORY, PROJECT

# What must be going on when the plug is pulled.
_CONFIGURES = "tail -n 1 /var/log/dpkg.log | grep -q 'half-configured nfs-common'"
_INSTALLS = "pgrep -f 'uv pip sync'"


def at_work(node: str, command: str, run: subprocess.Popen[bytes]) -> str:
    if run.poll() is not None:
        raise SystemExit(f"the run ended too early, see {STATE / 'power_cut.log'}")
    return "" if ssh(node, command).returncode == 0 else "not yet"


def main() -> None:
    with (STATE / "power_cut.log").open("wb") as log:
        run = subprocess.Popen(
            ["ansible-playbook", "-i", INVENTORY, "site.yml"],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            for node, command in (("node2", _CONFIGURES), ("node1", _INSTALLS)):
                wait_for(
                    f"{node} to be busy", lambda node=node, command=command: at_work(node, command, run), 2 * PATIENCE
                )
                cut_power(node)
                print(f"{node}: no power while {command!r} held", flush=True)
            status = run.wait(PATIENCE)
        finally:
            run.kill()
    if status == 0:
        sys.exit("the run did not notice that the power was cut")
    switch_on("node1", "node2")
    for node in ("node1", "node2"):
        wait_for(f"{node} to boot", lambda node=node: unreachable(node))


if __name__ == "__main__":
    main()
