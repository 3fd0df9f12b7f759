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

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._access import masked, trusted_hosts
from ._files import sync_directory, sync_file_system
from ._versions import (
    RECORD_FILE,
    VersionsError,
    distribution,
    distributions,
    normalised,
    python_version,
    read_record,
    site_packages,
)

_SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNSYNCED = ".unsynced"
# Of the caller's environment: these would lead uv or Python elsewhere.
_UNWANTED = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT")


class EnvError(Exception):
    """The environment cannot be brought to its lock; the text says why and how to mend it."""


@dataclass(frozen=True)
class Settings:
    """The module's options."""

    lock: str
    lock_name: str
    uv_version: str
    uv_lock: str
    root: Path = Path("/opt/metalray")
    venv: Path = Path("/opt/metalray/venv")
    python: str = "/usr/bin/python3"
    index_url: str = ""
    extra_index_urls: Sequence[str] = ()
    find_links: Sequence[str] = ()
    ca_bundle: str = ""
    torch_backend: str = ""
    offline: bool = False
    allow_builds: bool = False
    compile: bool = True
    imports: Sequence[str] = ()
    keep: int = 1
    min_free_bytes: int = 0
    timeout: int = 1800


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


# --- the lock ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requirement:
    name: str
    version: str
    marker: str
    text: str


def logical_lines(text: str) -> Iterator[str]:
    """The lines of a requirements file without comments, continuation lines joined, blanks squeezed."""
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line)
        if bare.strip():
            yield " ".join(bare.split())


def parse_lock(text: str, name: str) -> list[Requirement]:
    """The requirements of a lock. Raises EnvError unless each is pinned to one version and carries hashes."""
    found: list[Requirement] = []
    loose: list[str] = []
    for line in logical_lines(text):
        if line.startswith("-"):
            raise EnvError(
                f"the lock {name} carries the option '{line.split()[0]}': a lock lists packages only. Indexes and "
                "directories have variables of their own (python_env_index_url, python_env_find_links, ...); leave a "
                "project itself out with 'uv export --no-emit-project'"
            )
        head, _space, hashes = line.partition(" --hash=")
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*(==\s*[^\s;,*]+|@\s*\S+)\s*(?:;\s*(.+))?", head)
        if match is None or not hashes:
            loose.append(head)
            continue
        pin = match.group(2)
        version = pin[2:].strip() if pin.startswith("==") else _wheel_version(pin[1:].strip())
        found.append(Requirement(normalised(match.group(1)), version, (match.group(3) or "").strip(), line))
    if loose:
        shown = ", ".join(loose[:5]) + (f" and {len(loose) - 5} more" if len(loose) > 5 else "")
        raise EnvError(
            f"the lock {name} does not pin each package to one version with hashes: {shown}. Make it with "
            "'uv pip compile --generate-hashes'"
        )
    if not found:
        raise EnvError(f"the lock {name} names no package. Make it with 'uv pip compile --generate-hashes'")
    return found


def _wheel_version(url: str) -> str:
    parts = url.rpartition("/")[2].split("-")
    return parts[1] if len(parts) > 2 else url


def environment_hash(requirements: Sequence[Requirement], python: str, uv: str) -> str:
    """What names an environment: the lock without its comments and order, Python's full version, and uv's."""
    lines = sorted(item.text for item in requirements)
    return hashlib.sha256("\n".join([f"python {python}", f"uv {uv}", *lines]).encode()).hexdigest()


def marker_environment(python: str) -> dict[str, str]:
    """The values that environment markers are about, for CPython on this node."""
    return {
        "os_name": os.name,
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
    }


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))


def _compare(left: str, operator: ast.cmpop, right: str) -> bool:
    if isinstance(operator, ast.In):
        return left in right
    if isinstance(operator, ast.NotIn):
        return left not in right
    equal = isinstance(operator, ast.Eq)
    if right.endswith(".*") and (equal or isinstance(operator, ast.NotEq)):
        prefix = _release(right[:-2])
        return (_release(left)[: len(prefix)] == prefix) is equal
    a: Any = left
    b: Any = right
    if left[:1].isdigit() and right[:1].isdigit():
        a, b = _release(left), _release(right)
        width = max(len(a), len(b))
        a, b = a + (0,) * (width - len(a)), b + (0,) * (width - len(b))
    compared = {
        ast.Eq: a == b,
        ast.NotEq: a != b,
        ast.Lt: a < b,
        ast.LtE: a <= b,
        ast.Gt: a > b,
        ast.GtE: a >= b,
    }
    return compared[type(operator)]


def marker_holds(marker: str, values: Mapping[str, str]) -> bool:
    """Whether a marker holds. Markers are nearly Python's own syntax; one that is not is taken to hold.

    Only for showing what a build will bring: uv decides.
    """

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        raise ValueError(ast.dump(node))

    def holds(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            return (all if isinstance(node.op, ast.And) else any)(holds(item) for item in node.values)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return _compare(text(node.left), node.ops[0], text(node.comparators[0]))
        raise ValueError(ast.dump(node))

    try:
        return not marker or holds(ast.parse(marker, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, TypeError):
        return True


def lock_packages(requirements: Sequence[Requirement], python: str) -> dict[str, str]:
    """What a lock brings to this node under a version of Python."""
    values = marker_environment(python)
    return dict(sorted((item.name, item.version) for item in requirements if marker_holds(item.marker, values)))


# --- environments on disk ----------------------------------------------------------------------------------------


def fingerprint(environment: Path) -> dict[str, str]:
    """Each entry of the place for packages; a distribution's with the digest of its list of files and their hashes."""
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
        entries[entry] = digest
    return entries


def _unsafe(path: Path) -> str:
    """Why others than the owner that builds could change a path; empty where they cannot."""
    info = path.stat()
    if info.st_uid != os.geteuid():
        return f"{path} belongs to the account with id {info.st_uid}"
    if info.st_mode & 0o022:
        return f"{path} can be written by others"
    return ""


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
        elif entry in before and entry in after:
            if before[entry] != after[entry]:
                found.append(f"{known[0]} {known[1]} was installed again from elsewhere")
        elif entry in after and known[0] in was:
            found.append(f"{known[0]} {was[known[0]]} became {known[1]}")
    return found + [why for why in (_unsafe(environment), _unsafe(place)) if why]


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


# --- running things ----------------------------------------------------------------------------------------------

Causes = Sequence[tuple[str, str, str]]

_UNREACHABLE = (
    r"dns error|Name or service not known|name resolution|tcp connect error|Connection refused|timed out"
    r"|Network is unreachable|NewConnectionError|Failed to fetch|error sending request|Max retries"
)
# What a failure's text says, the cause in our words, and the mend. The first that matches counts.
_DISK_OR_TRUST: Causes = (
    (
        r"No space left on device|os error 28|Disk quota exceeded",
        "the disk is full",
        "Make room on the disk of {root}, for instance with 'rm -rf {root}/cache', or set python_env_root elsewhere",
    ),
    (
        r"invalid peer certificate|CERTIFICATE_VERIFY_FAILED|UnknownIssuer|certificate verify failed",
        "the server's certificate is not signed by an authority that this node trusts",
        "Put the authority's certificate on the node and name its file in python_env_ca_bundle",
    ),
)
_CAUSES: Causes = (
    *_DISK_OR_TRUST,
    (
        r"Hash mismatch|DO NOT MATCH THE HASHES",
        "a package is not the one that was locked: its hash differs",
        "Find out whether the index or the directory serves a changed file, or the lock is old; a lock made for one "
        "build of a package (+cpu, +cu130) fits that build only",
    ),
    (
        r"--find-links. directory",
        "a directory of packages is missing on this node",
        "Put the directory on the node, or correct python_env_find_links",
    ),
    (
        r"Python ABI tag|requires a different Python|Requires-Python|Python requirement|Python>=|Python version",
        "a locked package has nothing for this node's Python",
        "Use a lock made for this Python, or set python_env_python to the version that the lock was made for",
    ),
    (
        r"no wheels with a matching platform|matching platform tag|manylinux",
        "a locked package has nothing for this node's platform (processor or glibc)",
        "Use a lock made for this platform",
    ),
    (
        r"building from source is disabled|no usable wheels",
        "a locked package has no wheel for this node's Python and platform, and building from source is off",
        "Use a lock made for this Python, put a built wheel in python_env_find_links, or set python_env_allow_builds",
    ),
    (
        _UNREACHABLE,
        "the package index cannot be reached",
        "Check this node's way out, set python_env_index_url to a mirror that it reaches and python_env_environment to "
        "the proxy, or put the packages in python_env_find_links and set python_env_offline",
    ),
    (
        r"HTTP status (client|server) error|401 Unauthorized|403 Forbidden",
        "the package index refused",
        "Check python_env_index_url and its account",
    ),
    (
        r"no version of|not found in the package (registry|index)|not found in the provided package locations"
        r"|No matching distribution|No solution found",
        "a locked package is not in the index or the directories given",
        "Check python_env_index_url, python_env_extra_index_urls and python_env_find_links, or use another lock",
    ),
    (
        r"ensurepip is not available|No module named (venv|ensurepip)",
        "Python cannot make virtual environments",
        "Install python3-venv, which python_env_packages names by default",
    ),
    (
        r"incompatibilit(y|ies)",
        "the lock is not consistent in itself",
        "Make the lock again with 'uv pip compile --generate-hashes'",
    ),
)

# Variables of uv's environment that lead it to Pythons elsewhere than its own list does.
_PYTHON_SOURCES = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL")
_OTHER_PYTHON = "install that Python on the node and set python_env_python to its path"
_REACH_PYTHON = (
    "Let the node reach where uv's builds are (HTTPS_PROXY in python_env_environment), name a mirror of them there "
    "(UV_PYTHON_INSTALL_MIRROR, or UV_PYTHON_DOWNLOADS_JSON_URL with a list of your own; file:// works), or "
    f"{_OTHER_PYTHON}"
)
# The index of packages has no part in fetching Python.
_PYTHON_CAUSES: Causes = (
    *_DISK_OR_TRUST,
    (
        r"No download found for request",
        "uv knows no such version",
        "Set python_env_python to one that it knows ('{root}/uv-*/bin/uv python list --all-versions' on the node), name a "
        f"list that has it (UV_PYTHON_DOWNLOADS_JSON_URL in python_env_environment), or {_OTHER_PYTHON}",
    ),
    (
        r"Hash mismatch",
        "what was fetched is not what uv's list names: its hash differs",
        "Find out whether the mirror serves a changed file, or the list in UV_PYTHON_DOWNLOADS_JSON_URL is old",
    ),
    (
        r"Network connectivity is disabled",
        "python_env_offline is set, and uv's list of Pythons leads away from the node",
        "Let it name addresses with file:// on the node, or take python_env_offline away",
    ),
    (
        rf"{_UNREACHABLE}|HTTP status|failed to query metadata|failed to open file|Invalid download URL",
        "it cannot be fetched from where uv looks for it",
        _REACH_PYTHON,
    ),
    (r"", "it failed", _REACH_PYTHON),
)


def explain(output: str, root: Path, causes: Causes = _CAUSES) -> tuple[str, str]:
    """The cause and the mend for the output of uv or pip."""
    for pattern, cause, mend in causes:
        if re.search(pattern, output):
            return cause, mend.format(root=root)
    return "it failed", "Read its words below"


def tail(output: str, lines: int = 12) -> str:
    kept = [line.rstrip() for line in masked(output).splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in kept[-lines:])


def tool_environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """Environment of uv and pip. Index addresses may hold an account, so they are not put on a command line."""
    values = {name: value for name, value in base.items() if name not in _UNWANTED}
    values.update(
        UV_NO_CONFIG="1",
        UV_CACHE_DIR=str(settings.root / "cache"),
        UV_PYTHON_INSTALL_DIR=str(settings.root / "python"),
        UV_NO_PROGRESS="1",
        NO_COLOR="1",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
    )
    bundle = settings.ca_bundle or (str(_SYSTEM_BUNDLE) if _SYSTEM_BUNDLE.is_file() else "")
    if bundle:
        values.update(SSL_CERT_FILE=bundle, PIP_CERT=bundle, REQUESTS_CA_BUNDLE=bundle)
    values.update(trusted_hosts([settings.index_url, *settings.extra_index_urls]))
    if settings.index_url:
        values.update(UV_DEFAULT_INDEX=settings.index_url, PIP_INDEX_URL=settings.index_url)
    if settings.extra_index_urls:
        values.update(dict.fromkeys(("UV_INDEX", "PIP_EXTRA_INDEX_URL"), " ".join(settings.extra_index_urls)))
    if settings.find_links:
        values["PIP_FIND_LINKS"] = " ".join(settings.find_links)
    if settings.offline:
        values.update(UV_OFFLINE="1", PIP_NO_INDEX="1")
    return values


@dataclass
class Runner:
    """Starts the tools of one build, all of them within one time limit."""

    settings: Settings
    deadline: float
    lock_fd: int = -1

    def run(self, what: str, command: Sequence[str | Path], given: str = "", causes: Causes = _CAUSES) -> str:
        """Run a command to its end and return its output.

        Raises EnvError, saying what was being done. Without a ``given`` mend, cause and mend are those of ``causes`` that
        the output tells.
        """
        argv = [str(part) for part in command]
        try:
            # Not AnsibleModule.run_command: what is started gets its own session and a lock, see below.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=tool_environment(self.settings, os.environ),
                cwd="/",
                start_new_session=True,
                # Held by what is started too: if this process dies, the next run waits for the orphan to end.
                pass_fds=[self.lock_fd] if self.lock_fd >= 0 else [],
            )
        except OSError as error:
            raise EnvError(f"{what}: {argv[0]} cannot be started ({error.strerror})") from None
        try:
            output, _none = process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _none = process.communicate()
            raise EnvError(
                f"{what}: not done within {self.settings.timeout} seconds (python_env_timeout). What it fetched is "
                f"kept, so that the next run goes on from there. Its last words:\n{tail(output)}"
            ) from None
        if process.returncode != 0:
            cause, mend = ("it failed", given) if given else explain(output, self.settings.root, causes)
            said = f"{Path(argv[0]).name} ended with {process.returncode} and said:\n{tail(output, 1 if given else 12)}"
            raise EnvError(f"{what}: {cause}. {mend}.\n{said}")
        return output


@contextlib.contextmanager
def building(settings: Settings) -> Iterator[Runner]:
    """The right to build on this node, held by one run at a time; with permissions that let others read."""
    deadline = time.monotonic() + settings.timeout
    mask = os.umask(0o022)
    descriptor = -1
    try:
        for directory in (settings.root, settings.root / "venvs"):
            directory.mkdir(parents=True, exist_ok=True)
            if _unsafe(directory):
                os.chown(directory, os.geteuid(), os.getegid())
                directory.chmod(0o755)
        descriptor = os.open(settings.root / ".building", os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvError(
                        f"another run has been building below {settings.root} for {settings.timeout} seconds "
                        "(python_env_timeout); wait for its end or stop it"
                    ) from None
                time.sleep(0.5)
        _begin(settings)
        _close_locks(settings)
        try:
            yield Runner(settings, deadline, descriptor)
        finally:
            _end(settings)
    except OSError as error:
        raise EnvError(f"{error.filename or settings.root}: {error.strerror}") from None
    finally:
        os.umask(mask)
        if descriptor >= 0:
            os.close(descriptor)


def _begin(settings: Settings) -> None:
    """Throw away what a power cut may have emptied: uv takes what is in its cache, and a Python that is there, as whole."""
    mark = settings.root / _UNSYNCED
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    with contextlib.suppress(FileNotFoundError):
        if mark.read_text(encoding="ascii", errors="replace").strip() != boot:
            _remove(settings.root / "cache")
            records = map(read_record, (settings.root / "venvs").iterdir())
            used = [os.path.realpath(record["interpreter"]) for record in records if "interpreter" in record]
            for fetched in settings.root.glob("python/*"):
                if not any(path.startswith(f"{os.path.realpath(fetched)}/") for path in used):
                    _remove(fetched)
    mark.write_text(f"{boot}\n", encoding="ascii")
    sync_file_system(str(settings.root))


def _close_locks(settings: Settings) -> None:
    """Make uv's own locks before it does: it would let everybody write them, and whoever may read one may hold it."""
    for directory in (settings.root / "cache", settings.root / "python"):
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _end(settings: Settings) -> None:
    sync_file_system(str(settings.root))
    (settings.root / _UNSYNCED).unlink()


def free_bytes(path: Path) -> int:
    """Room on the disk that a path is or will be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


# --- Python and uv -----------------------------------------------------------------------------------------------


def is_version(python: str) -> bool:
    return re.fullmatch(r"3\.\d+(\.\d+)?", python) is not None


def fetched_version(python: Path) -> str:
    """The full version of a Python that uv fetched, as its directory tells; empty for any other."""
    match = re.match(r"cpython-(3\.\d+\.\d[^-+]*)-", python.parent.parent.name)
    return match.group(1) if match and python.parent.name == "bin" else ""


def python_candidates(wanted: str, root: Path) -> list[Path]:
    """Where the node may have the Python that is asked for, best first: its own, then what uv fetched, newest first.

    Directories are real ones: uv keeps a link for each minor version and leads it to the newest that it fetched, under
    an environment that came in by the link.
    """
    if wanted.startswith("/"):
        paths = [Path(wanted)]
    else:
        name = "python" + ".".join(wanted.split(".")[:2])
        paths = [Path("/usr/bin", name), Path("/usr/local/bin", name)]
        fetched = (place / name for place in root.glob("python/*/bin"))
        paths += sorted(fetched, key=lambda path: (_release(fetched_version(path)), str(path)), reverse=True)
    real = (Path(os.path.realpath(path.parent)) / path.name for path in paths)
    return [path for path in dict.fromkeys(real) if path.exists()]


def _is_fetched(python: Path, root: Path) -> bool:
    return Path(os.path.realpath(root / "python")) in python.parents


def find_python(settings: Settings) -> tuple[Path, str] | None:
    """The interpreter that is asked for and its full version; None where the node has none such yet."""
    wanted = settings.python
    if not wanted.startswith("/") and not is_version(wanted):
        raise EnvError(f"python_env_python is '{wanted}': allowed is an absolute path, or a version such as 3.12.16")
    for candidate in python_candidates(wanted, settings.root):
        try:
            version = python_version(candidate)
        except VersionsError:
            # One that uv fetched may be the rest of a power cut: the next build fetches it again.
            if not _is_fetched(candidate, settings.root):
                raise
            continue
        if wanted.startswith("/") or f"{version}.".startswith(f"{wanted}."):
            return candidate, version
    return None


def install_python(settings: Settings, runner: Runner, uv: Path) -> tuple[Path, str]:
    """The interpreter that is asked for, fetched by uv where the node has none."""
    if not is_version(settings.python):
        raise EnvError(
            f"python_env_python is '{settings.python}', and there is no such file on this node. Install it, or set the "
            "variable to another path or to a version such as 3.12.16"
        )
    if settings.offline and not any(os.environ.get(name, "").startswith(("/", "file:")) for name in _PYTHON_SOURCES):
        raise EnvError(
            f"no Python {settings.python} on this node, and python_env_offline forbids fetching one from elsewhere. Set "
            "python_env_python to a version that is there, lead uv to a copy on the node in python_env_environment "
            f"({' or '.join(_PYTHON_SOURCES)} with file://), or {_OTHER_PYTHON}"
        )
    command = [uv, "python", "install", "--no-bin", settings.python]
    runner.run(f"fetching Python {settings.python}", command, causes=_PYTHON_CAUSES)
    found = find_python(settings)
    if found is None:
        raise EnvError(f"uv fetched Python {settings.python}, but it is not below {settings.root}/python")
    return found


def ensure_uv(settings: Settings, runner: Runner) -> Path:
    """The pinned uv, in a virtual environment of its own in which there is nothing else."""
    home = settings.root / f"uv-{settings.uv_version}"
    uv = home / "bin" / "uv"
    done = home / RECORD_FILE
    if done.is_file() and uv.is_file():
        return uv
    for line in logical_lines(settings.uv_lock):
        if line.split()[0] == f"uv=={settings.uv_version}" and "--hash=" in line:
            break
    else:
        raise EnvError(
            f"python_env_uv_version is {settings.uv_version}, for which python_env_uv_lock has no hashes. Leave both "
            "at their defaults, or name a file made by 'uv pip compile --generate-hashes'"
        )
    _remove(home)
    python = _SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else Path(sys.executable)
    try:
        runner.run("making the virtual environment of uv", [python, "-m", "venv", home])
        pins = home / "requirements.txt"
        pins.write_text(line.replace(" --hash=", " \\\n    --hash=") + "\n", encoding="utf-8")
        options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet"]
        runner.run(f"installing uv {settings.uv_version}", [home / "bin" / "pip", "install", *options, "-r", pins])
    except BaseException:
        _remove(home)
        raise
    sync_file_system(str(home))
    _write_record(home, {"uv": settings.uv_version})
    for other in settings.root.glob("uv-*"):
        if other != home:
            _remove(other)
    return uv


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _write_record(environment: Path, record: Mapping[str, Any]) -> None:
    aside = environment / f".{RECORD_FILE}"
    with aside.open("w", encoding="utf-8") as handle:
        handle.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, environment / RECORD_FILE)
    sync_directory(str(environment))


# --- the whole ---------------------------------------------------------------------------------------------------


def build(settings: Settings, runner: Runner, uv: Path, python: Path, version: str, name: str, digest: str) -> Path:
    """A finished environment at ``venvs/NAME``. Whatever fails, nothing of it stays."""
    destination = settings.root / "venvs" / name
    _remove(destination)
    what = f"building the environment of {settings.lock_name}"
    try:
        asked = ["--python", python]
        if _is_fetched(python, settings.root) and fetched_version(python) == version:
            # Given a path, uv writes the link for the minor version instead, which leads elsewhere after the next fetch.
            asked = ["--managed-python", "--python", python.parent.parent.name]
        runner.run(what, [uv, "venv", "--no-project", "--prompt", settings.venv.name, *asked, destination])
        lock = destination / "requirements.txt"
        lock.write_text(settings.lock if settings.lock.endswith("\n") else settings.lock + "\n", encoding="utf-8")
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
        with contextlib.suppress(FileNotFoundError):
            (destination / ".lock").unlink()
        record = {
            "hash": digest,
            "python": version,
            "interpreter": str(python),
            "uv": settings.uv_version,
            "packages": distributions(destination),
            "entries": fingerprint(destination),
        }
        sync_file_system(str(destination))
        _write_record(destination, record)
    except BaseException:
        _remove(destination)
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


def ready(venvs: Path, digest: str) -> Path | None:
    """A finished, unchanged environment of this hash."""
    for path in sorted(venvs.glob(f"{digest[:12]}*")):
        record = read_record(path)
        if record.get("hash") == digest and not drift(path, record):
            return path
    return None


def free_name(venvs: Path, digest: str) -> str:
    """The name for a new environment of this hash: one that drifted may still be in use and keeps its own."""
    name = digest[:12]
    number = 2
    while (venvs / name / RECORD_FILE).is_file():
        name = f"{digest[:12]}-{number}"
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


def _ensure(settings: Settings, check_mode: bool) -> Outcome:
    requirements = parse_lock(settings.lock, settings.lock_name)
    if settings.offline and not settings.find_links:
        raise EnvError("python_env_offline is set, but python_env_find_links names no directory to install from")
    for module in settings.imports:
        if not all(part.isidentifier() for part in module.split(".")):
            raise EnvError(f"python_env_imports names '{module}': allowed are names of modules, such as ray.train")
    if settings.ca_bundle and not Path(settings.ca_bundle).is_file() and not check_mode:
        raise EnvError(f"python_env_ca_bundle is '{settings.ca_bundle}', and there is no such file on this node")
    venvs = settings.root / "venvs"
    current = current_environment(settings.venv)
    record = read_record(current) if current else {}
    found = find_python(settings)
    changes: list[str] = []
    if found and current and record:
        digest = environment_hash(requirements, found[1], settings.uv_version)
        changes = drift(current, record)
        if record.get("hash") == digest and not changes:
            return Outcome(False, False, str(current), digest, found[1], distributions(current))
    before = _listing(str(record.get("python", "")), distributions(current)) if current and record else ""

    if check_mode:
        version = found[1] if found else settings.python
        digest = environment_hash(requirements, version, settings.uv_version)
        target = ready(venvs, digest) or venvs / free_name(venvs, digest)
        packages = lock_packages(requirements, version)
        verb = "switch to" if target.is_dir() else "build"
        return Outcome(
            True,
            verb == "build",
            str(target),
            digest,
            version,
            packages,
            changes,
            diff=_diff(settings, before, target, version, packages),
            msg=f"would {verb} {target} with {len(packages)} packages{_because(changes)}",
        )

    with building(settings) as runner:
        uv = None
        if not found:
            uv = ensure_uv(settings, runner)
            found = install_python(settings, runner, uv)
        python, version = found
        digest = environment_hash(requirements, version, settings.uv_version)
        target = ready(venvs, digest)
        built = target is None
        if target is None:
            room = free_bytes(venvs)
            if room < settings.min_free_bytes:
                raise EnvError(
                    f"{_gib(room)} are free on the disk of {settings.root}; a build needs "
                    f"{_gib(settings.min_free_bytes)} (python_env_min_free_bytes). Make room, for instance with "
                    f"'rm -rf {settings.root}/cache', or set python_env_root to another disk"
                )
            uv = uv or ensure_uv(settings, runner)
            target = build(settings, runner, uv, python, version, free_name(venvs, digest), digest)
        settings.venv.parent.mkdir(parents=True, exist_ok=True)
        switch(settings.venv, target)
        removed = superfluous(venvs, target, settings.keep)
        for path in removed:
            _remove(path)
    packages = distributions(target)
    return Outcome(
        True,
        built,
        str(target),
        digest,
        version,
        packages,
        changes,
        [str(path) for path in removed],
        _diff(settings, before, target, version, packages),
        f"{'built' if built else 'switched to'} {target} with {len(packages)} packages{_because(changes)}",
    )


def _because(changes: Sequence[str]) -> str:
    if not changes:
        return ""
    shown = "; ".join(changes[:8]) + (f" and {len(changes) - 8} more" if len(changes) > 8 else "")
    return f", because the one in use is no longer as it was built: {shown}"
