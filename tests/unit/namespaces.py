# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces, so that tests ask a real kernel about interfaces that this machine does not have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
_PROBE = f"mrns-probe-{os.getpid()}"

# Nothing is left out unseen: for root, who can run them, tests/run.py counts a skipped test as failed.
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0
    or not shutil.which("ip")
    or subprocess.run(["ip", "netns", "add", _PROBE], capture_output=True, check=False).returncode != 0
    or subprocess.run(["ip", "netns", "del", _PROBE], capture_output=True, check=False).returncode != 0,
    reason="needs root and network namespaces",
)


# A tool in the directory given wins over the system's.
_MODULE = """
import os, runpy, sys
from ansible.module_utils.basic import AnsibleModule
name, tools = sys.argv[1:]
system = AnsibleModule.get_bin_path
def get_bin_path(self, tool, *args, **more):
    own = os.path.join(tools, tool)
    return own if os.path.exists(own) else system(self, tool, *args, **more)
AnsibleModule.get_bin_path = get_bin_path
sys.argv[1:] = []
runpy.run_module(f"ansible_collections.metalray.cluster.plugins.modules.{name}", run_name="__main__", alter_sys=True)
"""


class Namespace:
    """One namespace. Interfaces come in pairs, both ends inside, so that both have a carrier."""

    def __init__(self, tools: Path) -> None:
        self.name = f"mrns-{os.getpid()}"
        self.tools = tools
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.batch("link set lo up")

    def batch(self, *commands: str) -> None:
        """Commands of ip, one a line."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def pair(self, one: str, other: str, *addresses: str) -> None:
        """A pair of interfaces that are up; the first one has ``addresses``."""
        self.batch(
            f"link add {one} type veth peer name {other}",
            f"link set {one} up",
            f"link set {other} up",
            *(f"addr add {address} dev {one}{' nodad' if ':' in address else ''}" for address in addresses),
        )

    def python(self, code: str, *arguments: str, stdin: str = "") -> str:
        """What a Python program prints that runs inside and finds the collection."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=COLLECTIONS, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def module(self, name: str, **options: Any) -> dict[str, Any]:
        return json.loads(
            self.python(_MODULE, name, str(self.tools), stdin=json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        )

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False)
