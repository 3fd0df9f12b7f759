# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bare copies of a git repository and of its submodules, in which one commit and what it names can be cloned.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable

from ._access import masked, without_account
from ._bundle import BundleError

Run = Callable[[Sequence[str], Mapping[str, str]], "tuple[int, str, str]"]


def resolve(base: str, url: str) -> str:
    """A submodule's address as git takes it: relative ones from that of the repository around it."""
    if not url.startswith(("./", "../")):
        return url
    base = base.rstrip("/")
    while url.startswith(("./", "../")):
        up, url = url.startswith("../"), url.partition("/")[2]
        if up:
            base, _colon, _last = base.rpartition("/" if "/" in base else ":")
    return f"{base}/{url}"


def parse_modules(text: str) -> list[tuple[str, str]]:
    """Path and address of each submodule, from ``git config --list`` of its file."""
    values: dict[str, dict[str, str]] = {}
    for name, key, value in re.findall(r"^submodule\.(.+)\.(path|url)=(.*)$", text, re.MULTILINE):
        values.setdefault(name, {})[key] = value
    return [(entry["path"], entry["url"]) for entry in values.values() if len(entry) == 2]


class Mirrors:
    """Bare repositories below a directory. One that has its commit already is left as it is."""

    def __init__(self, run: Run, root: Path, environment: Mapping[str, str], submodules: bool = True) -> None:
        self._run, self.root, self._environment, self._submodules = run, root, environment, submodules
        self.directories: dict[str, str] = {}

    def _git(self, *arguments: str) -> tuple[int, str, str]:
        return self._run(["git", *arguments], self._environment)

    def _has(self, place: Path, version: str) -> str:
        """The commit that a version is, empty where the repository does not have it."""
        rc, out, _err = self._git("-C", str(place), "rev-parse", "--verify", "--quiet", f"{version}^{{commit}}")
        return out.strip() if rc == 0 else ""

    def fetch(self, url: str, version: str) -> str:
        """Copy a repository and, below it, its submodules; returns the commit."""
        name = hashlib.sha256(without_account(url).encode()).hexdigest()[:12] + ".git"
        place = self.root / name
        commit = self._has(place, version) if place.is_dir() else ""
        if not commit:
            shutil.rmtree(place, ignore_errors=True)
            rc, _out, err = self._git("clone", "--quiet", "--mirror", "--template=", url, str(place))
            if rc != 0:
                raise BundleError(
                    f"git cannot copy {masked(url)}: {masked(err.strip())}. Correct python_env_source_url, or mend the way there"
                )
            if re.fullmatch(r"[0-9a-f]{40}", version) and not self._has(place, version):
                # On no branch any more; most servers give it all the same.
                self._git("-C", str(place), "fetch", "--quiet", url, f"{version}:refs/metalray/{version}")
            commit = self._has(place, version)
        if not commit:
            raise BundleError(
                f"{masked(url)} has no commit or tag '{version}'. Correct python_env_source_version, or the submodule"
            )
        # A submodule's commit may be on no branch any more; the file then has no account either.
        config = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[uploadpack]\n\tallowAnySHA1InWant = true\n"
        (place / "config").write_text(config, encoding="ascii")
        # Empty directories are not packed, and without this one git sees no repository.
        (place / "refs/.keep").touch()
        self.directories[without_account(url)] = name
        for path, address in self._modules(place, commit) if self._submodules else ():
            rc, out, _err = self._git("-C", str(place), "ls-tree", commit, "--", path)
            found = re.match(r"160000 commit ([0-9a-f]+)\t", out)
            if rc == 0 and found:
                self.fetch(resolve(url, address), found.group(1))
        return commit

    def _modules(self, place: Path, commit: str) -> Iterator[tuple[str, str]]:
        rc, out, _err = self._git("-C", str(place), "config", "--blob", f"{commit}:.gitmodules", "--list")
        yield from parse_modules(out) if rc == 0 else ()
