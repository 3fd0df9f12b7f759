# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The comparison that a job begins with, as the role puts it on the shared directory, over real environments.

A stand-in takes Ray's place: it runs each node's task in its turn, with that node's environment as the prefix. The real
Ray runs it in the scenario 'default'.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import environments
import pytest
import yaml
from ansible_collections.metalray.cluster.plugins.module_utils import _job_failures

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "training"

STAND_IN = """
import json, os, sys

def nodes():
    return json.loads(os.environ["RAY_STAND_IN"])

def init(**_options):
    if not nodes():
        raise ConnectionError("Could not find any running Ray instance.\\nSecond line")

def shutdown():
    pass

class remote:
    def __init__(self, **options):
        self.made = options

    def __call__(self, function):
        self.function = function
        return self

    def options(self, scheduling_strategy):
        self.node = scheduling_strategy
        return self

    def remote(self, *arguments):
        prefix = {node["NodeID"]: node["prefix"] for node in nodes()}[self.node]
        sys.prefix, before = prefix, sys.prefix
        try:
            return Answer(self.function(*arguments))
        finally:
            sys.prefix = before

class Answer:
    def __init__(self, value):
        self.value = value

def wait(answers, num_returns, timeout):
    return answers, []

def get(answer):
    return answer.value
"""


class Cluster:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = path / "jobs"
        program = self.jobs / "metalray_parity"
        program.mkdir(parents=True)
        self.nodes = {f"10.0.0.{number}": path / f"gpu{number}" for number in (1, 2, 3)}
        names = {address: environment.name for address, environment in self.nodes.items()}
        # As the role does, which the test below compares.
        (program / "__init__.py").touch()
        (program / "__main__.py").write_text((ROLE / "files/parity.py").read_text())
        for module in ("_bounded", "_parity", "_versions"):
            (program / f"{module}.py").write_text((ROOT / f"plugins/module_utils/{module}.py").read_text())
        (program / "nodes.json").write_text(json.dumps({"head": "gpu1", "nodes": names}))
        stand_in = path / "stand-in" / "ray"
        (stand_in / "util").mkdir(parents=True)
        (stand_in / "__init__.py").write_text(STAND_IN)
        (stand_in / "util" / "__init__.py").touch()
        strategy = "def NodeAffinitySchedulingStrategy(node, soft):\n    assert not soft\n    return node\n"
        (stand_in / "util" / "scheduling_strategies.py").write_text(strategy)
        first = environments.make(path / "gpu1")
        environments.install(first, environments.wheel(path / "wheels", "click", "8.1.8"))
        for other in (path / "gpu2", path / "gpu3"):
            environments.copy(first, other)

    def edit(self, node: str) -> None:
        (part,) = (self.path / node).glob("lib/*/site-packages/click/part.py")
        part.write_text("one = 2\n")

    def run(self, alive: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        known = [
            {
                "NodeID": address,
                "NodeManagerAddress": address,
                "NodeManagerHostname": "host",
                "Alive": True,
                "prefix": str(at),
            }
            for address, at in self.nodes.items()
        ]
        dead = {**known[0], "NodeID": "dead", "Alive": False, "prefix": "/nowhere"}
        return subprocess.run(
            [sys.executable, self.jobs / "metalray_parity"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={
                **os.environ,
                "PYTHONPATH": str(self.path / "stand-in"),
                "RAY_STAND_IN": json.dumps([*known, dead] if alive else []),
                **environment,
            },
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_equal_nodes_let_the_job_go_on(cluster: Cluster) -> None:
    done = cluster.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 nodes have the same versions (")


def test_a_node_that_was_changed_since_ends_the_job_by_name(cluster: Cluster) -> None:
    cluster.edit("gpu2")
    result = cluster.path / "result.json"
    done = cluster.run(METALRAY_RESULT_FILE=str(result), METALRAY_SUBMISSION_ID="smoke-1.2")
    assert (done.returncode, done.stderr) == (78, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("version mismatch: gpu2 of 3 nodes differs from the rest in click;")
    assert "  edited on gpu2: click/part.py" in lines
    assert lines[-1].startswith("Mend: ") and lines[-1].endswith("--tags python_env,ray --limit gpu2")
    # What the user reads is the job's last lines, and its cause by them.
    assert len(lines) < 25
    finding = _job_failures.classify(lines, ["Job entrypoint command failed with exit code 78"])
    assert finding is not None and finding.cause.name == "nodes_differ" and finding.evidence == lines[0]
    told = json.loads(result.read_text())
    assert (told["submission_id"], told["status"]) == ("smoke-1.2", "FAILED")
    assert told["message"].startswith("version mismatch: gpu2 of 3 nodes") and "\n" not in told["message"]


def test_the_result_of_a_run_that_succeeded_is_left_alone(cluster: Cluster) -> None:
    """A forced run would otherwise take it for one that was cut off, and resume from its end."""
    cluster.edit("gpu2")
    result = cluster.path / "result.json"
    result.write_text('{"status": "SUCCEEDED"}')
    assert cluster.run(METALRAY_RESULT_FILE=str(result)).returncode == 78
    assert json.loads(result.read_text()) == {"status": "SUCCEEDED"}


def test_a_node_that_cannot_be_read_is_no_mismatch(cluster: Cluster) -> None:
    cluster.nodes["10.0.0.3"] = cluster.path / "gone"
    done = cluster.run()
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("The versions of gpu3 cannot be read (gpu3: there is no environment at")
    assert "mismatch" not in done.stdout


def test_without_ray_there_is_one_line(cluster: Cluster) -> None:
    done = cluster.run(alive=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(done.stdout.splitlines()) == 1 and "Second line" in done.stdout


def test_a_node_that_the_inventory_does_not_know_has_its_own_name(cluster: Cluster) -> None:
    (cluster.jobs / "metalray_parity" / "nodes.json").unlink()
    cluster.nodes = {"10.0.0.1": cluster.nodes["10.0.0.1"], "10.0.0.9": cluster.path / "gone"}
    assert "The versions of host cannot be read" in cluster.run().stdout


def test_the_role_ships_what_the_program_imports() -> None:
    (task,) = yaml.safe_load((ROLE / "tasks/parity.yml").read_text(encoding="utf-8"))
    shipped = {Path(item["path"]).name for item in task["metalray.cluster.node_files"]["files"]}
    assert shipped >= {"__init__.py", "__main__.py", "_bounded.py", "_parity.py", "_versions.py", "nodes.json"}
