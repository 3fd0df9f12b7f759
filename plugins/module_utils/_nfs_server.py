# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Export a directory to some clients and to nobody else, and see that it is so.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Callable

from . import _nfs as nfs
from ._fabric import NOT_THERE, TOO_LONG, Run
from ._files import Host, Wanted, apply_files
from ._nfs import NfsError
from ._tree import Tree

_SERVICE = "nfs-server.service"
# Half a second as a rule; with it come rpcbind, statd, idmapd and mountd, on a disk that may be slow.
_START = 300
_COMMAND = 60
_IN_FORCE = "exports in force"


@dataclass(frozen=True)
class Share:
    """What shall be exported. ``threads`` of the server, 0 for as many as fit the machine."""

    path: str
    clients: list[str]
    options: list[str]
    owner: str
    group: str
    threads: int = 0


def export(
    host: Host, share: Share, run: Run, warn: Callable[[str], None], root: str = "/", cpus: int | None = None
) -> dict[str, Any]:
    """Bring the export, the server's settings and the server to what ``share`` says; the keys of a module's result.

    Paths of the share itself are this machine's, those of the server lie below ``root``. Raises NfsError.
    """
    server = _Server(host, share, run, warn, Tree(root), root, cpus or len(os.sched_getaffinity(0)))
    return server.converge()


class _Server:
    def __init__(
        self, host: Host, share: Share, run: Run, warn: Callable[[str], None], tree: Tree, root: str, cpus: int
    ) -> None:
        problem = nfs.path_problem(share.path)
        if problem:
            raise NfsError(problem)
        self.host, self.run, self.warn, self.tree = host, run, warn, tree
        self.root = root.rstrip("/")
        self.share = replace(
            share, clients=nfs.parse_clients(share.clients), threads=share.threads or nfs.threads_for(cpus)
        )
        self.changes: list[str] = []

    def converge(self) -> dict[str, Any]:
        share = self.share
        facts = nfs.read_shared_dir(share.path, self.root or "/")
        judged = nfs.check_head("this node", share.path, facts)
        if judged.problems:
            raise NfsError("; ".join(judged.problems))
        for warning in judged.warnings:
            self.warn(warning)

        applied = apply_files(self.host, [*self._directory(facts), *self._files()])
        self.changes += applied.paths
        written = bool(share.clients) and self.root + nfs.OWN_EXPORTS in applied.paths
        if self.host.check_mode:
            self._foresee(written)
        else:
            self._bring_into_force(written)
        return {
            "changed": bool(self.changes),
            "changes": self.changes,
            "diff": applied.diff,
            "clients": share.clients,
            "threads": share.threads if share.clients else 0,
        }

    def _directory(self, facts: dict[str, Any]) -> list[Wanted]:
        """The directory, new or still root's and empty; one in use keeps its owner and mode."""
        path, owner, group = self.share.path, self.share.owner, self.share.group
        if not facts["exists"]:
            return [Wanted(path, state="directory", mode="0755", owner=owner, group=group)]
        if facts["empty"] and facts["owner"]["uid"] == 0 and owner != "root":
            return [Wanted(path, state="directory", mode=facts["owner"]["mode"], owner=owner, group=group)]
        return []

    def _files(self) -> list[Wanted]:
        share = self.share
        exports, conf = self.root + nfs.OWN_EXPORTS, self.root + nfs.OWN_SERVER_CONF
        if not share.clients:
            return [Wanted(exports, state="absent"), Wanted(conf, state="absent")]
        return [
            Wanted(exports, nfs.render_exports(share.path, share.clients, share.options)),
            Wanted(conf, nfs.render_server_conf(share.threads)),
        ]

    def _foresee(self, written: bool) -> None:
        if written or self._differs():
            self.changes.append(_IN_FORCE)
        if self.share.clients:
            if self._service() != ("active", "enabled"):
                self.changes.append(_SERVICE)
            if self._threads() not in (0, self.share.threads):
                self.changes.append("threads")

    def _bring_into_force(self, written: bool) -> None:
        if self.share.clients:
            self._serve()
        if written or self._differs():
            self._export_again()
        if self.share.clients:
            self._set_threads()
            self._check_version()

    def _in_force(self) -> list[nfs.Export]:
        return nfs.parse_exports(self.tree.data(nfs.EXPORTS_IN_FORCE).decode("utf-8", "replace"), nfs.EXPORTS_IN_FORCE)

    def _differs(self) -> str:
        return nfs.not_in_force(self._in_force(), self.share.path, self.share.clients, self.share.options)

    def _export_again(self) -> None:
        """Not a restart: that would drop clients. What another's line complains of is no failure of ours."""
        in_files = {self.tree.real(entry.path) for entry in nfs.read_exports(self.tree)}
        by_hand = {entry.path for entry in self._in_force()} - in_files - {self.share.path}
        status, out, err = self.run(["exportfs", "-ra"], _COMMAND)
        if status == NOT_THERE:
            raise NfsError("there is no exportfs on this node. Install the package nfs-kernel-server, then run again")
        said = " ".join((err or out).split())
        differs = self._differs()
        if differs:
            raise NfsError(
                f"'exportfs -ra' ended with {'no answer' if status == TOO_LONG else status}, and {self.share.path} is exported "
                f"otherwise than wanted: {differs}. It said: {said or 'nothing'}. Mend what it complains about, then run again"
            )
        if status != 0:
            self.warn(f"exportfs complains about an export that is not the cluster's: {said}")
        if by_hand:
            self.warn(
                f"exports that were made by hand have ended: {', '.join(sorted(by_hand))}. Those that are to stay belong into {nfs.EXPORTS}"
            )
        self.changes.append(_IN_FORCE)

    def _service(self) -> tuple[str, str]:
        _status, out, _err = self.run(
            ["systemctl", "show", "--property=ActiveState", "--property=UnitFileState", _SERVICE], _COMMAND
        )
        values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return values.get("ActiveState", ""), values.get("UnitFileState", "")

    def _serve(self) -> None:
        """Started now and at each boot."""
        active, enabled = self._service()
        if enabled != "enabled":
            self._systemctl("enable", _COMMAND)
        if active != "active":
            self._systemctl("start", _START)
        elif not self._threads():
            # The service counts as active without a single thread, and then has no client to drop.
            self._systemctl("restart", _START)
        if not self._threads():
            raise NfsError(
                f"{_SERVICE} was started, but the kernel serves no NFS ({nfs.SERVER_THREADS} says nothing). A container cannot; on a "
                f"machine look at 'journalctl -u {_SERVICE}' and 'modprobe nfsd', then run again"
            )

    def _systemctl(self, verb: str, seconds: float) -> None:
        status, out, err = self.run(["systemctl", verb, _SERVICE], seconds)
        if status != 0:
            said = " ".join((err or out).split())
            raise NfsError(
                f"'systemctl {verb} {_SERVICE}' failed: {said}. See 'journalctl -u {_SERVICE}', then run again"
            )
        self.changes.append(f"{_SERVICE} ({verb})")

    def _threads(self) -> int:
        return self.tree.number(nfs.SERVER_THREADS) or 0

    def _set_threads(self) -> None:
        wanted = self.share.threads
        if self._threads() == wanted:
            return
        try:
            with open(self.tree.at(nfs.SERVER_THREADS), "w", encoding="ascii") as handle:
                handle.write(f"{wanted}\n")
        except OSError as error:
            raise NfsError(
                f"the running server did not take {wanted} threads ({nfs.SERVER_THREADS}: {error.strerror}). Set nfs_server_threads to "
                "fewer, or free memory"
            ) from None
        self.changes.append(f"threads ({wanted})")

    def _check_version(self) -> None:
        versions = self.tree.text(nfs.SERVER_VERSIONS).split()
        if versions and "+4.2" not in versions:
            raise NfsError(
                f"the running server does not offer NFSv4.2 ({' '.join(versions)}). {nfs.OWN_SERVER_CONF} asks for it from its next start "
                f"on: run 'systemctl restart {_SERVICE}' when its clients can wait for a moment, then run again"
            )
