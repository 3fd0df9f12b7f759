# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a set of small text files to a wanted state: atomic, with diff and check mode.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

# The option ``files`` of every module that writes some; its documentation is the fragment ``files``.
FILES_OPTION: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "default": ""},
        "mode": {"type": "str", "default": "0644"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
        "secret": {"type": "bool", "default": False, "no_log": False},
    },
}


class Host(Protocol):
    """The part of AnsibleModule that writing needs."""

    check_mode: bool

    def atomic_move(self, src: str, dest: str) -> None: ...


class FilesError(Exception):
    """A file cannot be brought to its wanted state; the text says which and why."""


@dataclass(frozen=True)
class Wanted:
    """One file, directory or absence.

    ``content`` is text for ``state='file'``; ``mode`` is octal text as in ``'0644'``; ``owner`` and ``group`` are names,
    or ``None`` to leave them as they are.
    """

    path: str
    content: str = ""
    mode: str = "0644"
    owner: str | None = None
    group: str | None = None
    state: str = "file"
    secret: bool = False


@dataclass(frozen=True)
class Applied:
    """``paths`` that changed, and one diff entry for each of them."""

    paths: list[str]
    diff: list[dict[str, str]]

    @property
    def changed(self) -> bool:
        return bool(self.paths)


def _ids(wanted: Wanted, lenient: bool) -> tuple[int, int]:
    """Numeric owner and group, -1 for 'leave it'. In check mode an account may not exist yet."""
    ids = []
    for name, look_up in (
        (wanted.owner, lambda n: pwd.getpwnam(n).pw_uid),
        (wanted.group, lambda n: grp.getgrnam(n).gr_gid),
    ):
        try:
            ids.append(-1 if name is None else look_up(name))
        except KeyError:
            if not lenient:
                raise FilesError(f"{wanted.path}: no account or group named '{name}' on this node") from None
            ids.append(-1)
    return ids[0], ids[1]


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise FilesError(f"{path}: a part of this path is a file, not a directory") from None
    except IsADirectoryError:
        raise FilesError(f"{path}: a directory stands where a file is wanted; move it away") from None
    except OSError as error:
        raise FilesError(f"{path}: cannot be read ({error.strerror})") from None


def _attributes(path: str) -> tuple[str, int, int]:
    info = os.stat(path)
    return f"{stat.S_IMODE(info.st_mode):04o}", info.st_uid, info.st_gid


def _differs(path: str, mode: str, uid: int, gid: int) -> bool:
    have_mode, have_uid, have_gid = _attributes(path)
    return have_mode != mode or (uid != -1 and have_uid != uid) or (gid != -1 and have_gid != gid)


def _make_parents(path: str) -> None:
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        # An explicit mode: root's umask on a hardened host would lock everybody else out.
        _make_parents(parent)
        os.mkdir(parent)
        os.chmod(parent, 0o755)


def sync_directory(path: str) -> None:
    """Let the names in a directory survive a power cut, where its file system can promise that."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: str) -> None:
    """Let everything on the file system of ``path`` survive a power cut. Unlike sync(2) it waits for no other one.

    Raises OSError where the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


def _write(host: Host, path: str, content: str, mode: str, uid: int, gid: int) -> None:
    _make_parents(path)
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".metalray-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
            handle.write(content)
            handle.flush()
            os.chmod(temporary, int(mode, 8))
            os.chown(temporary, uid, gid)
            # Or a power cut may leave the new name with nothing in it. atomic_move does not do it.
            os.fsync(handle.fileno())
        host.atomic_move(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    os.chmod(path, int(mode, 8))
    os.chown(path, uid, gid)
    sync_directory(os.path.dirname(path))


def _apply_one(host: Host, wanted: Wanted) -> dict[str, str] | None:
    """Bring one path to its state; the diff entry, or None where nothing differed."""
    mode = f"{int(wanted.mode, 8):04o}"
    uid, gid = _ids(wanted, lenient=host.check_mode)
    path = wanted.path

    if wanted.state == "absent":
        if not os.path.lexists(path):
            return None
        before = "" if wanted.secret else (_read(path) or "")
        if not host.check_mode:
            os.unlink(path)
        return {"before_header": path, "after_header": f"{path} (absent)", "before": before, "after": ""}

    if wanted.state == "directory":
        present = os.path.isdir(path)
        if present and not _differs(path, mode, uid, gid):
            return None
        if not present and os.path.lexists(path):
            raise FilesError(f"{path}: a file stands where a directory is wanted; move it away")
        if not host.check_mode:
            if not present:
                _make_parents(path)
                os.mkdir(path)
            os.chmod(path, int(mode, 8))
            os.chown(path, uid, gid)
        return {"before_header": path, "after_header": f"{path} (directory {mode})", "before": "", "after": ""}

    before = _read(path)
    if before == wanted.content and not _differs(path, mode, uid, gid):
        return None
    if not host.check_mode:
        _write(host, path, wanted.content, mode, uid, gid)
    hidden = "(not shown)\n"
    return {
        "before_header": path,
        "after_header": f"{path} ({mode})",
        "before": hidden if wanted.secret else before or "",
        "after": hidden if wanted.secret else wanted.content,
    }


def apply_files(host: Host, wanted: Iterable[Wanted]) -> Applied:
    """Bring every path of ``wanted`` to its state, in order.

    In check mode nothing is written and the same answer is given. Raises FilesError, naming the path.
    """
    diffs = []
    for item in wanted:
        try:
            entry = _apply_one(host, item)
        except OSError as error:
            raise FilesError(f"{item.path}: {error.strerror}; nothing after this file was written") from None
        if entry is not None:
            diffs.append((item.path, entry))
    return Applied(paths=[path for path, _entry in diffs], diff=[entry for _path, entry in diffs])


def as_result(applied: Applied) -> dict[str, Any]:
    """The keys that a module's result gets from an application."""
    return {"changed": applied.changed, "paths": applied.paths, "diff": applied.diff}
