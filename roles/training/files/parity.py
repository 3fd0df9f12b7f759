# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""First step of a training job: all nodes of the Ray cluster have the same versions now, or the job ends here.

The stage ``versions`` looks before the job is submitted; since then a node may have been changed, or the job is started
from elsewhere. Each node is read by a Ray task of its own, by the same rules as the stage. Ends with 78 where nodes differ.

By hand, on a node of a running cluster: ``/opt/metalray/venv/bin/python /mnt/shared/jobs/metalray_parity``. The role
puts it there as a directory that is a program, with the modules that it needs beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The directory is a package, too: what is beside this file imports by the names that it has in the collection.
sys.path[0] = str(HERE.parent)
from metalray_parity import _parity  # noqa: E402

DIFFER = 78
# For the start of a Ray worker on a slow or busy node.
START_SECONDS = 120
MODULES = ("__init__.py", "_bounded.py", "_versions.py")


def read_here(texts: dict[str, str], seconds: float) -> dict[str, Any]:
    """Runs on each node, in a Ray worker: the versions of the environment that the worker runs from.

    A fresh interpreter reads them, since a process with Ray's threads must not fork; and it brings its own modules, since
    the shared directory may be away.
    """
    import json
    import os
    import subprocess
    import sys
    import tempfile

    code = (
        "import sys, json, pathlib; sys.path.insert(0, sys.argv[1]); from metalray_parity import _versions as v; "
        "print(json.dumps(v.read_bounded(pathlib.Path(sys.argv[2]), float(sys.argv[3]))))"
    )
    with tempfile.TemporaryDirectory(prefix="metalray-parity-") as directory:
        os.mkdir(f"{directory}/metalray_parity")
        for name, text in texts.items():
            with open(f"{directory}/metalray_parity/{name}", "w", encoding="utf-8") as handle:
                handle.write(text)
        command = [sys.executable, "-I", "-S", "-B", "-c", code, directory, sys.prefix, str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=seconds + 10, check=False)
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(done.stdout) or {"problem": f"there is no environment at {sys.prefix}"}


def gather(seconds: float) -> dict[tuple[str, str], dict[str, Any]]:
    """What each living node of the cluster answers, by its address and host name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    texts = {name: (HERE / name).read_text(encoding="utf-8") for name in MODULES}
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        # No CPU asked for: it starts beside a job that has them all.
        read = ray.remote(num_cpus=0, max_retries=0)(read_here)
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = read.options(scheduling_strategy=here).remote(texts, seconds)
                asked[answer] = (node["NodeManagerAddress"], node["NodeManagerHostname"])
        done, _late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds + START_SECONDS)
        answers = {
            node: {"problem": f"no answer within {seconds + START_SECONDS:g} seconds"} for node in asked.values()
        }
        for answer in done:
            try:
                answers[asked[answer]] = ray.get(answer)
            except Exception as error:  # noqa: BLE001 - the node's problem is told, whatever it is
                answers[asked[answer]] = {"problem": (str(error).strip().splitlines() or [repr(error)])[-1][:300]}
        return answers
    finally:
        ray.shutdown()


def named(answers: Mapping[tuple[str, str], dict[str, Any]], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The answers by the inventory's names, in its order; a node that it does not know by its own name."""
    known = {names.get(address, host): answer for (address, host), answer in answers.items()}
    order = [name for name in names.values() if name in known]
    return {name: known[name] for name in [*order, *sorted(known.keys() - set(order))]}


def judge(answers: Mapping[str, dict[str, Any]], head: str) -> tuple[int, str, str]:
    """The status to end with, what to print, and the message in one line; ``head`` decides where none is in the majority."""
    silent = {name: answer["problem"] for name, answer in answers.items() if "problem" in answer}
    if silent:
        told = "; ".join(f"{name}: {problem}" for name, problem in silent.items())
        message = f"The versions of {_parity.abbreviated(silent)} cannot be read ({told})"
        return 1, message, message
    comparison = _parity.compare(answers, reference=head)
    notes = [f"Warning: {text}" for text in _parity.warnings(comparison)]
    if comparison.strict:
        mends = "".join(f". Mend: {mend}" for mend in _parity.mends(comparison)[:1])
        return DIFFER, "\n".join([*notes, _parity.failure(comparison)]), f"{_parity.summary(comparison)}{mends}"
    return 0, "\n".join([*notes, f"{len(answers)} nodes have the same versions"]), ""


def leave_result(message: str) -> None:
    """Put the message where the job's result is expected, unless a run that succeeded has left its own there."""
    path = os.environ.get("METALRAY_RESULT_FILE")
    if not path:
        return
    try:
        if json.loads(Path(path).read_text(encoding="utf-8")).get("status") == "SUCCEEDED":
            return
    except (OSError, ValueError, AttributeError):
        pass
    result = {
        "submission_id": os.environ.get("METALRAY_SUBMISSION_ID", ""),
        "status": "FAILED",
        "message": message,
    }
    aside = f"{path}.{os.getpid()}"
    try:
        Path(aside).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror})", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="metalray_parity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="time for each node's answer")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        nodes = json.loads((HERE / "nodes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        nodes = {}
    names = nodes.get("nodes", {})
    try:
        answers = named(gather(options.seconds), names)
    except Exception as error:  # noqa: BLE001 - one line instead of Ray's frames
        message = f"The versions of the nodes cannot be compared: Ray says '{(str(error).strip().splitlines() or [repr(error)])[-1]}'"
        status, text = 1, message
    else:
        status, text, message = judge(answers, nodes.get("head", ""))
    if status:
        leave_result(message)
    print(f"{text} ({time.monotonic() - begun:.1f} s)" if not status else text, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
