# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of Python packages: what they pin, for which nodes, and what names an environment that is made of one.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._versions import normalised


class EnvError(Exception):
    """The environment cannot be brought to its lock; the text says why and how to mend it."""


@dataclass(frozen=True)
class Requirement:
    """One package of a lock. ``commit`` is that of a git repository at ``url``, which has no hash of its own."""

    name: str
    version: str
    marker: str
    text: str
    url: str = ""
    commit: str = ""
    subdirectory: str = ""


def logical_lines(text: str) -> Iterator[str]:
    """The lines of a requirements file without comments, continuation lines joined, blanks squeezed."""
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line)
        if bare.strip():
            yield " ".join(bare.split())


_NAME = r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?"
# A commit says what is in it, as a hash does.
_GIT = re.compile(
    rf"{_NAME}\s*@\s*git\+((?:https|ssh)://[^\s#]+?)@([0-9a-f]{{40}})(?:#subdirectory=([\w./-]+))?(?:\s*;\s*(.+))?"
)
_PINNED = re.compile(rf"{_NAME}\s*(==\s*[^\s;,*]+|@\s*\S+)\s*(?:;\s*(.+))?")


def parse_lock(text: str, name: str) -> list[Requirement]:
    """The requirements of a lock. Raises EnvError unless each is pinned to one version with hashes, or to a commit."""
    found: list[Requirement] = []
    loose: list[str] = []
    for line in logical_lines(text):
        if line.startswith("-"):
            raise EnvError(
                f"the lock {name} carries the option '{line.split()[0]}': a lock lists packages only. Indexes and "
                "directories have variables of their own (python_env_index_url, python_env_find_links, ...); leave a "
                "project itself out with 'uv export --no-emit-project'"
            )
        git = _GIT.fullmatch(line)
        if git:
            package, url, commit, folder, marker = git.groups(default="")
            found.append(Requirement(normalised(package), f"git.{commit[:12]}", marker, line, url, commit, folder))
            continue
        head, _space, hashes = line.partition(" --hash=")
        match = _PINNED.fullmatch(head)
        if match is None or not hashes:
            loose.append(head)
            continue
        package, pin, marker = match.groups(default="")
        url = pin[1:].strip() if pin.startswith("@") else ""
        version = _wheel_version(url) if url else pin[2:].strip()
        found.append(Requirement(normalised(package), version, marker.strip(), line, url))
    if loose:
        shown = ", ".join(loose[:5]) + (f" and {len(loose) - 5} more" if len(loose) > 5 else "")
        raise EnvError(
            f"the lock {name} does not pin each package to one version with hashes: {shown}. Make it with "
            "'uv pip compile --generate-hashes'; a git repository needs the whole commit (NAME @ git+https://HOST/PATH@COMMIT)"
        )
    if not found:
        raise EnvError(f"the lock {name} names no package. Make it with 'uv pip compile --generate-hashes'")
    return found


def hashes_of(text: str) -> set[str]:
    """The sha256 hashes that a line of a lock allows."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def _wheel_version(url: str) -> str:
    parts = url.rpartition("/")[2].split("-")
    return parts[1] if len(parts) > 2 else url


def environment_hash(requirements: Sequence[Requirement], python: str, uv: str, sources: Sequence[str]) -> str:
    """What names an environment: the lock without its comments and order, Python's full version, uv's, and the sources."""
    lines = [f"python {python}", f"uv {uv}", *sorted(item.text for item in requirements)]
    lines += [f"source {path}" for path in sources]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def marker_environment(python: str) -> dict[str, str]:
    """The values that environment markers are about, for CPython on this node."""
    return {
        "os_name": os.name,
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
    }


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))


def _compare(left: str, operator: ast.cmpop, right: str) -> bool:
    if isinstance(operator, ast.In):
        return left in right
    if isinstance(operator, ast.NotIn):
        return left not in right
    equal = isinstance(operator, ast.Eq)
    if right.endswith(".*") and (equal or isinstance(operator, ast.NotEq)):
        prefix = release(right[:-2])
        return (release(left)[: len(prefix)] == prefix) is equal
    a: Any = left
    b: Any = right
    if left[:1].isdigit() and right[:1].isdigit():
        a, b = release(left), release(right)
        width = max(len(a), len(b))
        a, b = a + (0,) * (width - len(a)), b + (0,) * (width - len(b))
    compared = {
        ast.Eq: a == b,
        ast.NotEq: a != b,
        ast.Lt: a < b,
        ast.LtE: a <= b,
        ast.Gt: a > b,
        ast.GtE: a >= b,
    }
    return compared[type(operator)]


def marker_holds(marker: str, values: Mapping[str, str]) -> bool:
    """Whether a marker holds. Markers are nearly Python's own syntax; one that is not is taken to hold.

    Only for showing what a build will bring: uv decides.
    """

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        raise ValueError(ast.dump(node))

    def holds(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            return (all if isinstance(node.op, ast.And) else any)(holds(item) for item in node.values)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return _compare(text(node.left), node.ops[0], text(node.comparators[0]))
        raise ValueError(ast.dump(node))

    try:
        return not marker or holds(ast.parse(marker, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, TypeError):
        return True


def lock_packages(requirements: Sequence[Requirement], python: str) -> dict[str, str]:
    """What a lock brings to this node under a version of Python."""
    values = marker_environment(python)
    return dict(sorted((item.name, item.version) for item in requirements if marker_holds(item.marker, values)))
