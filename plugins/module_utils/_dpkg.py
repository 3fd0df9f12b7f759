# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of dpkg and apt: who holds their locks, what an interrupted run left, which packages are missing.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ._tree import read_text

Run = Callable[[Sequence[str]], "tuple[int, str, str]"]

#: What apt and dpkg lock for a change: the packages, dpkg's database, the package lists, the downloads.
LOCKS = (
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/lock",
    "var/lib/apt/lists/lock",
    "var/cache/apt/archives/lock",
)
QUERY = (
    "dpkg-query",
    "--show",
    "--showformat",
    "${Package}\\t${Architecture}\\t${Version}\\t${db:Status-Status}\\t${db:Status-Eflag}\\n",
)
# dpkg(1): every other state is where a package may stay.
UNFINISHED = ("half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")
# struct flock of a 64-bit Linux (fcntl(2)), with its padding.
_FLOCK = struct.Struct("hhqqi4x")


class DpkgError(Exception):
    """The node's packages cannot be changed; the text says why and how to mend it."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. ``pid`` is 0, and ``command`` empty, for one that this system does not show."""

    path: str
    pid: int
    command: str
    seconds: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Package:
    name: str
    architecture: str
    version: str
    state: str
    broken: bool


@dataclass(frozen=True)
class State:
    """``journal`` tells that dpkg ended before it had written down what it did: apt then refuses everything."""

    packages: Sequence[Package] = ()
    journal: bool = False

    @property
    def unfinished(self) -> list[Package]:
        return [item for item in self.packages if item.state in UNFINISHED or item.broken]


@dataclass(frozen=True)
class Outcome:
    """``mended`` are the packages, and dpkg's journal, that were brought to their end."""

    missing: list[str]
    present: list[str]
    mended: list[str] = field(default_factory=list)


# --- locks -------------------------------------------------------------------------------------------------------


def describe_process(pid: int, root: str = "/") -> tuple[str, int | None]:
    """Command line of a process and the seconds since its start; an empty one and None where it is not shown."""
    base = os.path.join(root, "proc", str(pid))
    command = " ".join(read_text(os.path.join(base, "cmdline")).replace("\0", " ").split())
    # The name in parentheses may hold anything; starttime is the 22nd field, the 20th after it.
    fields = read_text(os.path.join(base, "stat")).rpartition(")")[2].split()
    uptime = read_text(os.path.join(root, "proc/uptime")).split()
    if len(fields) < 20 or not uptime:
        return command, None
    return command, max(0, int(float(uptime[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")))


def lock_owner(path: str) -> int | None:
    """The process that would block a lock on a file, 0 for one that is not shown, or None where it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def lock_holders(root: str = "/") -> list[Holder]:
    """Who holds which lock of apt and dpkg, each process once. Needs to be root, as the locks are root's."""
    found: dict[int, Holder] = {}
    for name in LOCKS:
        path = os.path.join(root, name)
        pid = lock_owner(path)
        if pid is not None and pid not in found:
            found[pid] = Holder(path, pid, *(describe_process(pid, root) if pid else ("", None)))
    return list(found.values())


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = int(seconds)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * length:
            return f"{whole // length} {unit}"
    return f"{whole} s"


def describe_holder(holder: Holder) -> str:
    if not holder.pid:
        return f"a process that this system does not show holds {holder.path}"
    since = "" if holder.seconds is None else f", started {duration(holder.seconds)} ago"
    return f"process {holder.pid} ('{holder.command[:200] or 'unknown'}'{since}) holds {holder.path}"


# --- packages ----------------------------------------------------------------------------------------------------


def parse_packages(text: str) -> list[Package]:
    """What ``QUERY`` printed."""
    rows = (line.split("\t") for line in text.splitlines())
    return [Package(*row[:4], row[4] != "ok") for row in rows if len(row) == 5]


def has_journal(root: str = "/") -> bool:
    """Whether dpkg ended before its last changes were in its status file. apt looks for the same."""
    try:
        return any(name.isdigit() for name in os.listdir(os.path.join(root, "var/lib/dpkg/updates")))
    except OSError:
        return False


def read_state(run: Run, root: str = "/") -> State:
    rc, out, err = run(QUERY)
    if rc != 0 and not out:
        raise DpkgError(
            f"'dpkg-query --show' failed: {err.strip() or f'status {rc}'}. Mend dpkg's database (/var/lib/dpkg/status; "
            "/var/lib/dpkg/status-old and /var/backups hold earlier ones)"
        )
    return State(parse_packages(out), has_journal(root))


def matching(spec: str, packages: Iterable[Package]) -> list[Package]:
    """The packages that ``name``, ``name:architecture`` or ``name=version`` is about, in whatever state."""
    plain, _equals, version = spec.partition("=")
    name, _colon, architecture = plain.partition(":")
    return [
        item
        for item in packages
        if item.name == name
        and (not architecture or item.architecture == architecture)
        and (not version or fnmatchcase(item.version, version))
    ]


def is_installed(spec: str, packages: Iterable[Package]) -> bool:
    return any(item.state == "installed" and not item.broken for item in matching(spec, packages))


def _named(state: State) -> list[str]:
    return [f"{item.name} ({item.state})" for item in state.unfinished] + (["dpkg's journal"] if state.journal else [])


def needs_mending(state: State, names: Sequence[str], absent: Sequence[str] = ()) -> bool:
    """Whether what an interrupted dpkg left is in the way.

    Of other packages only where something is to be changed: one that somebody else's package has left half configured for
    months does not concern a node that has all it needs.
    """
    if state.journal:
        return True
    if not state.unfinished:
        return False
    changes = any(not is_installed(name, state.packages) for name in names)
    return changes or any(is_installed(name, state.packages) for name in absent)


def _lock_error(holders: Sequence[Holder], waited: float, variable: str) -> DpkgError:
    return DpkgError(
        f"Another process still held the lock of apt or dpkg after {waited:.0f} s ({variable}): "
        f"{'; '.join(map(describe_holder, holders))}. Let it finish (at boot, apt's daily jobs and unattended-upgrades run) or end "
        f"it, then run again; or set {variable} higher"
    )


# Files that a package and an administrator both changed stay the administrator's, and nobody is asked.
_KEEP = ("--force-confdef", "--force-confold")
_CONFIGURE = ("dpkg", *_KEEP, "--configure", "--pending")
_FIX = (
    "apt-get",
    "--yes",
    "--fix-broken",
    "--no-install-recommends",
    # Taking away what is broken is for people to decide.
    "--no-remove",
    "--option=DPkg::Lock::Timeout=60",
    *(f"--option=Dpkg::Options::={option}" for option in _KEEP),
    "install",
)


def _tail(text: str, lines: int = 6) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def prepare(
    run: Run,
    names: Sequence[str],
    absent: Sequence[str] = (),
    timeout: float = 600,
    variable: str = "packages_lock_timeout",
    check_mode: bool = False,
    root: str = "/",
    pause: float = 1.0,
) -> Outcome:
    """See what is missing; where something is, wait for the locks and bring an interrupted dpkg to its end.

    Raises DpkgError. In check mode nothing is waited for, and what would be mended is said.
    """
    began = time.monotonic()
    mended: list[str] = []
    said = ""
    while True:
        state = read_state(run, root)
        missing = [name for name in names if not is_installed(name, state.packages)]
        present = [name for name in absent if is_installed(name, state.packages)]
        broken = needs_mending(state, names, absent)
        if not (missing or present or broken):
            return Outcome([], [], mended)
        if check_mode:
            return Outcome(missing, present, _named(state) if broken else [])
        holders = lock_holders(root)
        if holders:
            # What a dpkg at work has unpacked is not interrupted.
            waited = time.monotonic() - began
            if waited >= timeout:
                raise _lock_error(holders, waited, variable)
            time.sleep(min(pause, max(0.05, timeout - waited)))
            continue
        if not broken:
            return Outcome(missing, present, mended)
        if mended:
            ours = [item.name for name in names for item in matching(name, state.unfinished)]
            if not state.journal and not ours:
                # Somebody else's package that cannot be configured: apt may still bring ours.
                return Outcome(missing, present, mended)
            raise DpkgError(
                f"dpkg was interrupted on this node, and 'dpkg --configure -a' and 'apt-get --fix-broken install' did not mend it: "
                f"{', '.join(_named(state))}. Run both by hand, mend what they complain about, then run again. They said:\n{said}"
            )
        mended = _named(state)
        rc, out, err = run(_CONFIGURE)
        if rc != 0 or read_state(run, root).unfinished:
            said = _tail(out + err)
            rc, out, err = run(_FIX)
            said += "\n" + _tail(out + err)
