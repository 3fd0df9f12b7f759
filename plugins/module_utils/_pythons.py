# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python that an environment is based on: the node's own, or one that is fetched for it.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ._lock import EnvError, release
from ._uv import DISK_OR_TRUST, UNREACHABLE, Causes, Runner, Tools
from ._versions import VersionsError, python_version

# Variables of uv's environment that lead it to Pythons elsewhere than its own list does.
_PYTHON_SOURCES = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL")

_OTHER_PYTHON = "install that Python on the node and set python_env_python to its path"

_REACH_PYTHON = (
    "Let the node reach where uv's builds are (HTTPS_PROXY in python_env_environment), name a mirror of them there "
    "(UV_PYTHON_INSTALL_MIRROR, or UV_PYTHON_DOWNLOADS_JSON_URL with a list of your own; file:// works), or "
    f"{_OTHER_PYTHON}"
)

# The index of packages has no part in fetching Python.
_PYTHON_CAUSES: Causes = (
    *DISK_OR_TRUST,
    (
        r"No download found for request",
        "uv knows no such version",
        "Set python_env_python to one that it knows ('{root}/uv-*/bin/uv python list --all-versions' on the node), name a "
        f"list that has it (UV_PYTHON_DOWNLOADS_JSON_URL in python_env_environment), or {_OTHER_PYTHON}",
    ),
    (
        r"Hash mismatch",
        "what was fetched is not what uv's list names: its hash differs",
        "Find out whether the mirror serves a changed file, or the list in UV_PYTHON_DOWNLOADS_JSON_URL is old",
    ),
    (
        r"Network connectivity is disabled",
        "python_env_offline is set, and uv's list of Pythons leads away from the node",
        "Let it name addresses with file:// on the node, or take python_env_offline away",
    ),
    (
        rf"{UNREACHABLE}|HTTP status|failed to query metadata|failed to open file|Invalid download URL",
        "it cannot be fetched from where uv looks for it",
        _REACH_PYTHON,
    ),
    (r"", "it failed", _REACH_PYTHON),
)


def is_version(python: str) -> bool:
    return re.fullmatch(r"3\.\d+(\.\d+)?", python) is not None


def fetched_version(python: Path) -> str:
    """The full version of a Python that uv fetched, as its directory tells; empty for any other."""
    match = re.match(r"cpython-(3\.\d+\.\d[^-+]*)-", python.parent.parent.name)
    return match.group(1) if match and python.parent.name == "bin" else ""


def python_candidates(wanted: str, root: Path) -> list[Path]:
    """Where the node may have the Python that is asked for, best first: its own, then what uv fetched, newest first.

    Directories are real ones: uv keeps a link for each minor version and leads it to the newest that it fetched, under
    an environment that came in by the link.
    """
    if wanted.startswith("/"):
        paths = [Path(wanted)]
    else:
        name = "python" + ".".join(wanted.split(".")[:2])
        paths = [Path("/usr/bin", name), Path("/usr/local/bin", name)]
        fetched = (place / name for place in root.glob("python/*/bin"))
        paths += sorted(fetched, key=lambda path: (release(fetched_version(path)), str(path)), reverse=True)
    real = (Path(os.path.realpath(path.parent)) / path.name for path in paths)
    return [path for path in dict.fromkeys(real) if path.exists()]


def is_fetched(python: Path, root: Path) -> bool:
    return Path(os.path.realpath(root / "python")) in python.parents


def find_python(settings: Tools) -> tuple[Path, str] | None:
    """The interpreter that is asked for and its full version; None where the node has none such yet."""
    wanted = settings.python
    if not wanted.startswith("/") and not is_version(wanted):
        raise EnvError(f"python_env_python is '{wanted}': allowed is an absolute path, or a version such as 3.12.16")
    for candidate in python_candidates(wanted, settings.root):
        try:
            version = python_version(candidate)
        except VersionsError:
            # One that uv fetched may be the rest of a power cut: the next build fetches it again.
            if not is_fetched(candidate, settings.root):
                raise
            continue
        if wanted.startswith("/") or f"{version}.".startswith(f"{wanted}."):
            return candidate, version
    return None


def install_python(settings: Tools, runner: Runner, uv: Path) -> tuple[Path, str]:
    """The interpreter that is asked for, fetched by uv where the node has none."""
    if not is_version(settings.python):
        raise EnvError(
            f"python_env_python is '{settings.python}', and there is no such file on this node. Install it, or set the "
            "variable to another path or to a version such as 3.12.16"
        )
    if settings.offline and not any(os.environ.get(name, "").startswith(("/", "file:")) for name in _PYTHON_SOURCES):
        raise EnvError(
            f"no Python {settings.python} on this node, and python_env_offline forbids fetching one from elsewhere. Set "
            "python_env_python to a version that is there, lead uv to a copy on the node in python_env_environment "
            f"({' or '.join(_PYTHON_SOURCES)} with file://), or {_OTHER_PYTHON}"
        )
    command = [uv, "python", "install", "--no-bin", settings.python]
    runner.run(f"fetching Python {settings.python}", command, causes=_PYTHON_CAUSES)
    found = find_python(settings)
    if found is None:
        raise EnvError(f"uv fetched Python {settings.python}, but it is not below {settings.root}/python")
    return found


def ensure_python(settings: Tools, runner: Runner, uv: Path) -> tuple[Path, str]:
    """The interpreter that is asked for and its full version, fetched where the node has none."""
    return find_python(settings) or install_python(settings, runner, uv)
