# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive from which a site without internet is built: what is in it, whether it fits, how it comes to a node.

It is a tar file. Its first member, ``manifest.json``, says what it was built for and has size and SHA-256 of every other
file, so that the hash of the manifest stands for the whole. The others lie in directories, its parts: ``apt`` is a flat
repository, ``wheels`` a directory of wheels, ``source`` bare git repositories.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ._access import masked, without_account
from ._files import sync_directory, sync_file_system

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("apt", "wheels", "source")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MARK = ".bundle"
_BLOCK = 1 << 20
_REBUILD = "Build it again with playbooks/bundle.yml and this inventory"


class BundleError(Exception):
    """The bundle cannot be made or used; the text says why and how to mend it."""


@dataclass(frozen=True)
class Manifest:
    """``sources`` are the repositories in the part ``source``: their address, without an account, to their directory.

    ``built`` are the wheels whose hashes are not the lock's.
    """

    system: str
    codename: str
    architecture: str
    settings: Mapping[str, Any]
    packages: Sequence[str]
    files: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str] = field(default_factory=dict)
    built: Sequence[str] = field(default_factory=list)

    def text(self) -> str:
        values = {"format": FORMAT, **{name: getattr(self, name) for name in self.__dataclass_fields__}}
        return json.dumps(values, indent=1, sort_keys=True) + "\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()

    def part(self, name: str) -> dict[str, Mapping[str, Any]]:
        """The files of a part, by their path in it."""
        return {path[len(name) + 1 :]: entry for path, entry in self.files.items() if path.startswith(f"{name}/")}


def part_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands for a part: it stays where the rest of the bundle changes."""
    lines = (f"{entry['sha256']} {path}\n" for path, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# --- making it ---------------------------------------------------------------------------------------------------


def list_files(root: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of the parts below a directory."""
    paths = sorted(path for part in PARTS for path in (root / part).rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)} for path in paths
    }


def _member(name: str, size: int) -> tarfile.TarInfo:
    """The same for the same content, whoever packs it and when."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def write_archive(root: Path, manifest: Manifest, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = manifest.text().encode()
    try:
        with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
            for name in sorted(manifest.files):
                with (root / name).open("rb") as handle:
                    archive.addfile(_member(name, manifest.files[name]["size"]), handle)
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


# --- reading it --------------------------------------------------------------------------------------------------


def read_manifest(path: str) -> Manifest:
    """The manifest of an archive. Raises BundleError where it is none that this collection made."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            handle = archive.extractfile(first) if first is not None and first.name == MANIFEST else None
            values = json.loads(handle.read()) if handle is not None else {}
    except FileNotFoundError:
        raise BundleError("there is no such file on the controller. Correct the path") from None
    except OSError as error:
        raise BundleError(f"it cannot be read on the controller: {error.strerror}. Mend that") from None
    except (tarfile.TarError, ValueError):
        values = {}
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise BundleError(f"that file is no bundle of this release of the collection. {_REBUILD}")
    try:
        return Manifest(**values)
    except TypeError:
        raise BundleError(f"that file is no bundle of this release of the collection. {_REBUILD}") from None


def extract_part(path: str, part: str, sink: IO[bytes]) -> None:
    """A part of an archive as an archive of its own."""
    with tarfile.open(path, "r:") as archive, tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as out:
        for member in archive:
            if member.name.startswith(f"{part}/") and member.isfile():
                out.addfile(_member(member.name[len(part) + 1 :], member.size), archive.extractfile(member))


# --- does it fit -------------------------------------------------------------------------------------------------

# Of these the bundle holds one thing: the inventory must ask for that.
_SAME = ("docker_source", "docker_packages", "python_env_profile", "python_env_python", "python_env_uv_version")
_SOURCE = ("python_env_source_url", "python_env_source_version")
# Of these it holds what the inventory asked for; to ask for less is fine.
_ENOUGH = ("network_env_packages", "python_env_packages", "python_env_tools")
LOCK = "python_env_lock"
SETTINGS = (*_SAME, *_SOURCE, *_ENOUGH, "cluster_shared_backend")


def deciding_settings(values: Mapping[str, Any], lock: str) -> dict[str, Any]:
    """What of an inventory decides what belongs into a bundle. ``lock`` is the text of the lock."""
    settings = {name: values[name] for name in SETTINGS if name in values}
    if settings.get("python_env_source_url"):
        settings["python_env_source_url"] = without_account(settings["python_env_source_url"])
    return {**settings, LOCK: hashlib.sha256(lock.encode()).hexdigest()}


def _lacks(built: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return not set(wanted) <= set(built or [])
    return bool(wanted) and not built


def check_settings(manifest: Manifest, wanted: Mapping[str, Any]) -> list[str]:
    """How a bundle differs from what the inventory asks for, each with the name of the variable."""
    built, problems = manifest.settings, []
    for name in _SAME:
        if built.get(name) != wanted.get(name):
            problems.append(f"{name} is {wanted.get(name)!r}, and the bundle was built for {built.get(name)!r}")
    if built.get(LOCK) != wanted.get(LOCK):
        problems.append(
            f"{LOCK} is another lock than the bundle's wheels (SHA-256 {str(wanted.get(LOCK))[:12]}, not {str(built.get(LOCK))[:12]})"
        )
    if wanted.get(_SOURCE[0]):
        problems += [
            f"{name} is '{masked(str(wanted.get(name)))}', and the bundle holds '{built.get(name)}'"
            for name in _SOURCE
            if built.get(name) != wanted.get(name)
        ]
    for name in _ENOUGH:
        if _lacks(built.get(name), wanted.get(name)):
            problems.append(f"{name} is {wanted[name]!r}, and the bundle was built for {built.get(name)!r}")
    if wanted.get("cluster_shared_backend") == "nfs" and built.get("cluster_shared_backend") != "nfs":
        problems.append("cluster_shared_backend is 'nfs', and the bundle was built without it")
    return problems


def check_system(manifest: Manifest, system: Mapping[str, str], architecture: str) -> list[str]:
    """Whether a node is what a bundle was built for."""
    have = (system["id"], system["codename"], ARCHITECTURES.get(architecture, architecture))
    built = (manifest.system, manifest.codename, manifest.architecture)
    if have == built:
        return []
    return [f"it runs {' '.join(have)}, and the bundle was built on {' '.join(built)}"]


def check_bundle(
    values: Mapping[str, Any], system: Mapping[str, str], architecture: str, lock: str
) -> tuple[Manifest | None, list[str]]:
    """The manifest of the bundle that a host is to be built from, or the problems that forbid it."""
    path, pinned = str(values["cluster_bundle"]), str(values.get("cluster_bundle_sha256") or "")
    try:
        manifest = read_manifest(path)
    except BundleError as error:
        return None, [f"cluster_bundle is '{path}', and {error}"]
    if pinned and pinned.lower() != manifest.digest:
        return None, [
            f"cluster_bundle_sha256 is '{pinned}', and the manifest of {path} has {manifest.digest}. Take the bundle "
            "that was meant, or the hash that playbooks/bundle.yml printed for this one"
        ]
    problems = check_system(manifest, system, architecture) + check_settings(manifest, deciding_settings(values, lock))
    if problems:
        return None, [f"cluster_bundle {path} does not fit: {'; '.join(problems)}. {_REBUILD}"]
    return manifest, []


# --- on a node ---------------------------------------------------------------------------------------------------


def is_present(path: Path, digest: str) -> bool:
    """Whether a part lies at a place. What was put there was checked, and the mark is written last."""
    try:
        return (path / _MARK).read_text(encoding="ascii").strip() == digest
    except OSError:
        return False


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("xb") as handle:
        while block := source.read(_BLOCK):
            digest.update(block)
            handle.write(block)
    return digest.hexdigest()


def unpack(archive: Path, files: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Put a part at its place, whole or not at all. What is there of an earlier bundle goes.

    Raises BundleError where the archive does not hold exactly the files that the manifest names.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    needed = sum(entry["size"] for entry in files.values())
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise BundleError(
            f"this part of the bundle takes {needed >> 20} MiB, and {free >> 20} are free on the disk of {path}. Make room"
        )
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    aside.chmod(0o755)
    try:
        left = dict(files)
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                entry = left.pop(member.name, None)
                handle = tar.extractfile(member)
                if entry is None or handle is None or ".." in Path(member.name).parts or member.name.startswith("/"):
                    raise BundleError(f"the bundle holds '{member.name}', which its manifest does not name")
                target = aside / member.name
                _make_directories(aside, target.parent)
                if _copy(handle, target) != entry["sha256"]:
                    raise BundleError(
                        f"'{member.name}' of the bundle is not what its manifest names: it was damaged or changed. Copy the "
                        "bundle to the controller again, or build it again"
                    )
                target.chmod(0o644)
        if left:
            raise BundleError(
                f"the bundle lacks {', '.join(sorted(left)[:3])}, which its manifest names. Copy it again"
            )
        (aside / _MARK).write_text(f"{part_digest(files)}\n", encoding="ascii")
        sync_file_system(str(aside))
        if path.exists():
            shutil.rmtree(path)
        os.rename(aside, path)
        sync_directory(str(path.parent))
    except tarfile.TarError as error:
        raise BundleError(f"the bundle cannot be unpacked: {error}. Copy it to the controller again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _make_directories(root: Path, directory: Path) -> None:
    """Whatever the umask is, others read: apt fetches as an account of its own."""
    for path in [*reversed(directory.relative_to(root).parents), directory.relative_to(root)]:
        (root / path).mkdir(mode=0o755, exist_ok=True)
        (root / path).chmod(0o755)


def lock_text(values: Mapping[str, Any]) -> str:
    """The text of the lock that an inventory asks for, or of its project's; empty where there is none."""
    project = values.get("python_env_pyproject")
    name = Path(project).with_name("uv.lock") if project else values.get(LOCK)
    try:
        return Path(name).read_text(encoding="utf-8") if name else ""
    except OSError:
        return ""
