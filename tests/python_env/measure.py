# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A first installation on all nodes: by the wheelhouse, and by pip in each node's own virtual environment.

Run it from a checkout whose sandbox is up::

    METALRAY_SANDBOX=NAME python3 tests/python_env/measure.py LOCK

Every round does both from nothing, in turn, so that what changes on the machines meets both: no cache, no uv, no wheelhouse. The
first is a whole run of the stage, with all that it checks; the second is pip alone, on all nodes at once. Prints a JSON object:
for each the median of the rounds in seconds, their ratio, and what a second run of the stage takes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "molecule" / "sandbox"))

from sandbox import NODES, Run, on, site  # noqa: E402

ROOT = "/opt/measured"


def timed(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def everywhere(command: str) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: on(node, command), NODES))


def forget() -> None:
    everywhere(f"sudo rm -rf {ROOT} /root/.cache/pip")
    on(NODES[0], "sudo rm -rf /mnt/shared/measured")


def stage(extra: dict[str, object]) -> None:
    run: Run = site("--tags", "python_env", "-e", json.dumps(extra))
    if run.status:
        raise SystemExit(run.text[-4000:])


def pip(lock: Path) -> None:
    """As a guide would say it: a virtual environment, and pip with what lies beside the index."""
    text = lock.read_text(encoding="utf-8")
    options = "--quiet --disable-pip-version-check --require-hashes --no-cache-dir --find-links /opt/wheels"
    everywhere(
        f"sudo mkdir -p {ROOT} && sudo tee {ROOT}/lock.txt > /dev/null <<'END'\n{text}\nEND\n"
        f"sudo python3 -m venv {ROOT}/venv && "
        f"sudo PIP_CERT=/etc/ssl/certs/ca-certificates.crt {ROOT}/venv/bin/pip install {options} -r {ROOT}/lock.txt"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--extra", type=json.loads, default={}, help="variables for the stage, in JSON")
    asked = parser.parse_args()
    extra = {
        **{"python_env_profile": "custom", "python_env_lock": str(asked.lock.resolve())},
        **{"python_env_root": ROOT, "python_env_venv": f"{ROOT}/venv", "python_env_wheelhouse": "/mnt/shared/measured"},
        **asked.extra,
    }
    seconds: dict[str, list[float]] = {"wheelhouse": [], "second run": [], "pip": []}
    for _round in range(asked.rounds):
        forget()
        seconds["wheelhouse"].append(timed(lambda: stage(extra)))
        seconds["second run"].append(timed(lambda: stage(extra)))
        forget()
        seconds["pip"].append(timed(lambda: pip(asked.lock)))
    forget()
    result = {name: round(statistics.median(values), 1) for name, values in seconds.items()}
    print(json.dumps({**result, "ratio": round(result["pip"] / result["wheelhouse"], 2)}, indent=1))


if __name__ == "__main__":
    main()
