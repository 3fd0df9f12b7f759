# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of NFS and of its mounts: read, rendered, and judged before anything is changed.

Internal to metalray.cluster: not a public interface. All but ``read_shared_dir`` is pure. The judges (``check_*``) are asked
twice, by the plan for all nodes at once and by the module that is about to change one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._bounded import NoAnswer, bounded
from ._tree import Tree

EXPORTS = "/etc/exports"
OWN_EXPORTS = "/etc/exports.d/metalray.exports"
OWN_SERVER_CONF = "/etc/nfs.conf.d/metalray.conf"
#: What the server exports now; its format is that of exports(5).
EXPORTS_IN_FORCE = "/var/lib/nfs/etab"
SERVER_THREADS = "/proc/fs/nfsd/threads"
SERVER_VERSIONS = "/proc/fs/nfsd/versions"
UNITS = "/etc/systemd/system"
#: Seconds for a look at the shared directory.
PATIENCE = 5

_HEADER = "# Written by metalray.cluster, changes are overwritten."
_DESCRIPTION = "Shared directory of the metalray cluster"
_EVERYBODY = "*"
_LONGEST_NAME = 255
_FEWEST_THREADS, _MOST_THREADS = 8, 128
# The kernel cannot export these, or they are a shared file system already.
_NOT_EXPORTABLE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "glusterfs", "beegfs", "beegfs_nodev", "gpfs", "9p", "afs",
                   "fuse", "fuseblk", "virtiofs", "overlay")  # fmt: skip
# Options whose word in force is the same as in the file; others are written out, renamed or left out there.
_COMPARED = {"rw", "ro", "sync", "async", "secure", "insecure", "root_squash", "no_root_squash", "all_squash"}


class NfsError(Exception):
    """Sharing or mounting cannot go on; the text says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Export:
    """One client of one export point. ``client`` is ``*`` for everybody."""

    path: str
    client: str
    options: tuple[str, ...]
    file: str
    line: int
    text: str

    def last_of(self, *names: str) -> str:
        """Which of these options holds: the last one that is there."""
        return next((option for option in reversed(self.options) if option in names), "")

    @property
    def is_root(self) -> bool:
        """Whether NFSv4 takes all paths from here."""
        fsids = [option for option in self.options if option.startswith("fsid=")]
        return bool(fsids) and fsids[-1] in ("fsid=0", "fsid=root")


@dataclass(frozen=True)
class Mount:
    source: str
    point: str
    type: str
    options: str = ""


@dataclass
class Judgement:
    """What forbids to go on, and what a user ought to know; whole sentences both."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


# --- reading -----------------------------------------------------------------------------------------------------


def _unescape(text: str) -> str:
    """Octal escapes, as exports(5), fstab(5) and /proc/mounts have them for bytes."""
    if "\\" not in text:
        return text
    raw = text.encode("utf-8", "surrogateescape")
    decoded = re.sub(rb"\\([0-3][0-7]{2})", lambda found: bytes([int(found.group(1), 8)]), raw)
    return decoded.decode("utf-8", "replace")


def _words(line: str) -> list[str]:
    """The words of a line of exports(5): quotes keep blanks together, # at the start of a word begins a comment."""
    found = []
    for word in re.finditer(r'(?:"[^"]*"?|[^\s"])+', line):
        if word.group().startswith("#"):
            break
        found.append(_unescape(word.group().replace('"', "")))
    return found


def _joined_lines(text: str) -> Iterable[tuple[int, str]]:
    """The lines of a text with their numbers; a backslash at the end continues a line."""
    start, gathered = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        start = start or number
        if line.endswith("\\"):
            gathered += line[:-1] + " "
            continue
        yield start, gathered + line
        start, gathered = 0, ""
    if gathered:
        yield start, gathered


def parse_exports(text: str, file: str = EXPORTS) -> list[Export]:
    """Every client of every export of a file in the format of exports(5)."""
    exports = []
    for number, line in _joined_lines(text):
        path, *clients = _words(line) or [""]
        defaults: tuple[str, ...] = ()
        named = False
        for word in clients:
            if word.startswith("-"):
                defaults += _options(word[1:])
                continue
            client, _bracket, options = word.partition("(")
            named = True
            exports.append(
                Export(path, client or _EVERYBODY, defaults + _options(options.rstrip(")")), file, number, line.strip())
            )
        if path and not named:
            # A path alone is for everybody.
            exports.append(Export(path, _EVERYBODY, defaults, file, number, line.strip()))
    return exports


def _options(text: str) -> tuple[str, ...]:
    return tuple(option for option in text.split(",") if option)


def parse_mounts(text: str, file: str = "") -> list[Mount]:
    """The lines of /proc/mounts or fstab(5), in their order: of two on one point the later one is on top."""
    mounts = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#"):
            source, point, kind, options = (_unescape(word) for word in (*fields[:3], " ".join(fields[3:4])))
            mounts.append(Mount(source, point.rstrip("/") or "/", kind, options))
    return mounts


def mount_of(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that ``path`` lies on."""
    best = None
    for mount in mounts:
        if inside(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def same_source(one: str, other: str) -> bool:
    """Whether two sources of a mount, ``address:path``, are the same; an IPv6 address has brackets."""
    return _split_source(one) == _split_source(other)


def _split_source(source: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\[[^]]*\]|[^:/]*):(/.*)", source)
    if not found:
        return source, ""
    host = found.group(1).strip("[]")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        host = host.lower()
    return host, found.group(2).rstrip("/")


def source_of(server: str, path: str) -> str:
    """What is mounted: ``path`` of ``server``, an address or a name."""
    return f"[{server}]:{path}" if ":" in server else f"{server}:{path}"


# --- rendering ---------------------------------------------------------------------------------------------------


def threads_for(cpus: int) -> int:
    """Threads of the server for a machine with so many CPUs.

    A thread waits for the disk with one request at a time, so there are more of them than CPUs. Few of them make clients
    queue, and each costs about a megabyte: that bounds them.
    """
    return max(_FEWEST_THREADS, min(_MOST_THREADS, 2 * cpus))


def _escape_export(path: str) -> str:
    """A path as exports(5) takes it."""
    return "".join(c if c.isalnum() or c in "/._-+:@,%=" else "".join(f"\\{b:03o}" for b in c.encode()) for c in path)


def render_exports(path: str, clients: Sequence[str], options: Sequence[str]) -> str:
    lines = [f"{_escape_export(path)} {client}({','.join(options)})" for client in clients]
    return "\n".join([_HEADER, *lines, ""])


def render_server_conf(threads: int) -> str:
    return f"{_HEADER}\n[nfsd]\nthreads={threads}\nvers4=y\nvers4.2=y\n"


def unit_name(path: str, suffix: str) -> str:
    """The name of the unit for ``path``, as ``systemd-escape --path --suffix`` gives it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    name = "-".join(_escape_unit(part) for part in parts)
    if name.startswith("."):
        name = "\\x2e" + name[1:]
    return f"{name or '-'}.{suffix}"


def _escape_unit(part: str) -> str:
    kept = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_."
    return "".join(chr(b) if b in kept else f"\\x{b:02x}" for b in os.fsencode(part))


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def render_mount(source: str, path: str, options: Sequence[str], timeout: int) -> str:
    """The mount unit. While it is stopped at shutdown, TimeoutSec bounds the wait for a server that is gone."""
    return f"""\
{_HEADER}
[Unit]
Description={_DESCRIPTION}
Documentation=man:nfs(5)
# Attempts while the server is down must not add up: at a limit systemd would give the automount up for good.
StartLimitIntervalSec=0

[Mount]
What={_specifiers(source)}
Where={_specifiers(path)}
Type=nfs4
Options={_specifiers(",".join(options))}
TimeoutSec={timeout}
"""


def render_automount(path: str) -> str:
    return f"""\
{_HEADER}
[Unit]
Description={_DESCRIPTION}, mounted on first use
Documentation=man:nfs(5)
StartLimitIntervalSec=0

[Automount]
Where={_specifiers(path)}

[Install]
WantedBy=multi-user.target
"""


def parse_what(text: str) -> str:
    """The source in a mount unit that this collection wrote; nothing where the unit is another's."""
    found = re.search(r"^What=(.+)$", text, re.MULTILINE)
    return found.group(1).strip().replace("%%", "%") if found and f"Description={_DESCRIPTION}" in text else ""


# --- facts -------------------------------------------------------------------------------------------------------


def look_at(path: str) -> dict[str, Any]:
    """What a directory is, as a process sees it that touches it. May never return: for ``bounded``."""
    facts: dict[str, Any] = {"real": os.path.realpath(path), "exists": False, "kind": "", "empty": None, "owner": None}
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return facts
    facts["exists"] = stat.S_ISDIR(info.st_mode)
    facts["kind"] = "directory" if facts["exists"] else "file"
    facts["owner"] = {"uid": info.st_uid, "gid": info.st_gid, "mode": f"{stat.S_IMODE(info.st_mode):04o}"}
    if facts["exists"]:
        with os.scandir(path) as entries:
            # A new disk has lost+found.
            facts["empty"] = not any(entry.name != "lost+found" for entry in entries)
    return facts


def _look(path: str, seconds: float) -> dict[str, Any]:
    facts = {"real": path, "exists": False, "kind": "", "empty": None, "owner": None, "answers": True, "error": ""}
    try:
        facts.update(bounded(lambda: look_at(path), seconds))
    except NoAnswer:
        facts["answers"] = False
    except OSError as error:
        facts["error"] = error.strerror or str(error)
    return facts


def read_exports(tree: Tree) -> list[Export]:
    """The exports that files ask for, in the order in which exportfs reads them."""
    return [
        export
        for file in (EXPORTS, *tree.glob("/etc/exports.d/*.exports"))
        for export in parse_exports(tree.data(file).decode("utf-8", "replace"), file)
    ]


def _relation(where: str, path: str) -> str:
    if where == path:
        return "same"
    if inside(path, where):
        return "parent"
    return "child" if inside(where, path) else "other"


def touching(exports: Iterable[Export], path: str, real: Mapping[str, str]) -> list[dict[str, Any]]:
    """The lines of others that concern the export of ``path``, one entry a line. ``real`` says where exported paths lead."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for export in exports:
        relation = _relation(real.get(export.path) or os.path.normpath(export.path), path)
        if export.file == OWN_EXPORTS or (relation == "other" and not export.is_root):
            continue
        entry = lines.setdefault(
            (export.file, export.line),
            {
                "file": export.file,
                "line": export.line,
                "text": export.text,
                "path": export.path,
                "relation": relation,
                "clients": [],
                "root": False,
            },
        )
        entry["clients"].append(export.client)
        entry["root"] = entry["root"] or export.is_root
    return list(lines.values())


def _real_paths(tree: Tree, paths: Collection[str], seconds: float) -> dict[str, str]:
    """Where links lead, which exportfs follows; nothing for paths that do not answer."""
    try:
        return bounded(lambda: {path: tree.real(path) for path in paths}, seconds) if paths else {}
    except (NoAnswer, OSError):
        return {}


def read_fstab(tree: Tree, path: str) -> list[dict[str, Any]]:
    """The lines of fstab that mount something on ``path``."""
    found = []
    for number, line in enumerate(tree.data("/etc/fstab").decode("utf-8", "replace").splitlines(), start=1):
        for mount in parse_mounts(line):
            if mount.point == path:
                entry = {"source": mount.source, "type": mount.type, "text": " ".join(line.split())}
                found.append({"file": "/etc/fstab", "line": number, **entry})
    return found


def read_shared_dir(path: str, root: str = "/", seconds: float = PATIENCE) -> dict[str, Any]:
    """What preflight and the modules need to know of the shared directory on one node.

    Only a process of its own touches the path: it may lie on a mount that no longer answers.
    """
    tree = Tree(root)
    facts = _look(path, seconds)
    # After the look, which mounts what is mounted on first use.
    mounts = parse_mounts(tree.data("/proc/mounts").decode("utf-8", "replace"))
    below = mount_of(mounts, facts["real"])
    facts["mount"] = below and {"source": below.source, "point": below.point, "type": below.type}
    facts["mounts"] = [
        {"source": mount.source, "type": mount.type, "options": mount.options}
        for mount in mounts
        if mount.point == path
    ]
    facts["unit"] = parse_what(tree.data(f"{UNITS}/{unit_name(path, 'mount')}").decode("utf-8", "replace"))
    facts["fstab"] = read_fstab(tree, path)
    exports = read_exports(tree)
    facts["exports"] = touching(exports, path, _real_paths(tree, {export.path for export in exports}, seconds))
    facts["server_threads"] = tree.number(SERVER_THREADS) or 0
    return facts


# --- judging -----------------------------------------------------------------------------------------------------


def path_problem(path: str) -> str:
    """Why a path cannot be shared by exports and units, or nothing."""
    if not path.startswith("/") or os.path.normpath(path) != path or path == "/":
        return f"'{path}' must be absolute, without '..', '//' and a slash at its end, and not '/' itself. Write it as /mnt/shared"
    if not path.isprintable() or "\\" in path or path != path.strip():
        return f"{path!r} has a control character, a backslash or a blank at its end. Choose another path"
    if len(unit_name(path, "automount")) > _LONGEST_NAME:
        return f"'{path}' is too long for the name of a systemd unit. Choose a shorter path"
    return ""


def parse_clients(clients: Iterable[str]) -> list[str]:
    """Addresses and networks as exports(5) takes them, ascending. Raises NfsError."""
    found = {}
    for client in clients:
        try:
            network = ipaddress.ip_network(str(client).strip(), strict=False)
        except ValueError:
            raise NfsError(
                f"'{client}' is no IP address or network. Names and wildcards are looked up by the server at every mount, and "
                "whoever answers that look-up is let in: give addresses, such as 10.77.0.12 or 10.77.0.0/24"
            ) from None
        if network.prefixlen == 0:
            raise NfsError(f"'{client}' is the whole Internet. Name the addresses that may mount the directory")
        single = network.num_addresses == 1
        found[network.version, int(network.network_address), network.prefixlen] = (
            str(network.network_address) if single else str(network)
        )
    return [found[key] for key in sorted(found)]


def _same_client(client: str) -> str:
    try:
        return parse_clients([client])[0]
    except NfsError:
        return client


def export_options(options: Iterable[str], root_squash: bool) -> list[str]:
    """The options of the export with the word on root squashing. Raises NfsError for what cannot be."""
    wanted = list(dict.fromkeys(str(option).strip() for option in options))
    for option in wanted:
        if not re.fullmatch(r"[A-Za-z0-9_]+(=[^\s,()\"#\\]+)?", option):
            raise NfsError(
                f"'{option}' is no option of exports(5). Give each as an item of its own, such as sync or anonuid=1000"
            )
        if option in ("fsid=0", "fsid=root"):
            raise NfsError(
                f"'{option}' would make the directory '/' for NFSv4, and workers mount its path. Take it out"
            )
    if "rw" not in wanted or "ro" in wanted:
        raise NfsError(f"'{','.join(wanted)}' lets nobody write. Have 'rw' among them, and not 'ro'")
    word, opposite = ("root_squash", "no_root_squash") if root_squash else ("no_root_squash", "root_squash")
    if opposite in wanted:
        raise NfsError(
            f"'{opposite}' is among them, and nfs_server_root_squash is {str(root_squash).lower()}. Say it there alone: set "
            f"nfs_server_root_squash to {str(not root_squash).lower()}, and take '{opposite}' out"
        )
    return wanted if word in wanted else [*wanted, word]


def _quoted(entry: Mapping[str, Any]) -> str:
    return f"{entry['file']}:{entry['line']}"


def _open_to(entry: Mapping[str, Any]) -> str:
    clients = entry["clients"]
    return "everybody" if _EVERYBODY in clients else ", ".join(clients)


def _check_path(host: str, path: str, shared: Mapping[str, Any]) -> list[str]:
    if shared["real"] != path:
        return [
            f"{host}: {path} is, or lies below, a symbolic link and leads to {shared['real']}. NFS and systemd want the path itself: "
            f"set cluster_shared_dir to {shared['real']} on all nodes, or put a directory in place of the link"
        ]
    if shared["kind"] == "file":
        return [f"{host}: {path} is a file. Move it away, or set cluster_shared_dir to a directory"]
    return []


def check_head(host: str, path: str, shared: Mapping[str, Any]) -> Judgement:
    """Whether the head can export its directory, to the cluster and to nobody else."""
    found = Judgement(_check_path(host, path, shared))
    below = shared["mount"] or {"source": "", "point": "", "type": ""}
    kind = below["type"]
    if not shared["answers"] or shared["error"]:
        said = f"says '{shared['error']}'" if shared["error"] else f"does not answer ({PATIENCE} s)"
        found.problems.append(
            f"{host}: {path} {said}; it lies on {below['source']} ({kind}, mounted on {below['point']}). Mend that file system or "
            "unmount it, then run again"
        )
    # A container has its root on overlay.
    if (kind in _NOT_EXPORTABLE or kind.startswith("fuse.")) and (kind, below["point"]) != ("overlay", "/"):
        found.problems.append(
            f"{host}: {path} lies on {below['source']} ({kind}, mounted on {below['point']}), which NFS cannot export. If that is the "
            "cluster's shared file system set cluster_shared_backend to 'external', else set cluster_shared_dir to a directory on "
            "a disk of the head"
        )
    elif any(entry["type"] in _NOT_EXPORTABLE for entry in shared["fstab"]):
        entry = next(entry for entry in shared["fstab"] if entry["type"] in _NOT_EXPORTABLE)
        found.problems.append(
            f"{host}: {_quoted(entry)} mounts {entry['source']} ({entry['type']}) on {path}, which the head is to export: "
            f"'{entry['text']}'. Take the line out, or set cluster_shared_backend to 'external'"
        )
    for entry in shared["exports"]:
        line = f"{host}: {_quoted(entry)}"
        if entry["relation"] == "same":
            found.problems.append(
                f"{line} exports {path} to {_open_to(entry)}: '{entry['text']}'. The collection exports it, to the cluster alone: take "
                "the line out, and name others who need it in nfs_server_clients"
            )
        elif entry["root"] and entry["path"] != "/":
            found.problems.append(
                f"{line} makes {entry['path']} the root of all NFSv4 paths (fsid=0): '{entry['text']}'. Workers would not find {path}: "
                "take fsid=0 out of the line, and let its clients mount the whole path"
            )
        else:
            part = "a directory above" if entry["relation"] == "parent" else "a part of"
            found.warnings.append(
                f"{line} exports {part} {path} to {_open_to(entry)}, who get at its files so: '{entry['text']}'"
            )
    return found


def root_warning(path: str) -> str:
    return (
        f"nfs_server_root_squash is false: whoever is root on a node, or has its address, is root on {path}, may write files that run "
        "as root elsewhere, and may delete all"
    )


def soft_warning(options: Iterable[str]) -> str:
    soft = [option for option in options if option in ("soft", "softerr")]
    return (
        f"'{soft[0]}' is among the mount options: when the server is slow or restarts, writes fail, and what was being written is lost. "
        "Use 'hard'"
        if soft
        else ""
    )


def check_worker(host: str, path: str, shared: Mapping[str, Any], source: str, mended_by: str = "") -> Judgement:
    """Whether a worker can mount ``source`` on its directory without covering anything.

    ``mended_by`` tells why a mount of ours may not answer now, and which stages of the run mend that: it is a warning then.
    """
    found = Judgement(_check_path(host, path, shared))
    if found.problems:
        return found
    ours = [known for known in (source, shared["unit"]) if known]
    foreign = []
    for mount in shared["mounts"]:
        if mount["type"] == "autofs" and mount["source"] == "systemd-1" and (shared["unit"] or shared["fstab"]):
            continue
        if mount["type"] == "nfs4" and any(same_source(mount["source"], known) for known in ours):
            continue
        foreign.append(f"{mount['source']} ({mount['type']})")
    if foreign:
        found.problems.append(
            f"{host}: {path} has {', '.join(foreign)} mounted on it, and {source} belongs there. Unmount it (umount {path}); if it is the "
            "cluster's shared file system, set cluster_shared_backend to 'external'"
        )
    found.problems += [
        f"{host}: {_quoted(entry)} mounts {entry['source']} on {path}: '{entry['text']}'. It competes with the mount that the collection "
        f"makes, and can hang a boot: unmount it (umount {path}), take the line out, run 'systemctl daemon-reload', then run again"
        for entry in shared["fstab"]
    ]
    if shared["mounts"] and not foreign and (not shared["answers"] or shared["error"]):
        _check_answer(found, host, path, shared, source, mended_by)
    elif not shared["mounts"] and not shared["answers"]:
        below = shared["mount"] or {"source": "an unknown file system", "type": "?"}
        found.problems.append(
            f"{host}: {path} does not answer; it lies on {below['source']} ({below['type']}). Mend or unmount that, then run again"
        )
    elif not shared["mounts"] and shared["empty"] is False:
        found.problems.append(
            f"{host}: {path} is a directory of its own with files in it, which a mount would cover. Move them away "
            f"(mv {path} {path}.local), or set cluster_shared_dir to another path"
        )
    return found


def _check_answer(
    found: Judgement, host: str, path: str, shared: Mapping[str, Any], source: str, mended_by: str
) -> None:
    """A mount of ours that hangs, or that fails."""
    top = shared["mounts"][-1]
    mounted = top["type"] == "nfs4"
    if not mounted and (shared["error"] or not same_source(shared["unit"], source)):
        return  # Nothing is mounted; the stage tries again, by its own server.
    if mended_by:
        found.warnings.append(f"{host}: {path} does not answer: {mended_by}; other stages alone would wait for it")
    elif shared["error"]:
        found.problems.append(
            f"{host}: {path} is a stale mount of {top['source']}, it says '{shared['error']}'. End the processes that use it, unmount it "
            f"(umount {path}), then run again"
        )
    else:
        found.problems.append(
            f"{host}: {path} is mounted from {top['source'] if mounted else source} and does not answer. The server is down, or a "
            f"firewall is between: see 'systemctl status nfs-server' there and TCP port 2049, and if the server is gone for good "
            f"unmount it here (umount -f {path}); then run again"
        )


# --- the exports in force ----------------------------------------------------------------------------------------


def not_in_force(in_force: Iterable[Export], path: str, clients: Sequence[str], options: Sequence[str]) -> str:
    """What the server exports that differs from what is wanted, or nothing."""
    now = {_same_client(export.client): export for export in in_force if export.path == path}
    missing = [client for client in clients if client not in now]
    others = [client for client in now if client not in clients]
    compared = [option for option in options if option in _COMPARED or option.startswith("sec=")]
    wrong = [
        f"{client} without {option}"
        for client in clients
        if client in now
        for option in compared
        if option not in now[client].options
    ]
    said = []
    if missing:
        said.append(f"not to {', '.join(missing)}")
    if others:
        said.append(f"to {', '.join('everybody' if other == _EVERYBODY else other for other in others)}")
    return "; ".join(said + wrong)
