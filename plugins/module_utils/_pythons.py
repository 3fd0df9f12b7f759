# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python that an environment is based on: the node's own, or one that is fetched for it.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

from ._fetch import bare
from ._lock import EnvError, release
from ._uv import DISK_OR_TRUST, UNREACHABLE, Causes, Runner, Tools, remove
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


_ARCHIVE_CAUSES: Causes = (
    *DISK_OR_TRUST,
    (
        r"Hash mismatch",
        "the archive is not the one that python_env_python_archive names: its hash differs",
        "Find out whether the file was changed, or correct the hash",
    ),
    (
        r"Network connectivity is disabled",
        "python_env_offline is set, and the archive is not on the node",
        "Name a path on the node or on the shared directory in python_env_python_archive, or take python_env_offline away",
    ),
    (
        rf"{UNREACHABLE}|HTTP status|failed to query metadata|failed to open file|No such file|Permission denied",
        "the archive cannot be read",
        "Correct python_env_python_archive: an address that each node reaches, or a path that is there on each node and that "
        "others may read (over NFS, root is nobody)",
    ),
    (r"", "it failed", "Give an archive as python-build-standalone makes them (install_only.tar.gz)"),
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
    problem = archive_problem(settings.python, settings.python_archive)
    if problem:
        raise EnvError(problem)
    if not is_version(settings.python):
        raise EnvError(
            f"python_env_python is '{settings.python}', and there is no such file on this node. Install it, or set the "
            "variable to another path or to a version such as 3.12.16"
        )
    sources = {**os.environ, **archive_environment(settings)}
    if settings.offline and not any(sources.get(name, "").startswith(("/", "file:")) for name in _PYTHON_SOURCES):
        raise EnvError(
            f"no Python {settings.python} on this node, and python_env_offline forbids fetching one from elsewhere. Set "
            "python_env_python to a version that is there, give its archive (python_env_python_archive), lead uv to a copy on "
            f"the node in python_env_environment ({' or '.join(_PYTHON_SOURCES)} with file://), or {_OTHER_PYTHON}"
        )
    command = [uv, "python", "install", "--no-bin", settings.python]
    what = f"fetching Python {settings.python}"
    if settings.python_archive:
        what = f"unpacking Python {settings.python} from {bare(settings.python_archive.partition('#')[0])}"
    causes = _ARCHIVE_CAUSES if settings.python_archive else _PYTHON_CAUSES
    runner.run(what, command, causes=causes, environment=archive_environment(settings))
    found = find_python(settings)
    if found is None and settings.python_archive:
        remove(settings.root / "python" / _archive_key(settings.python))
        raise EnvError(
            f"python_env_python_archive holds another Python than {settings.python} (python_env_python), or one that does not run "
            "on this node. Give the archive of that version for this processor, as python-build-standalone names it "
            "(cpython-VERSION+DATE-PROCESSOR-unknown-linux-gnu-install_only.tar.gz)"
        )
    if found is None:
        raise EnvError(f"uv fetched Python {settings.python}, but it is not below {settings.root}/python")
    return found


def archive_problem(python: str, archive: str) -> str:
    """What is wrong with python_env_python_archive; empty where nothing is. ``python`` may be unknown yet."""
    if not archive:
        return ""
    if not re.fullmatch(r"(/|file:///|https?://)\S+#sha256=[0-9a-f]{64}", archive):
        return (
            f"python_env_python_archive is '{bare(archive)}': allowed is the address of an archive, or its path on the nodes, with "
            "its hash behind it, ADDRESS#sha256=HASH ('sha256sum FILE' tells it)"
        )
    if python and not re.fullmatch(r"3\.\d+\.\d+", python):
        return (
            f"python_env_python_archive is set, and python_env_python is '{python}': name the full version that is in the "
            "archive, such as 3.12.9"
        )
    return ""


def _archive_key(version: str) -> str:
    return f"cpython-{version}-linux-{platform.machine()}-gnu"


def archive_environment(settings: Tools) -> dict[str, str]:
    """What leads uv to the archive: a list of Pythons with that one, for uv unpacks, corrects and names it as all others."""
    if not settings.python_archive:
        return {}
    url, _hash, digest = settings.python_archive.partition("#sha256=")
    major, minor, patch = (int(part) for part in settings.python.split("."))
    entry = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "variant": None,
        "build": None,
        "url": f"file://{url}" if url.startswith("/") else url,
        "sha256": digest,
    }
    listed = settings.root / "python" / ".archive.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(json.dumps({_archive_key(settings.python): entry}), encoding="utf-8")
    return {"UV_PYTHON_DOWNLOADS_JSON_URL": f"file://{listed}", "UV_PYTHON_INSTALL_MIRROR": ""}


def ensure_python(settings: Tools, runner: Runner, uv: Path) -> tuple[Path, str]:
    """The interpreter that is asked for and its full version, fetched where the node has none."""
    return find_python(settings) or install_python(settings, runner, uv)
