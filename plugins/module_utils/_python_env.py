# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual environment built from a lock, beside the one in use, and switched to by a link.

Below the root: ``venvs/HASH`` are the environments, ``uv-VERSION`` holds uv, ``python`` what it fetched of Python, and
``cache`` is uv's, on the same disk for hard links. An environment is finished if and only if it has its record, which
is written last, when all else is on the disk; whatever has none is the rest of an interrupted build and is removed by
the next one. ``.unsynced`` is there while something builds: after a power cut it tells that what was fetched may be
there in name only.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ._files import sync_directory, sync_file_system
from ._lock import EnvError, Requirement, environment_hash, hashes_of, lock_packages, logical_lines, parse_lock
from ._pythons import fetched_version, find_python, install_python, is_fetched
from ._uv import Runner, Tools, building, ensure_uv, forget_cache, free_bytes, gib, remove, unsafe, write_record
from ._versions import (
    RECORD_FILE,
    VersionsError,
    distribution,
    distributions,
    fingerprint,
    python_version,
    read_edits,
    read_record,
    site_packages,
)

# Python reads it at its start (see its module site).
SOURCES_FILE = "metalray-sources.pth"


@dataclass(frozen=True)
class Settings(Tools):
    """The module's options."""

    lock: str = ""
    lock_name: str = ""
    wheelhouse: str = ""
    wheels: str = ""
    venv: Path = Path("/opt/metalray/venv")
    torch_backend: str = ""
    allow_builds: bool = False
    compile: bool = True
    imports: Sequence[str] = ()
    source_paths: Sequence[str] = ()
    keep: int = 1
    min_free_bytes: int = 0
    rollback: bool = False


@dataclass(frozen=True)
class Outcome:
    """``target`` is the environment that the link leads to, or would after the run that check mode stands for."""

    changed: bool
    built: bool
    target: str
    hash: str
    python: str
    packages: dict[str, str]
    drift: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    diff: dict[str, str] | None = None
    msg: str = ""


# --- environments on disk ----------------------------------------------------------------------------------------


def drift(environment: Path, record: Mapping[str, Any]) -> list[str]:
    """How an environment differs from what was built, in words; empty where it does not."""
    place = site_packages(environment)
    python = environment / "bin" / "python"
    if place is None or not python.exists():
        return ["its Python or its packages are gone"]
    try:
        version = python_version(python)
    except VersionsError:
        return ["its Python does not run"]
    before: Mapping[str, str] = record.get("entries") or {}
    after = fingerprint(environment)
    was = dict(filter(None, (distribution(entry) for entry in before)))
    now = dict(filter(None, (distribution(entry) for entry in after)))
    found = [] if version == record.get("python") else [f"its Python {record.get('python')} became {version}"]
    found += [f"{name} {now[name]} was added" for name in sorted(now.keys() - was.keys())]
    found += [f"{name} {was[name]} was removed" for name in sorted(was.keys() - now.keys())]
    for entry in sorted(before.keys() | after.keys()):
        known = distribution(entry)
        if known is None:
            if entry in before and entry not in after:
                found.append(f"{entry} was removed")
            elif entry in after and entry not in before:
                found.append(f"{entry} was added")
            elif before[entry] != after[entry]:
                found.append(f"{entry} was edited")
        elif entry in before and entry in after:
            if before[entry] != after[entry]:
                found.append(f"{known[0]} {known[1]} was installed again from elsewhere")
        elif entry in after and known[0] in was:
            found.append(f"{known[0]} {was[known[0]]} became {known[1]}")
    as_built = {distribution(entry) for entry in before if before[entry] == after.get(entry)}
    gone = before.keys() - after.keys()
    for name, edited in read_edits(environment).items():
        files = [path for path in edited.files if path.partition("/")[0] not in gone]
        if files and (name, now[name]) in as_built:
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            found.append(f"{name} {now[name]} was edited: {files[0]}{more}")
    return found + [why for why in (unsafe(environment), unsafe(place)) if why]


def _shares_edits(environment: Path) -> bool:
    """Whether a file that was edited is one of uv's cache too, by a hard link: the next build would bring it back."""
    place = site_packages(environment)
    for edited in read_edits(environment).values():
        for path in edited.files:
            with contextlib.suppress(OSError):
                if place and (place / path).stat().st_nlink > 1:
                    return True
    return False


def current_environment(venv: Path) -> Path | None:
    """Where the link leads; None where there is none yet or where it leads nowhere."""
    if venv.is_symlink():
        target = Path(os.path.realpath(venv))
        return target if target.is_dir() else None
    if venv.exists():
        raise EnvError(
            f"{venv} is not a link: an environment made by other means stands there. Move it away "
            f"(mv {venv} {venv}.old) and run this stage again"
        )
    return None


def switch(venv: Path, target: Path) -> None:
    """Let the link lead to an environment, in one step that cannot be seen half done."""
    aside = venv.with_name(f".{venv.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    aside.symlink_to(target)
    os.replace(aside, venv)
    sync_directory(str(venv.parent))
    # The order of use, for deciding which environments to keep.
    os.utime(target / RECORD_FILE)


def superfluous(venvs: Path, current: Path, keep: int) -> list[Path]:
    """Environments to remove: unfinished ones, and all but the ``keep`` last used beside the current one."""
    if not venvs.is_dir():
        return []
    others = [path for path in venvs.iterdir() if path.is_dir() and not path.is_symlink() and path != current]
    finished = [path for path in others if (path / RECORD_FILE).is_file()]
    finished.sort(key=lambda path: (path / RECORD_FILE).stat().st_mtime, reverse=True)
    return [path for path in others if path not in finished] + finished[keep:]


# --- the whole ---------------------------------------------------------------------------------------------------


def built_elsewhere(requirements: Sequence[Requirement], wheels: str) -> str:
    """A digest of the wheels that the lock itself has no hash of: those given, and those built, each of which is another."""
    locked = set().union(*(hashes_of(item.text) for item in requirements))
    lines = sorted(line for line in logical_lines(wheels) if not hashes_of(line) & locked)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


@dataclass(frozen=True)
class Target:
    """What an environment is made of. ``wheels`` is the digest of those that the lock has no hash of."""

    hash: str
    wheels: str = ""

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.hash}{self.wheels}".encode()).hexdigest()[:12] if self.wheels else self.hash[:12]

    def made(self, record: Mapping[str, Any]) -> bool:
        return record.get("hash") == self.hash and record.get("wheels", "") == self.wheels


def lead_to(sources: Sequence[str], environment: Path) -> None:
    """Let the environment's Python find modules in these directories too, after its packages."""
    place = site_packages(environment)
    if sources and place is not None:
        (place / SOURCES_FILE).write_text("".join(f"{path}\n" for path in sources), encoding="utf-8")


def build(settings: Settings, runner: Runner, uv: Path, python: Path, version: str, name: str, wanted: Target) -> Path:
    """A finished environment at ``venvs/NAME``. Whatever fails, nothing of it stays."""
    destination = settings.root / "venvs" / name
    remove(destination)
    what = f"building the environment of {settings.lock_name}"
    try:
        asked = ["--python", python]
        if is_fetched(python, settings.root) and fetched_version(python) == version:
            # Given a path, uv writes the link for the minor version instead, which leads elsewhere after the next fetch.
            asked = ["--managed-python", "--python", python.parent.parent.name]
        runner.run(what, [uv, "venv", "--no-project", "--prompt", settings.venv.name, *asked, destination])
        lock = destination / "requirements.txt"
        text = settings.wheels or settings.lock
        lock.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        options = ["--require-hashes", "--link-mode", "hardlink"]
        options += ["--compile-bytecode"] if settings.compile else []
        # By name and hash a package is the same wherever it lies: no index may hide another's.
        options += ["--index-strategy", "unsafe-best-match"]
        options += [part for directory in settings.find_links for part in ("--find-links", directory)]
        options += ["--no-index"] if settings.offline else []
        options += [] if settings.allow_builds else ["--no-build"]
        options += ["--torch-backend", settings.torch_backend] if settings.torch_backend else []
        inside = destination / "bin" / "python"
        runner.run(what, [uv, "pip", "sync", "--python", inside, *options, lock])
        runner.run(f"checking the environment of {settings.lock_name}", [uv, "pip", "check", "--python", inside])
        if settings.imports:
            # As the owner, so that the compiled files are kept: nobody else can write them later.
            runner.run(
                f"importing {', '.join(settings.imports)} in the environment of {settings.lock_name}",
                [inside, "-I", "-c", f"import {', '.join(settings.imports)}"],
                "Correct the lock, or python_env_imports",
            )
        # After the proof, which root runs: the sources are the user's.
        lead_to(settings.source_paths, destination)
        with contextlib.suppress(FileNotFoundError):
            (destination / ".lock").unlink()
        record = {
            "hash": wanted.hash,
            "lock": settings.lock_name,
            "wheels": wanted.wheels,
            "python": version,
            "interpreter": str(python),
            "uv": settings.uv_version,
            "packages": distributions(destination),
            "entries": fingerprint(destination),
        }
        sync_file_system(str(destination))
        write_record(destination, record)
    except BaseException:
        remove(destination)
        raise
    return destination


def _listing(python: str, packages: Mapping[str, str]) -> str:
    return "".join(f"{name} {version}\n" for name, version in [("python", python), *packages.items()])


def _diff(settings: Settings, before: str, target: Path, python: str, packages: Mapping[str, str]) -> dict[str, str]:
    return {
        "before_header": str(settings.venv),
        "after_header": f"{settings.venv} -> {target}",
        "before": before,
        "after": _listing(python, packages),
    }


def ready(venvs: Path, wanted: Target) -> Path | None:
    """A finished, unchanged environment of this make."""
    for path in sorted(venvs.glob(f"{wanted.name}*")):
        record = read_record(path)
        if wanted.made(record) and not drift(path, record):
            return path
    return None


def free_name(venvs: Path, wanted: Target) -> str:
    """The name for a new environment of this make: one that drifted may still be in use and keeps its own."""
    name = wanted.name
    number = 2
    while (venvs / name / RECORD_FILE).is_file():
        name = f"{wanted.name}-{number}"
        number += 1
    return name


def ensure(settings: Settings, check_mode: bool = False) -> Outcome:
    """Bring the node to its lock: leave it, switch to an environment that is there, or build one and switch.

    Raises EnvError; the environment in use is then as it was.
    """
    try:
        return _ensure(settings, check_mode)
    except VersionsError as error:
        raise EnvError(str(error)) from None


def from_wheelhouse(settings: Settings) -> Settings:
    """The same settings, with the wheelhouse as the only place to take packages from."""
    if not os.access(settings.wheelhouse, os.R_OK | os.X_OK):
        raise EnvError(
            f"the wheelhouse {settings.wheelhouse} is not there on this node, or root may not read it: over NFS, root is "
            f"nobody. Mount the shared directory (--tags nfs), let others read it (chmod o+rx on each directory above the "
            "wheels), or set python_env_wheelhouse to '' so that each node fetches for itself"
        )
    return replace(
        settings,
        find_links=[settings.wheelhouse],
        offline=True,
        index_url="",
        extra_index_urls=(),
        torch_backend="",
        allow_builds=False,
    )


def _check(settings: Settings, requirements: Sequence[Requirement], check_mode: bool) -> None:
    if settings.offline and not settings.find_links and not settings.wheelhouse:
        raise EnvError("python_env_offline is set, but python_env_find_links names no directory to install from")
    for path in settings.source_paths:
        if not path.startswith("/") or "\n" in path:
            raise EnvError(f"python_env_source_paths leads to '{path}': allowed are absolute paths of one line")
    for module in settings.imports:
        if not all(part.isidentifier() for part in module.split(".")):
            raise EnvError(f"python_env_imports names '{module}': allowed are names of modules, such as ray.train")
    if settings.ca_bundle and not Path(settings.ca_bundle).is_file() and not check_mode:
        raise EnvError(f"python_env_ca_bundle is '{settings.ca_bundle}', and there is no such file on this node")
    commits = [item.name for item in requirements if item.commit]
    if commits and not settings.wheelhouse:
        raise EnvError(
            f"the lock {settings.lock_name} names {', '.join(commits)} by a commit, which is built once, in the wheelhouse, and "
            "python_env_wheelhouse is empty. Leave it at its default, or lock a release"
        )


def _ensure(settings: Settings, check_mode: bool) -> Outcome:
    requirements = parse_lock(settings.lock, settings.lock_name)
    _check(settings, requirements, check_mode)
    venvs = settings.root / "venvs"
    current = current_environment(settings.venv)
    record = read_record(current) if current else {}
    found = find_python(settings)
    changes: list[str] = []

    def target_of(version: str) -> Target:
        built = built_elsewhere(requirements, settings.wheels)
        if settings.wheelhouse and not settings.wheels:
            # In check mode, where the wheelhouse is still to be filled: what was built then will do again.
            built = str(record.get("wheels", ""))
        return Target(environment_hash(requirements, version, settings.uv_version, settings.source_paths), built)

    if settings.rollback:
        return _roll_back(settings, requirements, current, found[1] if found else "", check_mode)
    if found and current and record:
        wanted = target_of(found[1])
        changes = drift(current, record)
        if wanted.made(record) and not changes:
            return Outcome(False, False, str(current), wanted.hash, found[1], distributions(current))
    before = _listing(str(record.get("python", "")), distributions(current)) if current and record else ""

    if check_mode:
        version = found[1] if found else settings.python
        wanted = target_of(version)
        target = ready(venvs, wanted) or venvs / free_name(venvs, wanted)
        packages = lock_packages(requirements, version)
        verb = "switch to" if target.is_dir() else "build"
        return Outcome(
            True,
            verb == "build",
            str(target),
            wanted.hash,
            version,
            packages,
            changes,
            diff=_diff(settings, before, target, version, packages),
            msg=f"would {verb} {target} with {len(packages)} packages{_because(changes)}",
        )

    source = from_wheelhouse(settings) if settings.wheelhouse else settings
    with building(settings) as runner:
        local = replace(runner, settings=source)
        uv = None
        if not found:
            uv = ensure_uv(source, local)
            found = install_python(settings, runner, uv)
        python, version = found
        wanted = target_of(version)
        target = ready(venvs, wanted)
        built = target is None
        if target is None:
            room = free_bytes(venvs)
            if room < settings.min_free_bytes:
                raise EnvError(
                    f"{gib(room)} are free on the disk of {settings.root}; a build needs "
                    f"{gib(settings.min_free_bytes)} (python_env_min_free_bytes). Make room, for instance with "
                    f"'rm -rf {settings.root}/cache', or set python_env_root to another disk"
                )
            uv = uv or ensure_uv(source, local)
            if current and _shares_edits(current):
                forget_cache(settings)
            target = build(source, local, uv, python, version, free_name(venvs, wanted), wanted)
        settings.venv.parent.mkdir(parents=True, exist_ok=True)
        switch(settings.venv, target)
        removed = superfluous(venvs, target, settings.keep)
        for path in removed:
            remove(path)
    packages = distributions(target)
    return Outcome(
        True,
        built,
        str(target),
        wanted.hash,
        version,
        packages,
        changes,
        [str(path) for path in removed],
        _diff(settings, before, target, version, packages),
        f"{'built' if built else 'switched to'} {target} with {len(packages)} packages{_because(changes)}",
    )


def _roll_back(
    settings: Settings, requirements: Sequence[Requirement], current: Path | None, python: str, check_mode: bool
) -> Outcome:
    """Switch to the environment that was in use last before that of the lock; where it is in use, leave it."""
    record = read_record(current) if current else {}
    own = environment_hash(
        requirements, python or str(record.get("python", "")), settings.uv_version, settings.source_paths
    )
    target, kept = current or settings.root, record
    if not record or record.get("hash") == own:
        venvs = settings.root / "venvs"
        finished = sorted(venvs.glob(f"*/{RECORD_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in (path.parent for path in finished):
            kept = read_record(path)
            if kept.get("hash") not in (None, own) and not drift(path, kept):
                target = path
                break
        else:
            raise EnvError(
                f"python_env_rollback is set, and this node keeps no environment of another lock than {settings.lock_name} "
                f"below {venvs} that is as it was built. Take python_env_rollback away, and name the lock to go back to in "
                "python_env_lock; python_env_keep says how many are kept"
            )
    changed = target != current
    if changed and not check_mode:
        with building(settings):
            switch(settings.venv, target)
    packages = distributions(target)
    before = _listing(str(record.get("python", "")), distributions(current)) if current and record else ""
    return Outcome(
        changed,
        False,
        str(target),
        str(kept["hash"]),
        str(kept["python"]),
        packages,
        diff=_diff(settings, before, target, str(kept["python"]), packages) if changed else None,
        msg=f"{'would go' if check_mode else 'went'} back to {target}" if changed else "",
    )


def _because(changes: Sequence[str]) -> str:
    if not changes:
        return ""
    shown = "; ".join(changes[:8]) + (f" and {len(changes) - 8} more" if len(changes) > 8 else "")
    return f", because the one in use is no longer as it was built: {shown}"
