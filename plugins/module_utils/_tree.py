# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files under a root directory, so that a tree captured from another machine reads like this one's own.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import glob
import os
import stat

_BIGGEST = 1 << 20
_MOST_LINKS = 40


def read_text(path: str) -> str:
    """The text of a small file, or '' where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class Tree:
    """Reads below ``root``; paths are given as they are on the machine that the tree shows, with a leading slash.

    What cannot be read is None or empty: in sysfs a file that is not there and one that answers EINVAL mean the same, that
    the driver does not know. A file that says what cannot be adds a sentence to ``problems``.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.realpath(root)
        self.problems: list[str] = []

    def real(self, path: str) -> str:
        """``path`` without symbolic links; an absolute link starts again at the root of the tree, not of this machine."""
        todo, done, links = path.split("/")[::-1], "", 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = os.path.dirname(done).rstrip("/")
                continue
            here = f"{done}/{part}"
            try:
                target = os.readlink(self.root.rstrip("/") + here)
            except OSError:
                done = here
                continue
            links += 1
            if links > _MOST_LINKS:
                return path
            done = "" if target.startswith("/") else done
            todo += target.split("/")[::-1]
        return done or "/"

    def at(self, path: str) -> str:
        """Where ``path`` lies on this machine."""
        return path if self.root == "/" else self.root + self.real(path)

    def data(self, path: str) -> bytes:
        """The bytes of a regular file; nothing for a pipe or a device, which would keep the reader waiting."""
        try:
            with open(self.at(path), "rb", opener=_without_waiting) as handle:
                return handle.read(_BIGGEST) if stat.S_ISREG(os.fstat(handle.fileno()).st_mode) else b""
        except OSError:
            return b""

    def text(self, path: str) -> str:
        return self.data(path).decode("utf-8", "replace").strip()

    def number(self, path: str, least: int | None = None) -> int | None:
        """The number in a file. With ``least`` the file has to hold one, and no smaller one, wherever it exists."""
        text = self.text(path)
        try:
            value: int | None = int(text, 0)
        except ValueError:
            value = None
        if least is not None and (value is None or value < least) and os.path.exists(self.at(path)):
            self.problems.append(
                f"{path} says '{text[:40]}', where a number of at least {least} belongs. The driver, or a copy of /sys in this "
                "container, is broken: reload the driver or reboot the node"
            )
            return None
        return value

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; nothing for what is no directory."""
        try:
            return sorted(os.listdir(self.at(path)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.at(path))

    def glob(self, pattern: str) -> list[str]:
        base = self.root.rstrip("/")
        return sorted(found[len(base) :] for found in glob.glob(glob.escape(base) + pattern))
