# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of the site in which the head's power fails, in the middle of the installation of a package.

It is switched on again as the cut left it: the next run has to converge. Needs ``molecule/sandbox`` on PYTHONPATH.
"""

from __future__ import annotations

import os
import subprocess
import sys

from guests import PATIENCE, STATE, cut_power, ssh, switch_on, unreachable, wait_for
from sandbox import INVENTORY, PROJECT

_NODE = "node1"
_LOG = STATE / "power_cut.log"
# What must be going on when the plug is pulled.
_CONFIGURES = "tail -n 1 /var/log/dpkg.log | grep -q 'half-configured nfs-kernel-server'"


def at_work(run: subprocess.Popen[bytes]) -> str:
    if run.poll() is not None:
        raise SystemExit(f"the run ended too early, see {_LOG}")
    return "" if ssh(_NODE, _CONFIGURES).returncode == 0 else "not yet"


def _environment() -> dict[str, str]:
    """Ansible's, and a connection that notices after seconds, not after a minute, that nobody is there."""
    quick = "-o ControlMaster=auto -o ControlPersist=300s -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
    return {**os.environ, "ANSIBLE_SSH_ARGS": quick}


def main() -> None:
    with _LOG.open("wb") as log:
        run = subprocess.Popen(
            ["ansible-playbook", "-i", INVENTORY, "site.yml"],
            cwd=PROJECT, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"{_NODE} to be busy", lambda: at_work(run), 2 * PATIENCE)
            cut_power(_NODE)
            status = run.wait(PATIENCE)
        finally:
            run.kill()
    if status == 0 or b"UNREACHABLE" not in _LOG.read_bytes():
        sys.exit(f"the run did not notice that {_NODE} had lost its power, see {_LOG}")
    switch_on(_NODE)
    wait_for(f"{_NODE} to boot", lambda: unreachable(_NODE))


if __name__ == "__main__":
    main()
