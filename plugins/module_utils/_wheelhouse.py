# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory with every package of a lock as a wheel, fetched or built once, from which all nodes install.

``<path>/KEY`` on the shared directory holds the wheels and ``manifest.json``; whoever may write there could change them. So
the builder keeps the record of what it put there below its own root, ``wheels/KEY.json``, and the lock in it: one hash a
package, that of the wheel which lies there. Nodes install by that lock, handed to them by the controller, and by no other.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ._fetch import Download, Fetcher, FetchError, accounts, amount, bare, digest_of
from ._files import sync_directory
from ._lock import EnvError, Requirement, hashes_of, lock_packages, marker_environment, marker_holds, parse_lock
from ._pythons import ensure_python, find_python
from ._uv import CAUSES, Causes, Runner, Tools, building, ensure_uv, explain, free_bytes, remove, trusted, uv_pin
from ._versions import VersionsError, normalised

_MANIFEST = "manifest.json"
_BYTES_A_JOB = 9 * 2**30
_READ_TOML = """
import json, sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as handle:
    print(json.dumps(tomllib.load(handle), default=str))
"""
_BUILD_CAUSES: Causes = (
    *CAUSES[:2],
    (
        r"No module named|ModuleNotFoundError|ImportError|BackendUnavailable",
        "what it needs to be built is not in the lock",
        "Add the module that is named below to the lock (setuptools, wheel, ninja, ...): a build has the packages of the lock "
        "and no others, so that it is the same every time",
    ),
    (
        r"nvcc|CUDA_HOME|cuda_runtime",
        "the CUDA toolkit is missing or does not fit",
        "Set python_env_builder to a node that has it (nvcc), or give a built wheel in python_env_wheels",
    ),
    (
        r"command '?[\w/-]*(gcc|g\+\+|cc|c\+\+|clang)'? failed|No such file or directory: '(gcc|g\+\+|cc|c\+\+|clang)|Python\.h",
        "it does not compile",
        "Read the compiler's words below; python_env_build_packages names the packages of the distribution for it",
    ),
    (
        r"Killed|signal: 9|out of memory|MemoryError",
        "the memory was not enough",
        "Set MAX_JOBS in python_env_environment to fewer jobs",
    ),
    (r"", "it failed", "Read its words below, or give a built wheel in python_env_wheels"),
)


@dataclass(frozen=True)
class Settings(Tools):
    """The module's options."""

    lock: str = ""
    lock_name: str = ""
    path: Path = Path("/mnt/shared/wheels")
    user: str = ""
    wheels: Sequence[str] = ()
    torch_backend: str = ""
    allow_builds: bool = False
    build: bool = True
    cuda_architectures: Sequence[str] = ()
    keep: int = 1
    timeout: int = 14400
    timeout_variable: str = "python_env_wheelhouse_timeout"


@dataclass(frozen=True)
class Item:
    """A wheel of the wheelhouse, or the source of one.

    ``origin`` is ``index``, ``given`` or ``built``. ``source`` is the address of the wheel, or what it was built from.
    ``against`` has the versions of packages that a built one depends on.
    """

    name: str
    version: str
    file: str
    sha256: str
    origin: str
    source: str
    size: int = 0
    url: str = ""
    against: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """A wheel that stands for an entry of the lock."""

    url: str
    sha256: str
    requirement: Requirement


@dataclass(frozen=True)
class Outcome:
    """``lock`` pins each package to the wheel that is there; empty in check mode where that is not known yet."""

    changed: bool
    path: str
    lock: str
    python: str
    files: dict[str, dict[str, Any]]
    fetched: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    to_build: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    diff: dict[str, str] | None = None
    msg: str = ""


# --- what is wanted ----------------------------------------------------------------------------------------------


def parse_given(text: str, requirements: Sequence[Requirement], lock_name: str) -> Given:
    """One entry of python_env_wheels, and the entry of the lock that it satisfies."""
    match = re.fullmatch(r"(\S+)#sha256=([0-9a-fA-F]{64})", text.strip())
    if not match:
        raise EnvError(
            f"python_env_wheels names '{text}': allowed is the address or path of a wheel with its hash behind it, "
            "ADDRESS#sha256=HASH ('sha256sum FILE' tells it)"
        )
    url, digest = match.group(1), match.group(2).lower()
    parts = urlsplit(url)
    file = unquote(parts.path).rpartition("/")[2]
    if parts.scheme not in ("https", "http", "file", "") or not file.endswith(".whl") or file.count("-") < 4:
        raise EnvError(
            f"python_env_wheels names '{bare(url)}': allowed is the https address or the absolute path of a .whl"
        )
    if parts.scheme == "" and not url.startswith("/"):
        raise EnvError(f"python_env_wheels names '{url}': a path on the builder begins with '/'")
    name, version = normalised(file.split("-")[0]), file.split("-")[1]
    for requirement in requirements:
        if requirement.name == name:
            if requirement.commit or requirement.version.partition("+")[0] == version.partition("+")[0]:
                return Given(url, digest, requirement)
            raise EnvError(
                f"python_env_wheels names {file}, and the lock {lock_name} has {name} {requirement.version}. Give a wheel of "
                "that version, or make the lock for this one"
            )
    raise EnvError(
        f"python_env_wheels names {file}, and the lock {lock_name} has no {name}. Add it to the lock, or take the wheel away"
    )


def key_of(requirements: Sequence[Requirement], python: str, given: Sequence[Given], settings: Settings) -> str:
    """What names a wheelhouse: all that decides what lies in it."""
    lines = [f"python {python}", f"machine {platform.machine()}", f"uv {settings.uv_version}"]
    lines += sorted(requirement.text for requirement in requirements)
    lines += sorted(item.sha256 for item in given)
    if settings.allow_builds:
        lines += sorted(settings.cuda_architectures)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def preference(file: str, python: str) -> tuple[int, tuple[int, ...], str]:
    """The order of wheels that all fit: made for this very Python first, then by the oldest glibc that they need."""
    tags, abis, platforms = (part.split(".") for part in file[: -len(".whl")].split("-")[-3:])
    own = "cp" + "".join(python.split(".")[:2])
    if own in tags and "abi3" not in abis:
        kind = 0
    elif "abi3" in abis:
        kind = 1
    else:
        kind = 3 if platforms == ["any"] else 2
    old = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    floors = []
    for tag in platforms:
        match = re.match(r"(manylinux\d+)_(?!\d+_\d)|manylinux_(\d+)_(\d+)", tag)
        if match:
            floors.append(old.get(match.group(1) or "", (0,)) if match.group(1) else (int(match[2]), int(match[3])))
    return kind, min(floors, default=(0,)), file


def _hash(entry: Mapping[str, Any]) -> str:
    return str((entry.get("hashes") or {}).get("sha256") or "")


def _address(entry: Mapping[str, Any]) -> str:
    return str(entry.get("url") or entry.get("path") or "")


def _size_of_file(address: str) -> int:
    parts = urlsplit(address)
    with contextlib.suppress(OSError):
        return os.stat(unquote(parts.path)).st_size if parts.scheme in ("", "file") else 0
    return 0


def choose(packages: Sequence[Mapping[str, Any]], lock: Sequence[Requirement], python: str) -> list[Item]:
    """The wheel of each package that an index was found to have, or the source of one that has none."""
    allowed = {requirement.name: hashes_of(requirement.text) for requirement in lock}
    items = []
    for package in packages:
        name, version = normalised(str(package["name"])), str(package.get("version") or "")
        archive = package.get("archive")
        found = [*(package.get("wheels") or ()), *filter(None, (package.get("sdist"), archive))]
        fitting = {}
        for entry in found:
            file = unquote(urlsplit(_address(entry)).path).rpartition("/")[2]
            digest = _hash(entry)
            # Where the index tells no hash, the fetched file's decides.
            if digest in allowed[name] or (not digest and len(allowed[name]) == 1):
                fitting[file] = {**entry, "digest": digest or next(iter(allowed[name]))}
        wheels = sorted((file for file in fitting if file.endswith(".whl")), key=lambda file: preference(file, python))
        file = next(iter([*wheels, *fitting]), "")
        if not file:
            raise EnvError(
                f"{name} {version}: hash mismatch: no file that the index has of it is one of those that were locked. Find out "
                "whether the index serves changed files, or make the lock again"
            )
        entry, address = fitting[file], _address(fitting[file])
        items.append(
            Item(
                name,
                version or file.split("-")[1],
                file,
                entry["digest"],
                "index" if file.endswith(".whl") else "built",
                bare(address) if file.endswith(".whl") else f"sha256:{entry['digest']}",
                int(entry.get("size") or 0) or _size_of_file(address),
                address,
            )
        )
    return items


def read_wheel(path: Path) -> tuple[str, str, str, list[str]]:
    """Name, version, canonical file name and dependencies of a wheel, from what is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            (info,) = {name.split("/")[0] for name in archive.namelist() if re.match(r"[^/]+\.dist-info/", name)}
            metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode("utf-8", "replace"))
            wheel = HeaderParser().parsestr(archive.read(f"{info}/WHEEL").decode("utf-8", "replace"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EnvError(f"{path.name} is no wheel that can be read ({error}). Give another, or build it again") from None
    name, version = str(metadata["Name"]).strip(), str(metadata["Version"]).strip()
    tags = [str(tag).strip().split("-") for tag in wheel.get_all("Tag", [])]
    if not name or not version or not tags or any(len(tag) != 3 for tag in tags):
        raise EnvError(f"{path.name} is no whole wheel: its name, version or tags are missing. Give another")
    joined = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags))
    needs = [
        normalised(match[0]) for text in metadata.get_all("Requires-Dist", []) if (match := re.match(r"[\w.-]+", text))
    ]
    file = f"{re.sub(r'[-_.]+', '_', name)}-{version.replace('-', '_')}-{joined}.whl"
    return normalised(name), version, file, needs


def jobs(cpus: int, memory: int) -> int:
    """Compilers side by side: CUDA's need some nine gigabytes each."""
    return max(1, min(cpus, memory // _BYTES_A_JOB))


def build_environment(settings: Settings, base: Mapping[str, str], place: Path) -> dict[str, str]:
    """What a build is told; a variable that is set already stays."""
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    values = {"MAX_JOBS": str(jobs(cpus, memory)), "SOURCE_DATE_EPOCH": "315532800"}
    if settings.cuda_architectures:
        values["TORCH_CUDA_ARCH_LIST"] = ";".join(settings.cuda_architectures)
        values["FLASH_ATTN_CUDA_ARCHS"] = ";".join(one.replace(".", "") for one in settings.cuda_architectures)
    toolkit = base.get("CUDA_HOME", "/usr/local/cuda")
    if Path(toolkit, "bin/nvcc").exists():
        values["CUDA_HOME"] = toolkit
    values = {name: base.get(name, value) for name, value in values.items()}
    paths = [str(place / "environment/bin"), *([f"{toolkit}/bin"] if "CUDA_HOME" in values else [])]
    # A /tmp that is small, or may not execute, would end a long build.
    return {**values, "PATH": ":".join([*paths, base.get("PATH", "/usr/bin:/bin")]), "TMPDIR": str(place)}


# --- what is there -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Work as the account that owns the shared directory: on NFS, root is nobody."""
    if os.geteuid() != 0 or not name:
        yield
        return
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise EnvError(f"no account named '{name}' (cluster_user) on this node. Create it on every node") from None
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _stamp(path: Path) -> list[int]:
    """What changes with a file: its change time cannot be set back by whoever may write it."""
    info = path.stat()
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def altered(place: Path, record: Mapping[str, Any]) -> list[str]:
    """Files that are missing, or are no longer as they were put there."""
    found = []
    for file, entry in record["files"].items():
        try:
            same = _stamp(place / file) == entry["stamp"]
        except OSError:
            same = False
        if not same:
            found.append(file)
    return found


def read_records(root: Path) -> dict[str, dict[str, Any]]:
    """What this node put into wheelhouses, by key, the last used first."""
    records = {}
    for path in sorted((root / "wheels").glob("*.json"), key=lambda path: -path.stat().st_mtime):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict) and isinstance(record.get("files"), dict):
                records[path.stem] = record
    return records


def _write(path: Path, value: Mapping[str, Any]) -> None:
    aside = path.with_name(f".{path.name}")
    with aside.open("w", encoding="utf-8") as handle:
        handle.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)
    sync_directory(str(path.parent))


def derived_lock(items: Sequence[Item], uv_file: str) -> str:
    lines = {f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in items if item.file != uv_file}
    return "".join(sorted(lines))


# --- the whole ---------------------------------------------------------------------------------------------------


class House:
    """One wheelhouse while it is being brought to its lock."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        uv: Path,
        python: Path,
        version: str,
        requirements: Sequence[Requirement],
        given: Sequence[Given],
        show: Callable[[str], None],
    ) -> None:
        self.settings, self.runner, self.uv, self.python, self.version = settings, runner, uv, python, version
        self.show = show
        values = marker_environment(version)
        self.requirements = [item for item in requirements if marker_holds(item.marker, values)]
        self.given = given
        self.key = key_of(requirements, version, given, settings)
        self.place = settings.path / self.key
        self.records = read_records(settings.root)
        self.items: dict[str, Item] = {}
        self.uv_file = ""
        self.fetched: list[str] = []
        self.built: list[str] = []

    @staticmethod
    def silent(said: str) -> None:
        """What most tools say is over before it could be shown."""

    # What is to lie there

    def listed(self, text: str, backend: str) -> list[Mapping[str, Any]]:
        """The files that fit this Python and platform, as uv finds them, without fetching or building one."""
        settings = self.settings
        with tempfile.TemporaryDirectory(dir=settings.root, prefix=".listing-") as directory:
            lock, listing = Path(directory, "lock.txt"), Path(directory, "pylock.toml")
            lock.write_text(text, encoding="utf-8")
            options = ["--no-deps", "--no-header", "--format", "pylock.toml", "--quiet", "--python", self.python]
            options += ["--index-strategy", "unsafe-best-match"]
            options += [part for directory in settings.find_links for part in ("--find-links", directory)]
            options += ["--no-index"] if settings.offline else []
            options += ["--torch-backend", backend] if backend else []
            what = f"reading what the index has of {settings.lock_name}"
            self.runner.run(what, [self.uv, "pip", "compile", *options, lock, "-o", listing])
            reader = self.uv.with_name("python")
            said = self.runner.run(what, [reader, "-I", "-c", _READ_TOML, listing])
        return list(json.loads(said).get("packages") or ())

    def decide(self) -> list[Item]:
        """Fill ``items`` with what is fetched; the sources of what is built are returned."""
        given = {item.requirement.name for item in self.given}
        rest = [item for item in self.requirements if item.name not in given]
        text = "".join(f"{item.text}\n" for item in rest if not item.commit)
        chosen = choose(self.listed(text, self.settings.torch_backend), rest, self.version) if text else []
        pin = parse_lock(uv_pin(self.settings), "python_env_uv_lock")
        (tool,) = choose(self.listed(pin[0].text + "\n", ""), pin, self.version)
        self.uv_file = "" if any(item.file == tool.file for item in chosen) else tool.file
        self.items = {item.file: item for item in [*chosen, tool] if item.origin == "index"}
        sources = [item for item in chosen if item.origin == "built"]
        for item in rest:
            if item.commit:
                folder = f"#{item.subdirectory}" if item.subdirectory else ""
                sources.append(
                    Item(
                        item.name,
                        item.version,
                        "",
                        "",
                        "built",
                        f"git+{bare(item.url)}@{item.commit}{folder}",
                        0,
                        item.url,
                    )
                )
        return sources

    def known(self, wanted: Callable[[Mapping[str, Any]], bool]) -> tuple[Item, Path] | None:
        """A file that this node put into a wheelhouse before and that is as it was."""
        for key, record in self.records.items():
            for file, entry in record["files"].items():
                path = self.settings.path / key / file
                if wanted(entry) and self.unchanged(path, entry):
                    values = {name: entry[name] for name in Item.__dataclass_fields__ if name in entry}
                    return Item(**{**values, "file": file}), path
        return None

    def unchanged(self, path: Path, entry: Mapping[str, Any]) -> bool:
        with contextlib.suppress(OSError), as_user(self.settings.user):
            return _stamp(path) == entry["stamp"] or digest_of(path) == entry["sha256"]
        return False

    # Bringing it there

    def fetch(self, downloads: Sequence[Download], owner: str | None = None) -> None:
        settings = self.settings
        known = accounts([settings.index_url, *settings.extra_index_urls], os.environ)
        fetcher = Fetcher(known, trusted(settings), lambda said: self.show(f"fetching: {said}"), self.runner.deadline)
        try:
            with as_user(settings.user if owner is None else owner):
                fetcher.fetch(downloads)
        except FetchError as error:
            cause, mend = explain(str(error), settings.root)
            raise EnvError(
                f"fetching the packages of {settings.lock_name}: {cause}. {mend}. What is there already is kept, so that the "
                f"next run goes on from there.\n  {error}"
            ) from None
        self.fetched += [path.name for path in fetcher.fetched]

    def prepare(self) -> None:
        """The directory, and in it what earlier wheelhouses have of this one's files."""
        with as_user(self.settings.user):
            shared = self.settings.path.parent
            if not shared.is_dir():
                raise EnvError(
                    f"there is no directory {shared} (cluster_shared_dir) on this node for the wheelhouse. Make it first "
                    "(--tags nfs), or set python_env_wheelhouse to '' so that each node fetches for itself"
                )
            for directory in (self.settings.path, self.place):
                directory.mkdir(exist_ok=True)
                with contextlib.suppress(PermissionError):
                    directory.chmod(0o755)
            for item in self.items.values():
                self.link(item)

    def link(self, item: Item) -> None:
        target = self.place / item.file
        if not target.exists():
            found = self.known(lambda entry: entry["sha256"] == item.sha256)
            if found and found[1] != target:
                with contextlib.suppress(OSError):
                    os.link(found[1], target)

    def check_room(self) -> None:
        missing = [item for item in self.items.values() if not (self.place / item.file).exists()]
        needed, room = sum(item.size for item in missing), free_bytes(self.settings.path)
        if room < needed:
            raise EnvError(
                f"{amount(room)} are free on the disk of {self.settings.path}; {len(missing)} packages of "
                f"{self.settings.lock_name} need {amount(needed)}. Make room there, or set python_env_wheelhouse elsewhere"
            )

    def take_given(self) -> None:
        for given in self.given:
            found = self.known(lambda entry, given=given: entry["sha256"] == given.sha256)
            if found:
                item = found[0]
            else:
                aside = self.place / f".given-{given.sha256[:16]}.whl"
                self.fetch([Download(given.url, aside, given.sha256)])
                with as_user(self.settings.user):
                    item = self.accept(given, aside)
            self.items[item.file] = item
            with as_user(self.settings.user):
                self.link(item)

    def accept(self, given: Given, aside: Path) -> Item:
        """A given wheel under the name that its own metadata gives it: uv refuses one whose name says more."""
        name, version, file, _needs = read_wheel(aside)
        wanted = given.requirement
        if name != wanted.name or (not wanted.commit and wanted.version not in (version, version.partition("+")[0])):
            raise EnvError(
                f"python_env_wheels names {bare(given.url)}, which is {name} {version} inside, and the lock "
                f"{self.settings.lock_name} has {wanted.name} {wanted.version}. Give another wheel, or make the lock for it"
            )
        os.replace(aside, self.place / file)
        self.fetched = [file if one == aside.name else one for one in self.fetched]
        return Item(
            name, version, file, given.sha256, "given", bare(given.url), (self.place / file).stat().st_size, given.url
        )

    def take_built(self, sources: Sequence[Item]) -> list[Item]:
        """Those built before, from the same source for the same packages; what is left to build is returned."""
        versions = {item.name: item.version for item in [*self.items.values(), *sources]}
        left = []
        for source in sources:

            def same(entry: Mapping[str, Any], source: Item = source) -> bool:
                against = entry.get("against") or {}
                return (
                    entry["origin"] == "built"
                    and entry["source"] == self.identity(source)
                    and all(versions.get(name, "") == version for name, version in against.items())
                )

            found = self.known(same)
            if found is None:
                left.append(source)
                continue
            item, _path = found
            self.items[item.file] = item
            with as_user(self.settings.user):
                self.link(item)
        return left

    def identity(self, source: Item) -> str:
        built_for = " ".join([self.version, platform.machine(), *sorted(self.settings.cuda_architectures)])
        return f"{source.source} for {built_for}"

    def build(self, sources: Sequence[Item]) -> None:
        place = self.settings.root / "wheels" / f"build-{self.key}"
        remove(place)
        place.mkdir(parents=True, mode=0o700)
        try:
            what = "making the environment for the build"
            environment = place / "environment"
            # Those of the lock and no others: what a build finds is locked too.
            lock = place / "lock.txt"
            for number, source in enumerate(sources, 1):
                lock.write_text(derived_lock(list(self.items.values()), self.uv_file), encoding="utf-8")
                if number == 1:
                    self.runner.run(what, [self.uv, "venv", "--no-project", "--python", self.python, environment])
                inside = environment / "bin/python"
                options = [
                    "--require-hashes",
                    "--no-build",
                    "--no-index",
                    "--find-links",
                    self.place,
                    "--python",
                    inside,
                ]
                self.runner.run(what, [self.uv, "pip", "sync", "--link-mode", "hardlink", *options, lock])
                title = f"building {source.name} {source.version} ({number} of {len(sources)})"
                self.build_one(source, place, title)
                self.save(complete=False)
        finally:
            remove(place)

    def build_one(self, source: Item, place: Path, title: str) -> None:
        self.show(title)
        self.runner.watch = lambda said: self.show(f"{title}: {said[:160]}")
        out = place / "out"
        remove(out)
        tree = self.checkout(source, place) if not source.file else place / source.file
        if source.file:
            self.fetch([Download(source.url, tree, source.sha256, source.size)], owner="")
        command = [self.uv, "build", "--wheel", "--no-build-isolation", "--no-config", "--no-create-gitignore"]
        command += ["--python", place / "environment/bin/python", "--out-dir", out, tree]
        environment = build_environment(self.settings, os.environ, place)
        self.runner.run(title, command, causes=_BUILD_CAUSES, environment=environment)
        self.runner.watch = self.silent
        (wheel,) = out.glob("*.whl")
        name, version, file, needs = read_wheel(wheel)
        if name != source.name or (source.file and version.partition("+")[0] != source.version.partition("+")[0]):
            raise EnvError(
                f"{title}: it became {name} {version}, which is not what the lock {self.settings.lock_name} names. Correct the "
                "lock"
            )
        digest, size = hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size
        aside = self.place / f".{file}"
        with wheel.open("rb") as handle, as_user(self.settings.user):
            with aside.open("wb") as target:
                shutil.copyfileobj(handle, target)
                target.flush()
                os.fsync(target.fileno())
            aside.chmod(0o644)
            os.replace(aside, self.place / file)
        versions = {item.name: item.version for item in self.items.values()}
        against = {one: versions[one] for one in needs if one in versions}
        self.items[file] = Item(name, version, file, digest, "built", self.identity(source), size, against=against)
        self.built.append(file)

    def checkout(self, source: Item, place: Path) -> Path:
        """The tree of a commit, with its submodules."""
        # As the lock's parser let it through: ADDRESS@COMMIT, and #FOLDER where there is one.
        commit, _hash_sign, folder = source.source.rpartition("@")[2].partition("#")
        tree = place / "source"
        remove(tree)
        what = f"fetching {source.name} at {commit[:12]}"
        mend = (
            f"Check that the builder reaches {bare(source.url)} (proxies: python_env_environment), that git is installed "
            "(python_env_build_packages), and that the repository has this commit"
        )
        quiet = {
            "GIT_TERMINAL_PROMPT": "0",
            **({"GIT_SSL_CAINFO": bundle} if (bundle := trusted(self.settings)) else {}),
        }

        def git(*words: str | Path) -> None:
            self.runner.run(what, ["git", *words], mend, environment=quiet)

        git("clone", "--quiet", "--no-checkout", source.url, tree)
        git("-C", tree, "fetch", "--quiet", "origin", commit)
        git("-C", tree, "checkout", "--quiet", "--detach", commit)
        git("-C", tree, "submodule", "--quiet", "update", "--init", "--recursive")
        return tree / folder

    # When all is there

    def record(self, complete: bool) -> dict[str, Any]:
        files = {}
        with as_user(self.settings.user):
            for file, item in self.items.items():
                with contextlib.suppress(FileNotFoundError):
                    entry = {name: value for name, value in asdict(item).items() if name not in ("file", "url")}
                    files[file] = {**entry, "stamp": _stamp(self.place / file)}
        lock = derived_lock(list(self.items.values()), self.uv_file) if complete else ""
        return {"complete": complete, "python": self.version, "lock": lock, "files": files}

    def save(self, complete: bool) -> dict[str, Any]:
        record = self.record(complete)
        if complete:
            shown = {
                file: {name: entry[name] for name in ("sha256", "size", "origin", "source")}
                for file, entry in record["files"].items()
            }
            with as_user(self.settings.user):
                for path in self.place.iterdir():
                    if path.name not in shown and path.name != _MANIFEST:
                        remove(path)
                _write(self.place / _MANIFEST, shown)
                sync_directory(str(self.settings.path))
        _write(self.settings.root / "wheels" / f"{self.key}.json", record)
        return record

    def prune(self) -> list[str]:
        """Wheelhouses that this node made and nobody has asked for since; another cluster's are not ours."""
        old = [key for key in self.records if key != self.key][self.settings.keep :]
        for key in old:
            with as_user(self.settings.user):
                remove(self.settings.path / key)
            remove(self.settings.root / "wheels" / f"{key}.json")
        return [str(self.settings.path / key) for key in old]


def _diff(settings: Settings, place: Path, before: Sequence[str], after: Sequence[str]) -> dict[str, str]:
    return {
        "before_header": str(place),
        "after_header": f"{place} of {settings.lock_name}",
        "before": "".join(f"{line}\n" for line in sorted(before)),
        "after": "".join(f"{line}\n" for line in sorted(after)),
    }


def _listing(record: Mapping[str, Any], gone: Sequence[str] = ()) -> list[str]:
    return [
        f"{entry['name']} {entry['version']} ({entry['origin']})"
        for file, entry in record["files"].items()
        if file not in gone
    ]


def parse(settings: Settings) -> tuple[list[Requirement], list[Given]]:
    requirements = parse_lock(settings.lock, settings.lock_name)
    if settings.offline and not settings.find_links:
        raise EnvError("python_env_offline is set, but python_env_find_links names no directory to install from")
    return requirements, [parse_given(text, requirements, settings.lock_name) for text in settings.wheels]


def current(settings: Settings) -> Outcome | None:
    """What there is, where nothing is to be done: no index is asked, and no tool started."""
    requirements, given = parse(settings)
    found = find_python(settings)
    if found is None:
        return None
    key = key_of(requirements, found[1], given, settings)
    record = read_records(settings.root).get(key) or {}
    place = settings.path / key
    with as_user(settings.user):
        if not record.get("complete") or altered(place, record):
            return None
    return Outcome(False, str(place), record["lock"], found[1], record["files"])


def would(settings: Settings) -> Outcome:
    """What a run would do, as far as it is known without asking the index."""
    requirements, given = parse(settings)
    found = find_python(settings)
    version = found[1] if found else settings.python
    place = settings.path / key_of(requirements, version, given, settings)
    record = read_records(settings.root).get(place.name) or {"files": {}}
    with as_user(settings.user):
        gone = altered(place, record)
    wanted = {f"{name} {version}" for name, version in lock_packages(requirements, version).items()}
    there = _listing(record, gone)
    missing = sorted(wanted - {line.rpartition(" (")[0] for line in there})
    building_too = [item.name for item in requirements if item.commit]
    after = [*there, *missing]
    msg = f"would fetch {len(missing)} packages of {settings.lock_name} into {place}"
    if building_too:
        msg += f", and build {', '.join(building_too)}"
    return Outcome(
        True,
        str(place),
        "",
        version,
        {},
        missing,
        to_build=building_too,
        diff=_diff(settings, place, there, after),
        msg=msg,
    )


def ensure(settings: Settings, check_mode: bool = False, show: Callable[[str], None] = lambda said: None) -> Outcome:
    """Bring the wheelhouse to its lock. Raises EnvError; what has been fetched is kept."""
    try:
        found = current(settings)
        if found is not None:
            return found
        return would(settings) if check_mode else _ensure(settings, show)
    except VersionsError as error:
        raise EnvError(str(error)) from None


def _ensure(settings: Settings, show: Callable[[str], None]) -> Outcome:
    requirements, given = parse(settings)
    with building(settings) as runner:
        (settings.root / "wheels").mkdir(exist_ok=True)
        runner.watch = show
        show("installing uv")
        uv = ensure_uv(settings, runner)
        python, version = ensure_python(settings, runner, uv)
        runner.watch = House.silent
        house = House(settings, runner, uv, python, version, requirements, given, show)
        before = _listing(house.records.get(house.key) or {"files": {}})
        show("reading what the index has")
        sources = house.decide()
        house.prepare()
        house.check_room()
        house.fetch(
            [Download(item.url, house.place / item.file, item.sha256, item.size) for item in house.items.values()]
        )
        house.take_given()
        left = house.take_built(sources)
        if left and not settings.allow_builds:
            names = ", ".join(f"{item.name} {item.version}" for item in left)
            raise EnvError(
                f"{names}: the lock {settings.lock_name} has no wheel of it for Python {version} on this platform. Give a built "
                "one in python_env_wheels, set python_env_allow_builds so that it is built once, on the builder, or use a lock "
                "made for this Python"
            )
        if left and settings.build:
            house.build(left)
            left = []
        if left:
            house.save(complete=False)
            return Outcome(
                True, str(house.place), "", version, {}, house.fetched, to_build=[item.name for item in left],
                msg=f"{', '.join(item.name for item in left)} is left to build",
            )  # fmt: skip
        record = house.save(complete=True)
        removed = house.prune()
    done = [f"fetched {len(house.fetched)}"] if house.fetched else []
    done += [f"built {len(house.built)}"] if house.built else []
    return Outcome(
        bool(house.fetched or house.built or removed),
        str(house.place),
        record["lock"],
        version,
        record["files"],
        house.fetched,
        house.built,
        [],
        removed,
        _diff(settings, house.place, before, _listing(record)),
        f"{' and '.join(done) or 'checked'} of {len(record['files'])} wheels in {house.place}",
    )
