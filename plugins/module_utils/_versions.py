# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions on a node, read without importing or starting anything, and their comparison across nodes.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Written into an environment by python_env as its last step: an environment without it is not finished.
RECORD_FILE = "metalray.json"

Facts = Mapping[str, Any]


class VersionsError(Exception):
    """Versions cannot be read or compared; the text says why and how to mend it."""


# --- reading -----------------------------------------------------------------------------------------------------


def normalised(name: str) -> str:
    """The name as package indexes compare it: lower case, one dash for any run of separators."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(entry: str) -> tuple[str, str] | None:
    """Name and version out of a ``NAME-VERSION.dist-info`` directory name."""
    stem, dot, suffix = entry.rpartition(".")
    name, dash, version = stem.rpartition("-")
    if not dot or suffix not in ("dist-info", "egg-info") or not dash:
        return None
    return normalised(name), version


def site_packages(environment: Path) -> Path | None:
    """Where an environment keeps its packages, or None where there is no such place."""
    return next(iter(sorted(environment.glob("lib/python3.*/site-packages"))), None)


def distributions(environment: Path) -> dict[str, str]:
    """Every distribution installed in an environment, by name."""
    place = site_packages(environment)
    if place is None:
        return {}
    found = (distribution(entry) for entry in os.listdir(place))
    return dict(sorted(item for item in found if item is not None))


def read_record(environment: Path) -> dict[str, Any]:
    """What python_env wrote about an environment; empty for one that it did not finish or did not make."""
    try:
        record = json.loads((environment / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def python_version(interpreter: Path) -> str:
    """The full version of an interpreter. Started only where it is not the one that runs this."""
    if sys.executable and os.path.realpath(interpreter) == os.path.realpath(sys.executable):
        return platform.python_version()
    code = "import platform; print(platform.python_version())"
    try:
        # There is no AnsibleModule to run it.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [str(interpreter), "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VersionsError(f"{interpreter} does not run as Python: {error}") from None
    return done.stdout.strip()


def driver_version(text: str) -> str:
    """The NVIDIA driver's version from ``/proc/driver/nvidia/version``; empty where there is none."""
    match = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return match.group(1) if match else ""


def os_name(text: str) -> str:
    """The readable name from ``os-release``."""
    match = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]*)", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def toolkit_version(toolkit: Path) -> str:
    """The CUDA toolkit's version; empty where there is none. A runtime without compiler has no version file."""
    try:
        return str(json.loads(_text(toolkit / "version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        match = re.search(r"/cuda-(\d+(?:\.\d+)*)$", os.path.realpath(toolkit))
        return match.group(1) if match and toolkit.is_dir() else ""


def nccl_version(packages: Mapping[str, str]) -> str:
    """The NCCL that torch loads, from the distribution that carries it."""
    found = {version for name, version in packages.items() if re.fullmatch(r"nvidia-nccl-cu\d+", name)}
    return ", ".join(sorted(found))


def system_nccl(root: Path) -> str:
    """The NCCL of the system's own packages, from its library's file name."""
    found = set()
    for pattern in ("usr/lib/*/libnccl.so.2.*", "usr/lib64/libnccl.so.2.*"):
        found |= {entry.name.partition(".so.")[2] for entry in root.glob(pattern)}
    return ", ".join(sorted(found))


def system_versions(packages: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """What lies below the environment. An empty text says that the node has no such thing."""
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    except (ValueError, OSError):
        glibc = ""
    return {
        "os": os_name(_text(root / "etc/os-release")),
        "kernel": os.uname().release,
        "glibc": glibc,
        "driver": driver_version(_text(root / "proc/driver/nvidia/version")),
        "cuda": toolkit_version(root / "usr/local/cuda"),
        "nccl": nccl_version(packages),
        "nccl_system": system_nccl(root),
    }


def read_versions(venv: Path, root: Path = Path("/")) -> dict[str, Any]:
    """Everything that package_versions_facts returns for an environment that is there."""
    environment = Path(os.path.realpath(venv))
    packages = distributions(environment)
    return {
        "venv": str(venv),
        "path": str(environment),
        "hash": str(read_record(environment).get("hash", "")),
        "python": python_version(environment / "bin" / "python"),
        "packages": packages,
        "system": system_versions(packages, root),
    }


# --- comparing ---------------------------------------------------------------------------------------------------

MISSING = "missing"


@dataclass(frozen=True)
class Difference:
    """One item in which hosts differ. ``odd`` maps every other value to the hosts that have it."""

    item: str
    kind: str
    strict: bool
    expected: str
    expected_on: int
    odd: dict[str, list[str]]
    tie: str = ""

    @property
    def hosts(self) -> list[str]:
        return [host for hosts in self.odd.values() for host in hosts]


@dataclass(frozen=True)
class Comparison:
    hosts: list[str]
    differences: list[Difference] = field(default_factory=list)

    @property
    def strict(self) -> list[Difference]:
        return [item for item in self.differences if item.strict]

    @property
    def warned(self) -> list[Difference]:
        return [item for item in self.differences if not item.strict]

    def as_list(self) -> list[dict[str, Any]]:
        return [asdict(item) for item in self.differences]


def _difference(item: str, kind: str, strict: bool, values: Mapping[str, str], reference: str) -> Difference | None:
    counts = Counter(values.values())
    if len(counts) < 2:
        return None
    most = max(counts.values())
    top = [value for value, count in counts.items() if count == most]
    # In a tie there is no majority to be right: the reference host decides, or the first host of the largest groups.
    judge = ""
    if len(top) > 1:
        judge = next(host for host in [reference, *values] if values[host] in top)
    expected = values[judge] if judge else top[0]
    odd: dict[str, list[str]] = {}
    for host, value in values.items():
        if value != expected:
            odd.setdefault(value, []).append(host)
    return Difference(item, kind, strict, expected, most, odd, judge)


def compare(
    facts: Mapping[str, Facts],
    *,
    packages: Sequence[str] = (),
    strict: Sequence[str] = ("driver", "cuda", "nccl"),
    warned: Sequence[str] = ("kernel", "glibc"),
    reference: str = "",
) -> Comparison:
    """Compare the facts of any number of hosts, item by item; the majority is taken to be right.

    ``packages`` names the distributions to compare, with ``python`` among them if wanted; empty means all of them and
    Python. ``strict`` and ``warned`` name items of the system.
    """
    hosts = list(facts)
    if not hosts:
        return Comparison(hosts)
    reference = reference if reference in facts else hosts[0]
    wanted = [normalised(name) for name in packages]
    installed = {host: facts[host].get("packages") or {} for host in hosts}
    names = wanted or ["python", *sorted(set().union(*installed.values()))]
    found = []
    for name in dict.fromkeys(names):
        if name == "python":
            values = {host: str(facts[host].get("python") or MISSING) for host in hosts}
        else:
            values = {host: str(installed[host].get(name) or MISSING) for host in hosts}
        found.append(_difference(name, "package", True, values, reference))
    # Compared already as the distribution that carries it.
    skipped = {"nccl"} if any(name.startswith("nvidia-nccl-") for name in names) else set()
    for item, is_strict in [*((name, True) for name in strict), *((name, False) for name in warned)]:
        if item in skipped:
            continue
        values = {host: str((facts[host].get("system") or {}).get(item) or MISSING) for host in hosts}
        found.append(_difference(item, "system", is_strict, values, reference))
    return Comparison(hosts, [item for item in found if item is not None])


def _names(hosts: Sequence[str], shown: int = 3) -> str:
    hosts = list(hosts)
    if len(hosts) > shown + 1:
        return f"{', '.join(hosts[:shown])} and {len(hosts) - shown} more"
    return ", ".join(hosts)


def _row(item: Difference) -> str:
    odd = "; ".join(f"{_names(hosts)}: {value}" for value, hosts in item.odd.items())
    others = "the other host" if item.expected_on == 1 else f"the other {item.expected_on} hosts"
    note = f" (a tie: {item.tie} is taken to be right)" if item.tie else ""
    return f"  {item.item}: {odd}; {others}: {item.expected}{note}"


def table(differences: Sequence[Difference], limit: int = 20) -> list[str]:
    """One line a difference, those that touch the most hosts last to be cut."""
    ranked = sorted(differences, key=lambda item: -len(item.hosts))
    kept = {id(item) for item in ranked[:limit]}
    rows = [_row(item) for item in differences if id(item) in kept]
    if len(differences) > limit:
        rows.append(f"  ... and {len(differences) - limit} more in the list 'differences' of this result")
    return rows


def _odd_hosts(differences: Iterable[Difference]) -> list[str]:
    return list(dict.fromkeys(host for item in differences for host in item.hosts))


def failure(comparison: Comparison, limit: int = 20) -> str:
    """The message for hosts that differ in something strict."""
    strict = comparison.strict
    odd = _odd_hosts(strict)
    lines = [
        f"{_names(odd, 8)} of {len(comparison.hosts)} hosts "
        f"{'differs' if len(odd) == 1 else 'differ'} from the rest in {len(strict)} "
        f"{'version' if len(strict) == 1 else 'versions'}; training across them would fail or go wrong:",
        *table(strict, limit),
    ]
    rebuilt = _odd_hosts(item for item in strict if item.kind == "package" or item.item == "nccl")
    if rebuilt:
        lines.append(
            f"Mend: ansible-playbook -i INVENTORY metalray.cluster.site --tags python_env --limit {','.join(rebuilt)}"
        )
    for item in strict:
        if item.kind == "system" and item.item != "nccl":
            lines.append(
                f"Mend: bring {_names(item.hosts, 8)} to {item.item} {item.expected}"
                if item.expected != MISSING
                else f"Mend: remove {item.item} from {_names(item.hosts, 8)}, or install it on every host"
            )
    return "\n".join(lines)


def warnings(comparison: Comparison) -> list[str]:
    """One line for each difference that does not stop the run."""
    return [f"Hosts differ in {_row(item).strip()}" for item in comparison.warned]
