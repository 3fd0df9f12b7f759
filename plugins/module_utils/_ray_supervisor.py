# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Main process of metalray-head.service and metalray-worker.service: runs ``ray start --block`` and watches its raylet.

``ray start --block`` stays alive after its raylet has left in good order, so systemd would call a node without Ray active.
This process asks the raylet itself: the unit is started once the raylet answers, and fails, to be started again, when it no
longer does.

Installed on the nodes as it is: standard library only. ``fingerprint`` is imported by the module that decides whether a
restart is due.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterable
from typing import Callable


def fingerprint(paths: Iterable[str]) -> str:
    """What a start depends on: the text of files, and where links lead (SHA-256, hexadecimal)."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{os.path.realpath(path)}\0".encode())
        if os.path.isfile(path):
            with open(path, "rb") as handle:
                digest.update(handle.read())
        digest.update(b"\0")
    return digest.hexdigest()


def raylet_answers(url: str, timeout: float = 5.0) -> bool:
    """Whether the node's own raylet is alive, as its agent sees it."""
    parts = urllib.parse.urlsplit(url)
    # Asked directly: the node may have a proxy in its environment.
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tell_systemd(state: str) -> None:
    """sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.sendall(state.encode())


class Terminated(Exception):
    """systemd asks to stop."""


def _on_term(_signum: int, _frame: object) -> None:
    raise Terminated


def watch(
    child: subprocess.Popen,
    healthy: Callable[[], bool],
    interval: float,
    start_timeout: float,
    patience: int,
    ready: Callable[[], None],
) -> str:
    """Wait until something ends the watch; says what. ``patience`` is how many answers in a row may fail."""
    begun, up, missed = time.monotonic(), False, 0
    while True:
        try:
            return f"'ray start' ended with status {child.wait(timeout=interval)}"
        except subprocess.TimeoutExpired:
            pass
        if healthy():
            missed = 0
            if not up:
                up = True
                ready()
        elif up:
            missed += 1
            if missed >= patience:
                return f"the raylet has not answered {missed} times in a row"
        elif time.monotonic() - begun > start_timeout:
            return f"the raylet did not answer within {start_timeout:.0f} s"
        tell_systemd("WATCHDOG=1")


def stop(child: subprocess.Popen, grace: float) -> None:
    """End ``ray start``, which ends Ray's processes of this unit; systemd kills what is left of the unit."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            child.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run 'ray start --block' and watch its raylet.")
    parser.add_argument("--health", required=True, help="URL that answers 200 while the raylet lives")
    parser.add_argument("--state", required=True, help="file that takes the fingerprint of what this start depends on")
    parser.add_argument("--depends", action="append", default=[], help="path that this start depends on; repeatable")
    parser.add_argument("--directory", required=True, help="where 'ray start' runs; without it nothing is started")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two questions")
    parser.add_argument(
        "--start-timeout", type=float, default=300.0, help="seconds until the raylet must have answered"
    )
    parser.add_argument("--patience", type=int, default=10, help="questions in a row that may fail")
    parser.add_argument("--grace", type=float, default=45.0, help="seconds that Ray gets to stop")
    parser.add_argument("command", nargs="+", help="'ray start --block' with its options, after --")
    options = parser.parse_args()

    # Taken before the start: a file that changes during it must count as a change.
    depends = fingerprint(options.depends)
    # Not systemd's WorkingDirectory, which would require the mount: a share that is late would end all attempts.
    try:
        os.chdir(options.directory)
    except OSError as error:
        sys.stderr.write(f"metalray: {options.directory}: {error.strerror}; the unit is to be started again\n")
        return 1
    # From here there is something to stop; a wait for the share just ends.
    signal.signal(signal.SIGTERM, _on_term)
    child = subprocess.Popen(options.command)  # pylint: disable=ansible-bad-function # no module runs this

    def ready() -> None:
        with open(options.state, "w", encoding="ascii") as handle:
            handle.write(depends)
        tell_systemd("READY=1")

    try:
        reason = watch(
            child,
            lambda: raylet_answers(options.health),
            options.interval,
            options.start_timeout,
            options.patience,
            ready,
        )
    except Terminated:
        stop(child, options.grace)
        return 0
    sys.stderr.write(f"metalray: {reason}; the unit is to be started again\n")
    sys.stderr.flush()
    stop(child, options.grace)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
