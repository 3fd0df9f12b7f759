# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunnel of SSH to a port on a node's loopback interface, that outlives the run which opened it.

It is known by its control socket alone, whose name holds what the tunnel leads to and its port on this machine.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONNECT_SECONDS = 60


class TunnelError(Exception):
    """The tunnel cannot be opened or closed; the text says why."""


def free_port(wanted: int, preferred: int) -> int:
    """``wanted``, where it is given; else ``preferred``, where it is free; else any. Raises TunnelError if ``wanted`` is taken."""
    for port in (wanted,) if wanted else (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            # As ssh does: the last tunnel's closed connections do not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise TunnelError(
        f"port {wanted} of this machine is taken or not allowed; choose another, or 0 for any that is free"
    )


def answers(port: int, timeout: float = 10) -> bool:
    """Whether a web server answers on this machine's port, whatever it says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/")
        return bool(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class Tunnel:
    """``ssh`` are the program and its options, with all that it takes to reach the node, and ``target`` the node."""

    directory: Path
    ssh: Sequence[str]
    target: str
    remote_port: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        identity = "\0".join([*self.ssh, self.target, str(self.remote_port)])
        object.__setattr__(self, "name", f"dashboard-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")

    def command(self, port: int) -> str:
        """What opens the same tunnel by hand."""
        return shlex.join([self.ssh[0], "-N", "-L", self._forward(port), *self.ssh[1:], self.target])

    def _forward(self, port: int) -> str:
        return f"127.0.0.1:{port}:127.0.0.1:{self.remote_port}"

    def port(self) -> int:
        """Where it is open on this machine, or 0. What a tunnel that broke has left is removed."""
        for path in self.directory.glob(f"{self.name}-*"):
            if self._control(path, "check").returncode == 0:
                return int(path.name.rpartition("-")[2])
            path.unlink(missing_ok=True)
        return 0

    def open(self, port: int) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{self.name}-{port}"
        # The first value of an option counts: Ansible's own options ask for another master, which ends by itself.
        own = ["-f", "-N", "-M", "-S", str(path), "-o", "ControlPersist=no", "-o", "ExitOnForwardFailure=yes"]
        own += ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", "-L", self._forward(port)]
        # It keeps its outputs open for as long as it lives: a pipe would never end.
        with tempfile.TemporaryFile("w+") as said:
            try:
                done = subprocess.run(
                    [self.ssh[0], *own, *self.ssh[1:], self.target],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                    timeout=CONNECT_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise TunnelError(f"ssh did not connect ({error})") from None
            if done.returncode:
                said.seek(0)
                words = [line.strip() for line in said if line.strip()]
                raise TunnelError(f"ssh did not open it: {words[-1] if words else f'status {done.returncode}'}")

    def close(self) -> None:
        for path in self.directory.glob(f"{self.name}-*"):
            self._control(path, "exit")
            path.unlink(missing_ok=True)

    def _control(self, path: Path, order: str) -> subprocess.CompletedProcess:
        command = [self.ssh[0], "-S", str(path), "-O", order, self.target]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
