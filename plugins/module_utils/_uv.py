# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv and pip on a node: where they look, how they are started, one run at a time, and what their failures mean.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ._access import masked, trusted_hosts
from ._files import sync_directory, sync_file_system
from ._lock import EnvError, logical_lines
from ._versions import RECORD_FILE, read_record

_SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNSYNCED = ".unsynced"
# Of the caller's environment: these would lead uv or Python elsewhere.
_UNWANTED = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT")


@dataclass(frozen=True)
class Tools:
    """Where uv and pip are on a node, and where they look for packages and for Python."""

    uv_version: str = ""
    uv_lock: str = ""
    root: Path = Path("/opt/metalray")
    python: str = "/usr/bin/python3"
    python_archive: str = ""
    index_url: str = ""
    extra_index_urls: Sequence[str] = ()
    find_links: Sequence[str] = ()
    ca_bundle: str = ""
    offline: bool = False
    timeout: int = 1800
    timeout_variable: str = "python_env_timeout"


# Options of the modules that take packages with uv, documented in the fragment of that name.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lock_name": {"type": "str", "default": "lock"},
    "python_archive": {"type": "str", "default": ""},
    "uv_version": {"type": "str", "required": True},
    "uv_lock": {"type": "str", "required": True},
    "index_url": {"type": "str", "default": ""},
    "extra_index_urls": {"type": "list", "elements": "str", "default": []},
    "find_links": {"type": "list", "elements": "path", "default": []},
    "ca_bundle": {"type": "path", "default": ""},
    "torch_backend": {"type": "str", "default": ""},
}

Causes = Sequence[tuple[str, str, str]]

UNREACHABLE = (
    r"dns error|Name or service not known|name resolution|tcp connect error|Connection refused|timed out"
    r"|Network is unreachable|NewConnectionError|Failed to fetch|error sending request|Max retries"
)

# What a failure's text says, the cause in our words, and the mend. The first that matches counts.
DISK_OR_TRUST: Causes = (
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

CAUSES: Causes = (
    *DISK_OR_TRUST,
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
        UNREACHABLE,
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


def explain(output: str, root: Path, causes: Causes = CAUSES) -> tuple[str, str]:
    """The cause and the mend for the output of uv or pip."""
    for pattern, cause, mend in causes:
        if re.search(pattern, output):
            return cause, mend.format(root=root)
    return "it failed", "Read its words below"


def tail(output: str, lines: int = 12) -> str:
    kept = [line.rstrip() for line in masked(output).splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in kept[-lines:])


def trusted(settings: Tools) -> str:
    """The file with the authorities to trust; empty where Python's own are all there is."""
    return settings.ca_bundle or (str(_SYSTEM_BUNDLE) if _SYSTEM_BUNDLE.is_file() else "")


def tool_environment(settings: Tools, base: Mapping[str, str]) -> dict[str, str]:
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
    bundle = trusted(settings)
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
    """Starts the tools of one build, all of them within one time limit. ``watch`` is told what they say meanwhile."""

    settings: Tools
    deadline: float
    lock_fd: int = -1
    watch: Callable[[str], None] = lambda said: None

    def run(
        self,
        what: str,
        command: Sequence[str | Path],
        given: str = "",
        causes: Causes = CAUSES,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command to its end and return its output.

        Raises EnvError, saying what was being done. Without a ``given`` mend, cause and mend are those of ``causes`` that
        the output tells. ``environment`` is set beside that of the tools.
        """
        argv = [str(part) for part in command]
        with tempfile.TemporaryFile() as output:
            try:
                # Not AnsibleModule.run_command: what is started gets its own session and a lock, see below.
                process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**tool_environment(self.settings, os.environ), **(environment or {})},
                    cwd="/",
                    start_new_session=True,
                    # Held by what is started too: if this process dies, the next run waits for the orphan to end.
                    pass_fds=[self.lock_fd] if self.lock_fd >= 0 else [],
                )
            except OSError as error:
                raise EnvError(f"{what}: {argv[0]} cannot be started ({error.strerror})") from None
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(1.0, max(0.01, self.deadline - time.monotonic())))
                    break
                self.watch(_last_line(output.fileno()))
                if time.monotonic() >= self.deadline:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    raise EnvError(
                        f"{what}: not done within {self.settings.timeout} seconds ({self.settings.timeout_variable}). What "
                        f"it fetched is kept, so that the next run goes on from there. Its last words:\n{tail(_text(output))}"
                    )
            said = _text(output)
        if process.returncode != 0:
            cause, mend = ("it failed", given) if given else explain(said, self.settings.root, causes)
            ended = f"{Path(argv[0]).name} ended with {process.returncode} and said:\n{tail(said, 1 if given else 12)}"
            raise EnvError(f"{what}: {cause}. {mend}.\n{ended}")
        return said


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode("utf-8", "replace")


def _last_line(descriptor: int) -> str:
    """What a process said last. Its own position in the file is left alone."""
    size = os.fstat(descriptor).st_size
    lines = os.pread(descriptor, 4096, max(0, size - 4096)).decode("utf-8", "replace").split("\n")
    return masked(next((line.strip() for line in reversed(lines) if line.strip()), ""))


@contextlib.contextmanager
def building(settings: Tools) -> Iterator[Runner]:
    """The right to build on this node, held by one run at a time; with permissions that let others read."""
    deadline = time.monotonic() + settings.timeout
    mask = os.umask(0o022)
    descriptor = -1
    try:
        for directory in (settings.root, settings.root / "venvs"):
            directory.mkdir(parents=True, exist_ok=True)
            if unsafe(directory):
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
                        f"({settings.timeout_variable}); wait for its end or stop it"
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


def _begin(settings: Tools) -> None:
    """Throw away what a power cut may have emptied: uv takes what is in its cache, and a Python that is there, as whole."""
    mark = settings.root / _UNSYNCED
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    with contextlib.suppress(FileNotFoundError):
        if mark.read_text(encoding="ascii", errors="replace").strip() != boot:
            remove(settings.root / "cache")
            records = map(read_record, (settings.root / "venvs").iterdir())
            used = [os.path.realpath(record["interpreter"]) for record in records if "interpreter" in record]
            for fetched in settings.root.glob("python/*"):
                if not any(path.startswith(f"{os.path.realpath(fetched)}/") for path in used):
                    remove(fetched)
    mark.write_text(f"{boot}\n", encoding="ascii")
    sync_file_system(str(settings.root))


def _close_locks(settings: Tools) -> None:
    """Make uv's own locks before it does: it would let everybody write them, and whoever may read one may hold it."""
    for directory in (settings.root / "cache", settings.root / "python"):
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def forget_cache(settings: Tools) -> None:
    """Throw uv's cache away while building."""
    remove(settings.root / "cache")
    _close_locks(settings)


def _end(settings: Tools) -> None:
    sync_file_system(str(settings.root))
    (settings.root / _UNSYNCED).unlink()


def unsafe(path: Path) -> str:
    """Why others than the owner that builds could change a path; empty where they cannot."""
    info = path.stat()
    if info.st_uid != os.geteuid():
        return f"{path} belongs to the account with id {info.st_uid}"
    if info.st_mode & 0o022:
        return f"{path} can be written by others"
    return ""


def free_bytes(path: Path) -> int:
    """Room on the disk that a path is or will be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def uv_pin(settings: Tools) -> str:
    """The line of the lock of uv for the version that is asked for."""
    for line in logical_lines(settings.uv_lock):
        if line.split()[0] == f"uv=={settings.uv_version}" and "--hash=" in line:
            return line
    raise EnvError(
        f"python_env_uv_version is {settings.uv_version}, for which python_env_uv_lock has no hashes. Leave both at their "
        "defaults, or name a file made by 'uv pip compile --generate-hashes'"
    )


def ensure_uv(settings: Tools, runner: Runner) -> Path:
    """The pinned uv, in a virtual environment of its own in which there is nothing else."""
    home = settings.root / f"uv-{settings.uv_version}"
    uv = home / "bin" / "uv"
    done = home / RECORD_FILE
    if done.is_file() and uv.is_file():
        return uv
    line = uv_pin(settings)
    remove(home)
    python = _SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else Path(sys.executable)
    try:
        runner.run("making the virtual environment of uv", [python, "-m", "venv", home])
        pins = home / "requirements.txt"
        pins.write_text(line.replace(" --hash=", " \\\n    --hash=") + "\n", encoding="utf-8")
        options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet"]
        runner.run(f"installing uv {settings.uv_version}", [home / "bin" / "pip", "install", *options, "-r", pins])
    except BaseException:
        remove(home)
        raise
    sync_file_system(str(home))
    write_record(home, {"uv": settings.uv_version})
    for other in settings.root.glob("uv-*"):
        if other != home:
            remove(other)
    return uv


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def write_record(environment: Path, record: Mapping[str, Any]) -> None:
    aside = environment / f".{RECORD_FILE}"
    with aside.open("w", encoding="utf-8") as handle:
        handle.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, environment / RECORD_FILE)
    sync_directory(str(environment))
