# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to compare the versions of many nodes, and to read those of one.

    python tests/benchmarks/version_parity.py [--environment /opt/metalray/venv] [--hosts 200]

The facts are those of a real environment, by default the one that runs this. Beside the comparison of all hosts and its
message it times the least that any comparison has to do, parsing the same facts from JSON; and beside the reading of one
environment its reading by importlib.metadata, which sees names and versions only. All in one process, in turn; the
medians, and their ratio, which says more than seconds of a machine that does other things too.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))
from ansible_collections.metalray.cluster.plugins.module_utils import _parity, _versions  # noqa: E402


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cluster(facts: dict[str, Any], hosts: int) -> dict[str, dict[str, Any]]:
    """As many hosts with these facts, of which some differ: a few in a little, one in everything."""
    found = {f"gpu{number}": copy.deepcopy(facts) for number in range(1, hosts + 1)}
    name = next(iter(facts["packages"]))
    for number in range(7, hosts, 20):
        found[f"gpu{number}"]["packages"][name] = "0.0.1"
    found[f"gpu{hosts}"]["python"] = "3.12.3"
    found[f"gpu{hosts}"]["packages"] = dict.fromkeys(facts["packages"], "0.0.2")
    return found


def environment_packages(environment: Path) -> dict[str, str]:
    path = [str(_versions.site_packages(environment))]
    return {found.metadata["Name"]: found.version for found in importlib.metadata.distributions(path=path)}


def compared(names: tuple[str, str], works: tuple[Callable[[], Any], Callable[[], Any]], rounds: int) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for _round in range(rounds):
        for work, taken in zip(works, times):
            taken.append(timed(work))
    first, second = (statistics.median(taken) for taken in times)
    for name, taken in zip(names, times):
        print(
            f"  {name:<44} {statistics.median(taken) * 1000:8.1f} ms ({min(taken) * 1000:.1f} to {max(taken) * 1000:.1f})"
        )
    print(f"  ratio {first / second:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, default=Path(sys.prefix))
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    facts = _versions.read_bounded(options.environment)
    hosts = cluster(facts, options.hosts)
    texts = [json.dumps(found) for found in hosts.values()]
    size = sum(map(len, texts))
    print(f"{options.hosts} hosts, {len(facts['packages'])} packages, {size / 1e6:.1f} MB of facts")
    compared(
        ("comparison and message", "parsing the same facts from JSON"),
        (lambda: _parity.failure(_parity.compare(hosts)), lambda: [json.loads(text) for text in texts]),
        options.rounds,
    )
    files = sum(len(item.files) for item in _versions.read_lists(options.environment))
    print(f"one environment, {len(facts['packages'])} packages, {files} files")
    compared(
        ("all facts, every file looked at", "names and versions by importlib.metadata"),
        (lambda: _versions.read_versions(options.environment), lambda: environment_packages(options.environment)),
        options.rounds,
    )


if __name__ == "__main__":
    main()
