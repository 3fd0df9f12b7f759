# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions on a node, read without importing anything that is installed.

Needs the standard library and ``_bounded`` only: a job that starts ships both to every node.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import csv
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ._bounded import NoAnswer, bounded

# Written into an environment by python_env as its last step: an environment without it is not finished.
RECORD_FILE = "metalray.json"

# Sources may lie on a share whose server is gone. For all sources of one mount, and once more for git's look at them.
SOURCE_SECONDS = 5
# Whatever is asked of a node, it has answered by then.
READ_SECONDS = 60
# A larger file that is newer than its installation and has its size is not read: the libraries of CUDA have gigabytes.
_BIGGEST = 16 << 20
_SHOWN_FILES = 5


class VersionsError(Exception):
    """Versions cannot be read or compared; the text says why and how to mend it."""


# --- what is installed -------------------------------------------------------------------------------------------


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


# --- whether it is what was installed ----------------------------------------------------------------------------


class Listed(NamedTuple):
    """A file as the list of its distribution has it; ``path`` is relative to the place for packages."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Edited:
    """Files of a distribution that are no longer as its list says. Equal digests mean equal edits."""

    files: list[str]
    digest: str


def fingerprint(environment: Path) -> dict[str, str]:
    """Each entry of the place for packages: a distribution with the digest of its list of files and their hashes, what leads
    Python elsewhere with that of its text.
    """
    place = site_packages(environment)
    if place is None:
        return {}
    entries = {}
    for entry in os.listdir(place):
        if entry == "__pycache__":
            continue
        digest = ""
        if distribution(entry) is not None:
            with contextlib.suppress(OSError):
                digest = hashlib.sha256((place / entry / "RECORD").read_bytes()).hexdigest()
        elif entry.endswith(".pth"):
            with contextlib.suppress(OSError):
                digest = hashlib.sha256((place / entry).read_bytes()).hexdigest()
        entries[entry] = digest
    return entries


def listed_files(text: str) -> list[Listed]:
    """The files of a RECORD that carry a hash: not the list itself, and not what was compiled from others."""
    found = {}
    for row in csv.reader(text.splitlines()):
        if len(row) >= 3 and row[1] and row[2].isdigit():
            found[row[0]] = Listed(row[0], row[1], int(row[2]))
    return list(found.values())


def content_digest(files: Iterable[Listed]) -> str:
    """What a distribution consists of, the same on every node that installed the same file.

    Without the programs in ``bin``, whose first line names the environment, and the installer's own notes.
    """
    notes = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
    kept = sorted(
        f"{item.path} {item.digest}"
        for item in files
        if not item.path.startswith("../../../bin/")
        and not (item.path.rpartition("/")[0].endswith(".dist-info") and item.path.endswith(notes))
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12] if kept else ""


def _has_digest(path: str, wanted: str) -> bool:
    name, _equals, value = wanted.partition("=")
    try:
        with open(path, "rb") as handle:
            digest = hashlib.new(name, handle.read()).digest()
    except (OSError, ValueError):
        return False
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == value.rstrip("=")


def edited_files(place: Path, files: Iterable[Listed], installed_ns: int) -> list[str]:
    """Files that were changed or removed since they were installed: by their size, or newer and with another hash.

    Only what is newer than its installation is read: this is a look at some ten thousand files.
    """
    found = []
    for item in files:
        path = f"{place}/{item.path}"
        try:
            seen = os.stat(path)
        except OSError:
            found.append(item.path)
            continue
        newer = seen.st_mtime_ns >= installed_ns
        if seen.st_size != item.size or (newer and item.size <= _BIGGEST and not _has_digest(path, item.digest)):
            found.append(item.path)
    return sorted(found)


def _edit_digest(place: Path, files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0".encode())
        with contextlib.suppress(OSError), open(f"{place}/{path}", "rb") as handle:
            digest.update(handle.read(_BIGGEST))
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class FileList:
    """The files of a distribution by its own list, and when that was written."""

    name: str
    files: list[Listed]
    written_ns: int


def read_lists(environment: Path) -> list[FileList]:
    """The lists of all distributions that have one."""
    place = site_packages(environment)
    found = []
    for entry in sorted(os.listdir(place)) if place else ():
        known = distribution(entry)
        if place and known is not None:
            with contextlib.suppress(OSError):
                path = place / entry / "RECORD"
                text = path.read_text(encoding="utf-8", errors="replace")
                found.append(FileList(known[0], listed_files(text), path.stat().st_mtime_ns))
    return found


def read_edits(environment: Path, lists: Sequence[FileList] | None = None) -> dict[str, Edited]:
    """The distributions of an environment with files that are no longer as installed."""
    place = site_packages(environment)
    found = {}
    for item in (read_lists(environment) if lists is None else lists) if place else ():
        edited = edited_files(place, item.files, item.written_ns)
        if edited:
            found[item.name] = Edited(edited, _edit_digest(place, edited))
    return found


def read_changes(
    environment: Path, record: Mapping[str, Any], lists: Sequence[FileList], contents: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What other hands did to distributions since they were installed; their versions may tell nothing of it."""
    found: dict[str, dict[str, Any]] = {}
    before: Mapping[str, str] = record.get("entries") or {}
    for entry, digest in fingerprint(environment).items():
        known = distribution(entry)
        if known and before.get(entry, digest) != digest:
            found[known[0]] = {"how": "reinstalled", "digest": contents.get(known[0], "")[:8], "files": []}
    for name, edited in read_edits(environment, lists).items():
        found[name] = {"how": "edited", "digest": edited.digest, "files": edited.files[:_SHOWN_FILES]}
    return dict(sorted(found.items()))


def read_strays(environment: Path, record: Mapping[str, Any], lists: Sequence[FileList]) -> list[str]:
    """What lies among the packages, belongs to none of them, and was not there when the environment was built."""
    if not record.get("entries"):
        return []
    owned = {item.path.partition("/")[0] for one in lists for item in one.files}
    strays = fingerprint(environment).keys() - record["entries"].keys() - owned
    return sorted(entry for entry in strays if distribution(entry) is None)


# --- sources that an environment leads to -------------------------------------------------------------------------


def _small_text(path: Path, most: int = 1 << 20) -> str:
    """The text of a small file, or '' where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read(most)
    except OSError:
        return ""


def _editable_of(text: str) -> tuple[str, str]:
    """Path and commit out of a direct_url.json; empty where it is about neither."""
    try:
        told = json.loads(text)
        url = urllib.parse.urlsplit(str(told["url"]))
        if (told.get("dir_info") or {}).get("editable") and url.scheme == "file":
            return urllib.parse.unquote(url.path), ""
        return "", str((told.get("vcs_info") or {}).get("commit_id") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""


def _finder_paths(text: str) -> dict[str, str]:
    """Module to path out of the finder that setuptools writes for an editable package, without running it."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.parse(text).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "MAPPING" for target in targets):
                mapping = ast.literal_eval(node.value)
                return {str(name): str(path) for name, path in mapping.items() if os.path.isabs(str(path))}
    return {}


def _within(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in places)


def source_paths(environment: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Where an environment leads outside of itself: paths of sources by name, and commits of packages that came from git.

    A source is called by its package; one that only a path leads to, by that path.
    """
    place = site_packages(environment)
    if place is None:
        return {}, {}
    paths: dict[str, str] = {}
    commits: dict[str, str] = {}
    entries = sorted(os.listdir(place))
    for entry in entries:
        known = distribution(entry)
        if known is not None:
            path, commit = _editable_of(_small_text(place / entry / "direct_url.json"))
            if path:
                paths[known[0]] = os.path.normpath(path)
            if commit:
                commits[known[0]] = commit
    for entry in entries:
        if entry.startswith("__editable__") and entry.endswith("_finder.py"):
            for module, path in _finder_paths(_small_text(place / entry)).items():
                if not _within(path, paths.values()):
                    paths[module] = os.path.normpath(path)
        elif entry.endswith(".pth"):
            for line in _small_text(place / entry).splitlines():
                # What Python itself takes for code or a comment (see its module site).
                if line.startswith(("import ", "import\t", "#")) or not line.strip():
                    continue
                path = os.path.normpath(os.path.join(place, line.rstrip()))
                if not _within(path, [*paths.values(), str(environment)]):
                    paths[path] = path
    return paths, commits


def git_directory(path: Path) -> tuple[Path, Path] | None:
    """The top of the work tree that a path is in, and git's directory of it; None where there is no git."""
    for top in (path, *path.parents):
        entry = top / ".git"
        if entry.is_dir():
            return top, entry
        # A worktree or a submodule has its directory elsewhere.
        match = re.match(r"gitdir: (.+)", _small_text(entry))
        if match:
            return top, Path(os.path.normpath(top / match.group(1).strip()))
    return None


def head_commit(directory: Path) -> str:
    """The commit that is checked out, from git's files; empty where they do not tell."""
    head = _small_text(directory / "HEAD").strip()
    shared = _small_text(directory / "commondir").strip()
    common = Path(os.path.normpath(directory / shared)) if shared else directory
    for _hop in range(5):
        if not head.startswith("ref: "):
            return head if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", head) else ""
        name = head[len("ref: ") :].strip()
        loose = _small_text(directory / name).strip() or _small_text(common / name).strip()
        packed = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", _small_text(common / "packed-refs", 64 << 20), re.M)
        head = loose or (packed.group(1) if packed else "")
    return ""


def _commit_of(path: str) -> str:
    """A source's commit; 'missing' where there is no such path, 'no git' where it is in no repository."""
    if not os.path.exists(path):
        return "missing"
    found = git_directory(Path(path))
    return (head_commit(found[1]) or "unknown") if found else "no git"


def _edits_of(path: str) -> str | None:
    """A digest of the edits of tracked files, empty for none; None where git is not there to tell, or refuses to."""
    found = git_directory(Path(path))
    if not found:
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Git refuses a repository of another account, which could name programs for it to run. So it may.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(found[0]), "diff", "HEAD"]
    options = ["--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty"]
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [*command, *options],
            env={**clean, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SOURCE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return hashlib.sha256(done.stdout).hexdigest()[:8] if done.stdout else ""


def _mount_of(path: str, mounts: Iterable[str]) -> str:
    return max((mount for mount in mounts if _within(path, [mount])), key=len, default="/")


def mount_points(text: str) -> list[str]:
    """The places of ``/proc/self/mounts``, which is read without touching any of them."""
    places = [words[1] for words in (line.split() for line in text.splitlines()) if len(words) > 1]
    return [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), place) for place in places]


def read_sources(environment: Path, seconds: float = SOURCE_SECONDS) -> dict[str, dict[str, Any]]:
    """The sources that an environment leads to, each with its commit and its edits; None where these cannot be told."""
    paths, commits = source_paths(environment)
    sources: dict[str, dict[str, Any]] = {
        name: {"path": "", "commit": commit, "edits": None} for name, commit in commits.items()
    }
    mounts = mount_points(_small_text(Path("/proc/self/mounts")))
    by_mount: dict[str, list[str]] = {}
    for name, path in paths.items():
        by_mount.setdefault(_mount_of(path, mounts), []).append(name)
    for names in by_mount.values():
        told = _bounded_look(_commit_of, [paths[name] for name in names], seconds)
        edits = _bounded_look(_edits_of, [paths[name] for name in names], 2 * seconds) if told else None
        for at, name in enumerate(names):
            sources[name] = {
                "path": paths[name],
                "commit": told[at] if told else "no answer",
                "edits": edits[at] if edits else None,
            }
    return dict(sorted(sources.items()))


def _bounded_look(look: Any, paths: list[str], seconds: float) -> list[Any] | None:
    try:
        return bounded(lambda: [look(path) for path in paths], seconds)
    except (NoAnswer, OSError, RuntimeError):
        return None


# --- the system --------------------------------------------------------------------------------------------------


def driver_version(text: str) -> str:
    """The NVIDIA driver's version from ``/proc/driver/nvidia/version``; empty where there is none."""
    match = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return match.group(1) if match else ""


def os_name(text: str) -> str:
    """The readable name from ``os-release``."""
    match = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]*)", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def toolkit_version(toolkit: Path) -> str:
    """The CUDA toolkit's version; empty where there is none. A runtime without compiler has no version file."""
    try:
        return str(json.loads(_small_text(toolkit / "version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        match = re.search(r"/cuda-(\d+(?:\.\d+)*)$", os.path.realpath(toolkit))
        return match.group(1) if match and toolkit.is_dir() else ""


def nccl_version(packages: Mapping[str, str]) -> str:
    """The NCCL that torch loads, from the distribution that carries it."""
    found = {version for name, version in packages.items() if re.fullmatch(r"nvidia-nccl-cu\d+", name)}
    return ", ".join(sorted(found))


def _system_libraries(root: Path) -> list[str]:
    found = {entry for pattern in ("usr/lib/*", "usr/lib64") for entry in root.glob(f"{pattern}/libnccl.so.2.*")}
    return sorted(f"/{entry.relative_to(root)}" for entry in found)


def system_nccl(root: Path) -> str:
    """The NCCL of the system's own packages, from its library's file name."""
    return ", ".join(sorted({path.partition(".so.")[2] for path in _system_libraries(root)}))


def nccl_library(environment: Path, packages: Mapping[str, str], root: Path) -> str:
    """The file that torch loads as NCCL: its own package's, which a path in torch leads to first, or else the system's.

    Empty for a torch without CUDA, or where no such file is in a usual place.
    """
    torch = packages.get("torch", "")
    if not torch or torch.endswith("+cpu"):
        return ""
    place = site_packages(environment)
    own = "nvidia/nccl/lib/libnccl.so.2"
    if place and (place / own).exists():
        return f"site-packages/{own}"
    return ", ".join(_system_libraries(root))


def system_versions(
    packages: Mapping[str, str], root: Path = Path("/"), environment: Path | None = None
) -> dict[str, str]:
    """What lies below the environment. An empty text says that the node has no such thing."""
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    except (ValueError, OSError):
        glibc = ""
    return {
        "os": os_name(_small_text(root / "etc/os-release")),
        "kernel": os.uname().release,
        "glibc": glibc,
        "driver": driver_version(_small_text(root / "proc/driver/nvidia/version")),
        "cuda": toolkit_version(root / "usr/local/cuda"),
        "nccl": nccl_version(packages),
        "nccl_system": system_nccl(root),
        "nccl_library": nccl_library(environment, packages, root) if environment else "",
    }


# --- all of it ---------------------------------------------------------------------------------------------------


def read_versions(venv: Path, root: Path = Path("/")) -> dict[str, Any]:
    """Everything that package_versions_facts returns; empty where there is no environment."""
    if not (venv / "bin" / "python").exists():
        return {}
    environment = Path(os.path.realpath(venv))
    packages = distributions(environment)
    record = read_record(environment)
    lists = read_lists(environment)
    contents = {item.name: content_digest(item.files) for item in lists}
    return {
        "venv": str(venv),
        "path": str(environment),
        "hash": str(record.get("hash", "")),
        "wheels": str(record.get("wheels", "")),
        "lock": str(record.get("lock", "")),
        "python": python_version(environment / "bin" / "python"),
        "interpreter": os.path.realpath(environment / "bin" / "python"),
        "packages": packages,
        "contents": contents,
        "changed": read_changes(environment, record, lists, contents),
        "strays": read_strays(environment, record, lists),
        "sources": read_sources(environment),
        "system": system_versions(packages, root, environment),
    }


def read_bounded(venv: Path, seconds: float = READ_SECONDS) -> dict[str, Any]:
    """The same within a time: the environment may lie on a share whose server is gone."""

    def look() -> dict[str, Any]:
        try:
            return {"versions": read_versions(venv)}
        except VersionsError as error:
            return {"problem": str(error)}

    try:
        told = bounded(look, seconds)
    except NoAnswer:
        raise VersionsError(f"no answer within {seconds:g} seconds: is it on a share whose server is gone?") from None
    except (OSError, RuntimeError) as error:
        raise VersionsError(str(error)) from None
    if "problem" in told:
        raise VersionsError(told["problem"])
    return told["versions"]
