# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flat apt repository with some packages and everything that they need, fetched by apt beside the system's own state.

apt is given directories of its own and an empty list of installed packages. So it fetches what any node of the release may
lack, checks every package as it always does, needs no root, and leaves the machine as it was.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ._access import apt_configuration
from ._bundle import BundleError, file_digest

#: Command and additional environment; returns status, output and errors.
Run = Callable[[Sequence[str], Mapping[str, str]], "tuple[int, str, str]"]


@dataclass(frozen=True)
class Group:
    """Packages of one role, fetched with what they recommend or without. Optional ones are left out where apt has none."""

    names: Sequence[str]
    recommends: bool = False
    optional: bool = False


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def configuration(root: Path, values: Mapping[str, str]) -> str:
    """apt.conf(5) for an apt that lives below ``root``; its sources are in ``sources.list.d`` there."""
    own = {
        "Dir::State": root / "state",
        "Dir::State::Lists": root / "lists",
        "Dir::State::Status": root / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": root / "sources.list.d",
        "Acquire::Languages": "none",
        # The directories are the account's that runs this: apt's own cannot write there.
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
        "APT::Keep-Downloaded-Packages": "true",
    }
    return apt_configuration(values) + "".join(f'{name} "{value}";\n' for name, value in own.items())


def prepare(root: Path, sources: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Make the directories; ``sources`` are files of sources by their name. Returns apt's environment."""
    for name in ("state", "lists/partial", "cache/archives/partial", "sources.list.d"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").write_text("", encoding="ascii")
    for path in (root / "sources.list.d").iterdir():
        path.unlink()
    for name, text in sources.items():
        (root / "sources.list.d" / name).write_text(text, encoding="utf-8")
    file = root / "apt.conf"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(configuration(root, values))
    return {"APT_CONFIG": str(file), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def files_of(simulation: str) -> list[str]:
    """The files of the packages that a simulated installation names."""
    found = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\w+)\]\)", simulation, re.MULTILINE)
    return [f"{name.partition(':')[0]}_{version.replace(':', '%3a')}_{arch}.deb" for name, version, arch in found]


def fetch(
    run: Run, root: Path, groups: Sequence[Group], environment: Mapping[str, str]
) -> tuple[list[str], dict[str, Path]]:
    """Fetch the packages of all groups and what they depend on.

    Returns the names that were asked for and are there, and the files by their name.
    """
    rc, out, err = run(["apt-get", "update", "--error-on=any", "-q"], environment)
    if rc != 0:
        raise BundleError(
            "apt cannot read the package lists on this host. Mend its sources, or the way out (cluster_proxy). It said:\n"
            f"{_tail(out + err)}"
        )
    wanted: list[str] = []
    files: dict[str, Path] = {}
    for group in groups:
        names = [name for name in group.names if not group.optional or _known(run, name, environment)]
        if not names:
            continue
        command = [
            "apt-get",
            "-q",
            "--yes",
            f"--option=APT::Install-Recommends={int(group.recommends)}",
            "install",
            *names,
        ]
        rc, plan, err = run([*command, "--simulate"], environment)
        if rc == 0:
            rc, out, err = run([*command, "--download-only"], environment)
        if rc != 0:
            raise BundleError(
                f"apt cannot fetch {', '.join(names)}. Correct the variable that names them, or this host's sources. It said:\n"
                f"{_tail(err)}"
            )
        wanted += names
        files.update((name, root / "cache/archives" / name) for name in files_of(plan))
    lost = [name for name, path in files.items() if not path.is_file()]
    if lost:
        raise BundleError(f"apt did not fetch {', '.join(lost[:3])}. Remove {root} and run again")
    return sorted(set(wanted)), files


def _known(run: Run, name: str, environment: Mapping[str, str]) -> bool:
    rc, out, _err = run(["apt-cache", "show", "--no-all-versions", name], environment)
    return rc == 0 and bool(out.strip())


def index(run: Run, directory: Path) -> str:
    """The text of ``Packages`` for a directory of packages."""
    stanzas = []
    for path in sorted(directory.glob("*.deb")):
        rc, out, err = run(["dpkg-deb", "--field", str(path)], {"LC_ALL": "C"})
        if rc != 0:
            raise BundleError(f"{path.name} is no package: {err.strip()}. Remove {path} and run again")
        stanzas.append(
            f"{out.rstrip()}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {file_digest(path)}\n"
        )
    return "\n".join(stanzas)


def source_files(etc: Path) -> dict[str, str]:
    """The host's own lists of sources, by a name that apt takes."""
    paths = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    files: dict[str, Any] = {}
    for path in paths:
        if path.is_file() and re.search(r"\.(list|sources)$", path.name):
            name = path.name if path.parent.name == "sources.list.d" else "main.list"
            files[name] = path.read_text(encoding="utf-8", errors="replace")
    return files
