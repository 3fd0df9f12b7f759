# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the locks that the collection ships can still be installed, asked of the package index: ``tests/locks.py [LOCK ...]``.

For each lock, and each Python and platform that it is for: uv resolves what the lock was made from, with every version of the
lock, and needs nothing else; every hash of the lock is one that the index lists; and for each package a file with such a hash
fits. Metadata is read, no package is fetched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomllib
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".venv" / "bin" / "uv"
_JSON = "application/vnd.pypi.simple.v1+json"
_ATTEMPTS = 3


class NoIndexError(Exception):
    """No package index answers."""


@dataclass(frozen=True)
class Target:
    """CPython on x86_64 with a glibc."""

    python: str
    glibc: int

    @property
    def platform(self) -> str:
        return f"x86_64-manylinux_2_{self.glibc}"

    def __str__(self) -> str:
        return f"CPython {self.python}, glibc 2.{self.glibc}"

    def holds(self, marker: str) -> bool:
        values = {"python_version": ".".join(self.python.split(".")[:2]), "python_full_version": self.python}
        values |= {
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "platform_machine": "x86_64",
        }
        values |= {"platform_python_implementation": "CPython", "implementation_name": "cpython"}
        return not marker or Marker(marker).evaluate(values)

    def tags(self) -> set[Tag]:
        version = tuple(map(int, self.python.split(".")[:2]))
        name = "cp" + "".join(map(str, version))
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(self.glibc, 4, -1)]
        platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
        return {*cpython_tags(version, [name], platforms), *compatible_tags(version, name, platforms)}


# Python and glibc of Ubuntu 22.04, Debian 12, Ubuntu 24.04 and Debian 13, whose 2.41 is more than uv knows.
JAMMY, BOOKWORM, NOBLE, TRIXIE = Target("3.10", 35), Target("3.11", 36), Target("3.12", 39), Target("3.13", 40)


@dataclass(frozen=True)
class Lock:
    """A lock, what it was made from, and what it is for. ``elsewhere`` are packages that are in no index."""

    path: str
    made_from: str
    targets: Sequence[Target]
    settings: str = ""
    elsewhere: Sequence[str] = ()


_LOCKS = "roles/python_env/files/locks"
LOCKS = (
    Lock(f"{_LOCKS}/smoke.txt", f"{_LOCKS}/smoke.in", (JAMMY, BOOKWORM, NOBLE, TRIXIE)),
    Lock(
        f"{_LOCKS}/terminal_bench_rl.txt",
        f"{_LOCKS}/terminal_bench_rl.in",
        (Target("3.12.9", 35),),
        f"{_LOCKS}/terminal_bench_rl.toml",
    ),
    Lock("inventories/sandbox/ray-only.txt", f"{_LOCKS}/smoke.in", (BOOKWORM, TRIXIE), elsewhere=("torch",)),
    Lock("inventories/sandbox/smoke-cpu-py311.txt", f"{_LOCKS}/smoke.in", (BOOKWORM,), elsewhere=("torch",)),
    Lock("roles/python_env/files/uv.txt", "roles/python_env/files/uv.txt", (JAMMY, TRIXIE)),
)


@dataclass(frozen=True)
class Pin:
    name: str
    what: str  # ==VERSION, or @ ADDRESS
    marker: str
    hashes: frozenset[str]

    @property
    def version(self) -> str:
        return self.what.removeprefix("==") if self.what.startswith("==") else ""


def read_lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if bare := re.sub(r"(^|\s)#.*", "", line).strip():
            yield bare


def read_pins(text: str) -> list[Pin]:
    pins = []
    for line in read_lines(text):
        found = re.fullmatch(r"([\w.-]+)(==[^\s;]+| @ \S+)(?:\s*;\s*(.+?))?((?:\s+--hash=sha256:\w+)*)", line)
        if not found:
            raise ValueError(f"not a line of a lock: {line}")
        name, what, marker, hashes = found.groups(default="")
        digests = frozenset(part.rpartition(":")[2] for part in hashes.split())
        pins.append(Pin(canonicalize_name(name), what.strip(), marker, digests))
    return pins


def without_wheels(settings: str) -> set[str]:
    """The packages whose metadata uv is told, since they are built from their source."""
    told = (
        tomllib.loads((ROOT / settings).read_text(encoding="utf-8")).get("dependency-metadata", []) if settings else []
    )
    return {canonicalize_name(one["name"]) for one in told}


def resolve(lock: Lock, pins: Sequence[Pin], target: Target) -> list[str]:
    """What uv says against the lock's versions as an answer to what it was made from."""
    wanted = [pin for pin in pins if target.holds(pin.marker) and pin.name not in lock.elsewhere]
    built = without_wheels(lock.settings)
    made_from = [
        line
        for line in read_lines((ROOT / lock.made_from).read_text(encoding="utf-8"))
        if re.match(r"[\w.-]+", line)[0] not in lock.elsewhere and "--hash" not in line
    ]
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory, "pins.in")
        lines.write_text("\n".join([*made_from, *(f"{pin.name}{' ' * (not pin.version)}{pin.what}" for pin in wanted)]))
        empty = Path(directory, "uv.toml")
        empty.touch()
        command = [
            UV,
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--annotation-style",
            "line",
            "--no-python-downloads",
        ]
        command += ["--config-file", ROOT / lock.settings if lock.settings else empty]
        command += ["--python-version", target.python, "--python-platform", target.platform]
        command += [part for pin in wanted if pin.name not in built for part in ("--only-binary", pin.name)]
        done = subprocess.run([*command, lines], capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"{lock.path}: does not resolve for {target}: {' '.join(done.stderr.split())}"]
    return strays(lock.path, done.stdout, wanted, target)


def strays(path: str, resolved: str, wanted: Iterable[Pin], target: Target) -> list[str]:
    """What a resolution has beyond the lock, with what asks for it."""
    known = {pin.name for pin in wanted}
    problems = []
    for line in resolved.splitlines():
        name = canonicalize_name(re.match(r"[\w.-]*", line)[0])
        if name and name not in known:
            problems.append(f"{path}: does not name what {target} needs: {' '.join(line.split())}")
    return problems


def judge(
    path: str, pins: Iterable[Pin], files: Mapping[str, Sequence[Mapping]], target: Target, built: set[str]
) -> list[str]:
    """What the index's lists of files say against the hashes of a lock."""
    tags, problems = target.tags(), []
    for pin in pins:
        if not pin.version or not target.holds(pin.marker):
            continue
        named = {file["hashes"].get("sha256"): file["filename"] for file in files[pin.name]}
        unknown = pin.hashes - named.keys()
        if unknown:
            problems.append(
                f"{path}: {pin.name} {pin.version}: the index lists no file with the hash {sorted(unknown)[0]}"
            )
        mine = {named[one] for one in pin.hashes if one in named}
        others = {name for name in mine if not is_of(name, pin)}
        if others:
            problems.append(f"{path}: {pin.name} {pin.version}: has the hash of {sorted(others)[0]}")
        if not any(name.endswith(".tar.gz") if pin.name in built else fits(name, tags) for name in mine):
            problems.append(f"{path}: {pin.name} {pin.version}: no file with a hash of the lock fits {target}")
    return problems


def is_of(filename: str, pin: Pin) -> bool:
    stem = re.sub(r"\.(tar\.gz|tar\.bz2|zip)$", "", filename)
    name, version = filename.split("-")[:2] if filename.endswith(".whl") else stem.rpartition("-")[::2]
    return canonicalize_name(name) == pin.name and version.replace("_", "-") == pin.version.replace("_", "-")


def fits(filename: str, tags: set[Tag]) -> bool:
    try:
        return filename.endswith(".whl") and not tags.isdisjoint(parse_wheel_filename(filename)[3])
    except InvalidWheelFilename:
        return False


def index_address() -> str:
    """The index that uv asks on this machine."""
    done = subprocess.run(
        [UV, "pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    return re.search(r"--index-url (\S+)", done.stdout)[1].rstrip("/")


def list_files(index: str, name: str) -> list[Mapping]:
    """The files that the index has of a package."""
    request = urllib.request.Request(f"{index}/{name}/", headers={"Accept": _JSON})
    reason = ""
    for attempt in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["files"]
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ValueError(f"{name}: the index answers {error.code} {error.reason}") from None
            reason = str(error)
        except (OSError, json.JSONDecodeError) as error:
            reason = str(error)
        time.sleep(attempt)
    raise NoIndexError(f"{name}: {reason}")


def main(wanted: Sequence[str]) -> int:
    locks = [lock for lock in LOCKS if not wanted or lock.path in wanted]
    index = index_address()
    try:
        list_files(index, "pip")
    except NoIndexError as error:
        print(f"NOT RUN: no package index answers ({error})")
        return 3
    pins = {lock: read_pins((ROOT / lock.path).read_text(encoding="utf-8")) for lock in locks}
    names = sorted({pin.name for lock in locks for pin in pins[lock] if pin.version and pin.name not in lock.elsewhere})
    pairs = [(lock, target) for lock in locks for target in lock.targets]
    # Both wait for the index.
    with ThreadPoolExecutor(4) as resolvers, ThreadPoolExecutor(16) as readers:
        resolved = resolvers.map(lambda pair: resolve(pair[0], pins[pair[0]], pair[1]), pairs)
        files = dict(zip(names, readers.map(lambda name: list_files(index, name), names)))
        problems = [problem for found in resolved for problem in found]
    for lock, target in pairs:
        mine = [pin for pin in pins[lock] if pin.name not in lock.elsewhere]
        problems += judge(lock.path, mine, files, target, without_wheels(lock.settings))
        print(f"{lock.path}: {sum(target.holds(pin.marker) for pin in mine)} packages for {target}")
    for problem in dict.fromkeys(problems):
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (NoIndexError, ValueError) as error:
        sys.exit(str(error))
