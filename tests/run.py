# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the project's checks: ``tests/run.py [CHECK ...]``.

Each check writes to reports/NAME.log. All of them run; the last lines of those that failed are shown at the end.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
CACHE = ROOT / ".cache"
BIN = ROOT / ".venv" / "bin"
_LAST_LINES = 80

# Programs that the checks call, and Debian's packages with them.
_PROGRAMS = {
    "git": "git",
    "ip": "iproute2",
    "iptables-legacy": "iptables",
    "iptables-nft": "iptables",
    "nft": "nftables",
    "shellcheck": "shellcheck",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sudo": "sudo",
    "sysctl": "procps",
}
# Of modules that run on a node, and of the tests; Debian gives them to root alone.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# ansible-test fetches pip's installer from a site of its own; the standard library has one too.
_GET_PIP = """\
import subprocess, sys
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "pip=={version}"])
"""


class Failed(Exception):
    """A check has found something wrong."""


class NotRun(Exception):
    """This machine lacks what a check needs, and need not have it."""


class Check:
    """The log of a check, and the way to run its commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = REPORTS / f"{name}.log"
        self._log = self.path.open("w", encoding="utf-8")

    def run(self, *command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
        words = [str(word) for word in command]
        self._log.write(f"\n$ {' '.join(words)}\n")
        self._log.flush()
        done = subprocess.run(
            words,
            cwd=cwd,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}:{_SYSTEM_PATH}",
                "NO_COLOR": "1",
                "ANSIBLE_NOCOLOR": "1",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            raise Failed(f"'{' '.join(words[:4])} …' ended with status {done.returncode}")

    def text(self) -> str:
        self._log.flush()
        return self.path.read_text(encoding="utf-8", errors="replace")

    def last_lines(self) -> str:
        return "\n".join(self.text().splitlines()[-_LAST_LINES:])


def packages(check: Check) -> None:
    """Debian's packages that the checks call, installed where they are missing."""

    def missing() -> dict[str, str]:
        path = f"{os.environ['PATH']}:{_SYSTEM_PATH}"
        return {program: package for program, package in _PROGRAMS.items() if not shutil.which(program, path=path)}

    wanted = sorted(set(missing().values()))
    if not wanted:
        return
    if not shutil.which("apt-get"):
        raise Failed(f"not there: {', '.join(missing())}. Without apt-get they cannot be installed for you")
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    check.run(*as_root, "apt-get", "update", "-q")
    check.run(
        *as_root,
        *("env", "DEBIAN_FRONTEND=noninteractive"),
        *("apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *wanted),
    )
    if missing():
        raise Failed(f"{', '.join(missing())} not there after the installation of {' '.join(wanted)}")


def lint(check: Check) -> None:
    """Style of the Python, the playbooks and the changelog."""
    check.run("ruff", "check", ".")
    check.run("ruff", "format", "--check", ".")
    check.run("ansible-lint", "--profile", "production", "--offline", "--strict")
    check.run("antsibull-changelog", "lint")


def unit(check: Check) -> None:
    """Pure functions, and modules over real files, processes, servers and network namespaces."""
    packages(check)
    check.run(BIN / "pytest", *_pytest_options())


def _pytest_options() -> list[str]:
    options = ["-q", "--numprocesses", "auto", "--maxprocesses", "4"]
    # Root can run every test; the others leave out what root alone may do.
    return [*options, "--no-skips"] if os.geteuid() == 0 else options


def locks(check: Check) -> None:
    """Every lock still resolves from the package index, with the hashes that it has; no package is fetched."""
    try:
        check.run(BIN / "python", "tests/locks.py")
    except Failed:
        if "NOT RUN: " in check.text():
            raise NotRun("no package index answers") from None
        raise


def newest(check: Check) -> None:
    """Unit tests and a syntax check on the newest Python here and the newest ansible-core for it."""
    packages(check)
    python = newest_python()
    venv = CACHE / "newest"
    lock = ROOT / "requirements" / "test.txt"
    stamp = venv / "ready"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        check.run("uv", "venv", "--clear", "--quiet", "--python", python, venv)
        check.run("uv", "pip", "sync", "--quiet", "--require-hashes", "--python", venv / "bin/python", lock)
        stamp.touch()
    check.run(venv / "bin/python", "-m", "pytest", *_pytest_options(), "-m", "not tools")
    check.run(venv / "bin/ansible-playbook", "--version")
    check.run(venv / "bin/ansible-playbook", "--syntax-check", "-i", "inventories/sandbox", "site.yml")


def newest_python() -> str:
    """The newest CPython from 3.12 on that this machine has."""
    candidates = [shutil.which(f"python3.{minor}") for minor in range(20, 11, -1)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path) for path in sorted(pyenv.glob("3.1[2-9].*/bin/python3"), reverse=True)]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return candidate
    raise NotRun("no Python 3.12 or newer with ensurepip on PATH or in pyenv")


def installed_collection(check: Check, directory: Path) -> Path:
    """The collection as a user installs it: built, and installed offline into an empty directory."""
    check.run("ansible-galaxy", "collection", "build", "--output-path", directory)
    tarball = next(directory.glob("metalray-cluster-*.tar.gz"))
    if (ROOT / ".git").exists():
        git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
        if listed.returncode:
            raise Failed(f"git does not list the checkout's files: {listed.stderr.strip()}")
        with tarfile.open(tarball) as archive:
            shipped = {member.name for member in archive if not member.isdir()}
        strays = shipped - set(listed.stdout.split("\0")) - {"MANIFEST.json", "FILES.json"}
        if strays:
            raise Failed(f"build_ignore in galaxy.yml lets through what git ignores: {', '.join(sorted(strays)[:5])}")
    check.run("ansible-galaxy", "collection", "install", "--offline", "--no-deps", "--force", "-p", directory, tarball)
    return directory / "ansible_collections" / "metalray" / "cluster"


def sanity(check: Check) -> None:
    """ansible-test sanity on the installed copy.

    Not below the checkout: there, ansible-test asks git for the files, and git leaves out what it ignores.
    """
    packages(check)
    home = CACHE / "home"
    version = _pip_of_ansible_test()
    stand_in = home / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(_GET_PIP.format(version=version), encoding="utf-8")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(prefix="metalray-sanity-") as directory:
        copy = installed_collection(check, Path(directory))
        check.run("ansible-test", "sanity", "--local", "--python", python, "--color", "no", cwd=copy, HOME=str(home))
    if 'Running sanity test "validate-modules"' not in check.text():
        raise Failed("ansible-test ran no test")


def _pip_of_ansible_test() -> str:
    """The version of pip that ansible-test wants in its virtual environments."""
    package = importlib.util.find_spec("ansible_test")
    if not package or not package.origin:
        raise Failed("ansible-test is not installed: run 'make test'")
    source = Path(package.origin).with_name("_internal") / "python_requirements.py"
    found = re.search(r"\bpip='([0-9.]+)'", source.read_text(encoding="utf-8"))
    if not found:
        raise Failed(f"{source} names no version of pip")
    return found[1]


def scenario(name: str) -> Callable[[Check], None]:
    def run(check: Check) -> None:
        try:
            check.run("molecule", "test", "--scenario-name", name, "--destroy", "never")
        finally:
            check.run("molecule", "destroy", "--scenario-name", name)

    run.__doc__ = f"Molecule scenario '{name}'."
    return run


def cleanup(check: Check) -> None:
    """Away with the images, and with an engine that the sandbox started."""
    for name in ("test", "stages"):
        remove = ["-e", '{"sandbox_remove_all": true}']
        check.run(
            *("ansible-playbook", "-i", "inventories/sandbox", "molecule/sandbox/destroy.yml", *remove),
            METALRAY_SANDBOX=name,
        )
    check.run(*("ansible-playbook", "-i", "inventories/vm", "molecule/vm/destroy.yml", "-e", '{"vm_remove_all": true}'))


def all_checks() -> dict[str, Callable[[Check], None]]:
    scenarios = sorted({path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")})
    return {
        "packages": packages,
        _GUESTS: scenario("vm"),
        "lint": lint,
        "unit": unit,
        "locks": locks,
        "newest": newest,
        "sanity": sanity,
        **{f"molecule-{name}": scenario(name) for name in scenarios},
        "cleanup": cleanup,
    }


# The guests spend their first minutes waiting for disks, boots and a power cut. These need no nodes and are done by the time
# that Ray starts on emulated processors, which leaves nothing to share.
_GUESTS = "molecule-vm"
_BESIDE_THE_GUESTS = ("lint", "unit", "locks", "newest", "sanity")


def rounds(names: Sequence[str]) -> Iterator[list[list[str]]]:
    """What runs one after the other; in each round, the lanes that run at the same time."""
    beside = [name for name in names if name in _BESIDE_THE_GUESTS] if _GUESTS in names else []
    for name in names:
        if name == _GUESTS or name not in beside:
            yield [[name], beside] if name == _GUESTS and beside else [[name]]


@dataclass
class Report:
    """How the checks went. Its lines say which check they are about: two may run at the same time."""

    failed: dict[str, str] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)

    def run(self, names: Sequence[str], known: dict[str, Callable[[Check], None]]) -> None:
        for name in names:
            check, start = Check(name), time.monotonic()
            print(f"{name:<22} {(known[name].__doc__ or '').splitlines()[0]}", flush=True)
            try:
                known[name](check)
                outcome = "ok"
            except NotRun as reason:
                outcome = f"NOT RUN: {reason}"
                self.not_run.append(name)
            except (Failed, OSError) as error:
                outcome = f"FAILED: {error}"
                self.failed[name] = check.last_lines()
            print(f"{name:<22} {outcome} ({time.monotonic() - start:.0f} s, reports/{name}.log)", flush=True)


def main(names: Sequence[str]) -> int:
    known = all_checks()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no check named {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    REPORTS.mkdir(exist_ok=True)
    CACHE.mkdir(exist_ok=True)
    names = names or list(known)
    report, begun = Report(), time.monotonic()
    with ThreadPoolExecutor() as pool:
        for lanes in rounds(names):
            # list() raises what a lane raised.
            list(pool.map(lambda lane: report.run(lane, known), lanes))
    for name, lines in report.failed.items():
        print(f"\n===== {name}: the last lines of reports/{name}.log =====\n{lines}")
    not_run_text = f", not run: {', '.join(report.not_run)}" if report.not_run else ""
    print(f"\n{len(report.failed)} of {len(names)} checks failed{not_run_text}, {time.monotonic() - begun:.0f} s")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
