# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scenarios' tests share: the sandbox's nodes, and the site playbook as its users run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
INVENTORY = PROJECT / "inventories" / os.environ.get("METALRAY_INVENTORY", "sandbox")
NAME = os.environ.get("METALRAY_SANDBOX", "test")
NODES = ("node1", "node2", "node3")
_SSH = ["ssh", "-F", str(PROJECT / ".sandbox" / NAME / "ssh_config")]


@dataclass(frozen=True)
class Run:
    """A finished run: its status, what it printed, and the recap by host."""

    status: int
    text: str
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        return sum(counts["changed"] for counts in self.recap.values())

    @property
    def said(self) -> str:
        """What it printed, without the line breaks of a long message."""
        return " ".join(self.text.split())


def users_environment(**more: str) -> dict[str, str]:
    """The environment of a run by hand: without what Molecule sets, and without colours, which the recap would be read with."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("ANSIBLE_CONFIG", "ANSIBLE_COLLECTIONS_PATH")}
    return {**inherited, "METALRAY_SANDBOX": NAME, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", **more}


class Running:
    """A playbook that runs while the test does something else. What it prints has to fit into a pipe meanwhile."""

    def __init__(
        self, arguments: tuple[str, ...], cwd: Path, playbook: str, inventory: Path, **environment: str
    ) -> None:
        self._text = ""
        self._process = subprocess.Popen(
            ["ansible-playbook", "-i", str(inventory), playbook, *arguments],
            cwd=cwd, env=users_environment(**environment), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, pattern: str) -> re.Match:
        """Wait for a line that has it."""
        for line in self._process.stdout:
            self._text += line
            found = re.search(pattern, line)
            if found:
                return found
        raise AssertionError(f"it ended without {pattern}:\n{self.end().text[-4000:]}")

    def end(self) -> Run:
        self._text += self._process.communicate()[0]
        recap = {
            host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
            for host, counts in re.findall(r"^(node\d)\s+: (.*)$", self._text, re.MULTILINE)
        }
        return Run(self._process.returncode, self._text, recap)


def start(
    *arguments: str, cwd: Path = PROJECT, playbook: str = "site.yml", inventory: Path = INVENTORY, **environment: str
) -> Running:
    return Running(arguments, cwd, playbook, inventory, **environment)


def site(*arguments: str, **options: Any) -> Run:
    """The whole of a playbook; options as for ``start``."""
    return start(*arguments, **options).end()


def on(node: str, command: str) -> str:
    """What a command prints on a node."""
    return subprocess.run(
        [*_SSH, node, command], check=True, capture_output=True, text=True, timeout=300
    ).stdout.strip()


def power(node: str, state: str) -> None:
    """Shut a node down (``stopped``), cut its power (``cut``) or let it boot (``started``)."""
    how = "state=stopped force_kill=true" if state == "cut" else f"state={state}"
    options = f"name=metalray-{NAME}-{node} {how} container_default_behavior=no_defaults"
    subprocess.run(
        ["ansible", "localhost", "-m", "community.docker.docker_container", "-a", options,
         "-e", f"ansible_python_interpreter={sys.executable}"],
        cwd=PROJECT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def fingerprints() -> dict[str, str]:
    """What a run that changes nothing must leave as it is."""
    look = "sudo find /etc /opt -xdev ! -type d ! -name '*.pyc' -printf '%p %T@ %s %m %u\\n' | sort | sha256sum"
    return {node: on(node, look) for node in NODES}


def assert_unchanged(run: Run) -> None:
    assert run.status == 0, run.text[-6000:]
    assert set(run.recap) == set(NODES)
    assert run.changed == 0, run.text
