# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount a directory of a server on first use, and see that it is that one.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from typing import Any, Callable

from . import _nfs as nfs
from ._bounded import NoAnswer, bounded
from ._fabric import TOO_LONG, Run
from ._files import Applied, Host, Wanted, apply_files
from ._nfs import NfsError
from ._tree import Tree

_COMMAND = 60
# systemd gives up an attempt after the unit's time, and says so a little later.
_MARGIN = 5
_NAMED = 5


@dataclass(frozen=True)
class Wish:
    """What shall be mounted. ``timeout`` bounds an attempt, in seconds."""

    path: str
    source: str
    options: list[str]
    timeout: int = 30


@dataclass(frozen=True)
class _State:
    """What systemd knows of the automount; ``outdated`` that one of the two units is another on the disk."""

    active: bool
    enabled: bool
    outdated: bool


def users_of(path: str, tree: Tree) -> list[str]:
    """The processes that keep a mount busy, by what the kernel says of their files: nothing is touched below ``path``."""
    found = []
    for pid in sorted((name for name in tree.names("/proc") if name.isdigit()), key=int):
        base = tree.root.rstrip("/") + f"/proc/{pid}"
        if any(nfs.inside(target, path) for target in _targets(base)):
            found.append(f"{tree.text(f'/proc/{pid}/comm') or '?'} (pid {pid}{_owner(base)})")
    return found


def _targets(base: str) -> list[str]:
    """Where a process is, and what it has open or mapped."""
    links = [f"{base}/{name}" for name in ("cwd", "root", "exe")]
    with contextlib.suppress(OSError):
        links += [f"{base}/fd/{name}" for name in os.listdir(f"{base}/fd")]
    targets = []
    for link in links:
        with contextlib.suppress(OSError):
            targets.append(os.readlink(link))
    with contextlib.suppress(OSError), open(f"{base}/maps", encoding="utf-8", errors="replace") as maps:
        targets += [fields[5].rstrip("\n") for line in maps if len(fields := line.split(None, 5)) == 6]
    return targets


def _owner(base: str) -> str:
    try:
        return f", {pwd.getpwuid(os.stat(base).st_uid).pw_name}"
    except (OSError, KeyError):
        return ""


def mount(host: Host, wish: Wish, run: Run, root: str = "/") -> dict[str, Any]:
    """Bring the mount to what ``wish`` says; the keys of a module's result. Raises NfsError.

    The path is this machine's; units and /proc lie below ``root``.
    """
    return _Client(host, wish, run, root).converge()


class _Client:
    def __init__(self, host: Host, wish: Wish, run: Run, root: str) -> None:
        problem = nfs.path_problem(wish.path)
        if problem:
            raise NfsError(problem)
        for option in wish.options:
            if not option or any(not c.isprintable() or c.isspace() or c == "\\" for c in option):
                raise NfsError(
                    f"mount option {option!r} is empty or has a blank in it. Give each option as an item of its own"
                )
        self.host, self.wish, self.run, self.tree = host, wish, run, Tree(root)
        self.root = root.rstrip("/")
        self.mount_unit = nfs.unit_name(wish.path, "mount")
        self.automount = nfs.unit_name(wish.path, "automount")
        self.changes: list[str] = []

    def converge(self) -> dict[str, Any]:
        wish = self.wish
        facts = nfs.read_shared_dir(wish.path, self.root or "/", wish.timeout + _MARGIN)
        judged = nfs.check_worker("this node", wish.path, facts, wish.source)
        if judged.problems:
            raise NfsError("; ".join(judged.problems))
        state = self._state()
        applied = self._write(check=True)
        # An earlier run may have been cut off between writing and loading.
        load = applied.changed or state.outdated
        # systemd puts no automount over what is mounted, and takes that away when it stops one, busy or not.
        unmount = self._mounted() and (self._mount_path() in applied.paths or state.outdated or not state.active)
        self.changes += applied.paths
        if not self.host.check_mode:
            if load:
                self._load(unmount)
                state = self._state()
            elif unmount:
                self._unmount()
            self._start(state)
        elif load or not (state.active and state.enabled):
            self.changes.append(self.automount)
        mounted = {} if self.host.check_mode else self._prove()
        return {"changed": bool(self.changes), "changes": self.changes, "diff": applied.diff, "mount": mounted}

    def _mount_path(self) -> str:
        return f"{self.root}{nfs.UNITS}/{self.mount_unit}"

    def _automount_path(self) -> str:
        return f"{self.root}{nfs.UNITS}/{self.automount}"

    def _write(self, check: bool) -> Applied:
        wish = self.wish
        wanted = [
            Wanted(self._mount_path(), nfs.render_mount(wish.source, wish.path, wish.options, wish.timeout)),
            Wanted(self._automount_path(), nfs.render_automount(wish.path)),
        ]
        return apply_files(_Checking(self.host) if check else self.host, wanted)

    def _load(self, unmount: bool) -> None:
        """Write and load the units, so that whoever uses the path from now on mounts by them. If the old mount is busy they are put
        back: a next run has to see that there is still something to do."""
        before = {path: _text(path) for path in (self._mount_path(), self._automount_path())}
        self._write(check=False)
        try:
            self._systemctl("daemon-reload")
            if unmount:
                self._unmount()
        except NfsError:
            apply_files(
                self.host,
                [Wanted(path, state="absent") if text is None else Wanted(path, text) for path, text in before.items()],
            )
            with contextlib.suppress(NfsError):
                self._systemctl("daemon-reload")
            raise

    def _mounted(self) -> bool:
        mounts = nfs.parse_mounts(self.tree.data("/proc/mounts").decode("utf-8", "replace"))
        return any(entry.point == self.wish.path and entry.type.startswith("nfs") for entry in mounts)

    def _unmount(self) -> None:
        """Plainly: neither lazily nor by force, which would lose what is being written."""
        path = self.wish.path
        if not self._mounted():
            return
        status, out, err = self.run(["umount", path], self.wish.timeout)
        if status == 0:
            self.changes.append(f"{path} (unmounted)")
            return
        said = " ".join((err or out).split())
        if status == TOO_LONG:
            raise NfsError(
                f"{path} could not be unmounted within {self.wish.timeout} s to be mounted anew: its server does not answer. Start the "
                f"server, or give the mount up (umount -f {path}), then run again"
            )
        users = self._users()
        more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
        busy = (
            f"It is in use by {', '.join(users[:_NAMED])}{more}. End them, then run again"
            if users
            else "Unmount it, then run again"
        )
        raise NfsError(f"{path} has to be mounted anew, and 'umount {path}' failed: {said.rstrip('.')}. {busy}")

    def _users(self) -> list[str]:
        try:
            return bounded(lambda: users_of(self.wish.path, self.tree), _MARGIN)
        except (NoAnswer, OSError):
            return []

    def _state(self) -> _State:
        properties = [f"--property={name}" for name in ("ActiveState", "UnitFileState", "NeedDaemonReload")]
        _status, out, _err = self.run(["systemctl", "show", *properties, self.automount, self.mount_unit], _COMMAND)
        # A paragraph for each unit.
        lines, outdated = out.strip().partition("\n\n")[0].splitlines(), "NeedDaemonReload=yes" in out
        return _State("ActiveState=active" in lines, "UnitFileState=enabled" in lines, outdated)

    def _start(self, state: _State) -> None:
        if not state.enabled:
            self._systemctl("enable", self.automount)
        if not state.active:
            # Too many failures before are forgotten.
            self.run(["systemctl", "reset-failed", self.automount, self.mount_unit], _COMMAND)
            self._systemctl("start", self.automount)

    def _systemctl(self, *arguments: str) -> None:
        status, out, err = self.run(["systemctl", *arguments], _COMMAND)
        if status != 0:
            said = " ".join((err or out).split())
            raise NfsError(f"'systemctl {' '.join(arguments)}' failed: {said}. See 'journalctl -b', then run again")
        if len(arguments) > 1:
            self.changes.append(f"{arguments[-1]} ({arguments[0]})")

    def _prove(self) -> dict[str, str]:
        """Use the path, and see what that has mounted."""
        wish = self.wish
        said = ""
        try:
            bounded(lambda: nfs.look_at(wish.path), wish.timeout + _MARGIN)
        except NoAnswer:
            said = f"no answer within {wish.timeout + _MARGIN} s"
        except OSError as error:
            said = error.strerror or str(error)
        mounts = nfs.parse_mounts(self.tree.data("/proc/mounts").decode("utf-8", "replace"))
        top = next((entry for entry in reversed(mounts) if entry.point == wish.path), None)
        if top and top.type == "nfs4" and nfs.same_source(top.source, wish.source) and not said:
            return {"source": top.source, "type": top.type, "options": top.options}
        seen = f"{top.source} ({top.type}) is there" if top and top.type != "autofs" else "nothing is mounted there"
        raise NfsError(
            f"{wish.source} could not be mounted on {wish.path}: {said or seen}. {self._reason()}Is the server running "
            f"(systemctl status nfs-server), does it export to this node (exportfs -v), and does a firewall let TCP port 2049 through?"
        )

    def _reason(self) -> str:
        """The last word of mount(8), where the journal has it."""
        status, out, _err = self.run(
            ["journalctl", "--quiet", "--boot", "--lines=20", "--output=cat", f"--unit={self.mount_unit}"], _COMMAND
        )
        lines = [line.strip() for line in out.splitlines() if line.startswith("mount")]
        return f"The last attempt said: '{lines[-1]}'. " if status == 0 and lines else ""


class _Checking:
    """A host that is only looked at."""

    check_mode = True

    def __init__(self, host: Host) -> None:
        self.atomic_move: Callable[[str, str], None] = host.atomic_move


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as handle:
            return handle.read()
    except OSError:
        return None
