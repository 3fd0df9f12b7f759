# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare mounts of one NFS export: sequential writing and reading, and 1,000 small files.

Run it as root on a node that may mount the export and has it mounted nowhere::

    python3 measure.py SERVER:/PATH NAME=TYPE:OPTIONS [NAME=TYPE:OPTIONS ...] --uid 1000

Every round measures each of them once, in turn, so that what changes on the machines meets them all. Prints a JSON object:
for each name, the median of the rounds in seconds, and the spread. The first name's share of each is the one to divide by.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_BLOCK = os.urandom(1 << 20)


def timed(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def write(path: Path, mebibytes: int) -> None:
    with path.open("wb", buffering=0) as handle:
        for _block in range(mebibytes):
            handle.write(_BLOCK)
        os.fsync(handle.fileno())


def read(path: Path) -> None:
    with path.open("rb", buffering=0) as handle:
        while handle.read(1 << 20):
            pass


def small_files(directory: Path) -> None:
    directory.mkdir()
    for number in range(1000):
        (directory / str(number)).write_bytes(_BLOCK[:4096])


def forget_cache() -> None:
    """The client's: what is read next comes from the server."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def measure(mount_point: Path, mebibytes: int, uid: int) -> dict[str, float]:
    os.seteuid(uid)
    folder = Path(tempfile.mkdtemp(prefix="measure-", dir=mount_point))
    try:
        seconds = {"write": timed(lambda: write(folder / "large", mebibytes))}
        os.seteuid(0)
        forget_cache()
        os.seteuid(uid)
        seconds["read"] = timed(lambda: read(folder / "large"))
        seconds["small_files"] = timed(lambda: small_files(folder / "small"))
    finally:
        shutil.rmtree(folder)
        os.seteuid(0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("mounts", nargs="+", metavar="NAME=TYPE:OPTIONS")
    parser.add_argument("--uid", type=int, required=True, help="who may write there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=128)
    asked = parser.parse_args()
    mounts = [mount.partition("=")[::2] for mount in asked.mounts]
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _how in mounts}
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        for _round in range(asked.rounds):
            for name, how in mounts:
                kind, options = how.split(":", 1)
                subprocess.run(["mount", "-t", kind, "-o", options, asked.export, directory], check=True)
                try:
                    results[name].append(measure(Path(directory), asked.mebibytes, asked.uid))
                finally:
                    subprocess.run(["umount", directory], check=True)
    print(json.dumps({name: summary(rounds) for name, rounds in results.items()}, indent=1))


def summary(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        what: {
            "median": round(statistics.median(one[what] for one in rounds), 3),
            "least": round(min(one[what] for one in rounds), 3),
            "most": round(max(one[what] for one in rounds), 3),
        }
        for what in rounds[0]
    }


if __name__ == "__main__":
    main()
