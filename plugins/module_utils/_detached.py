# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work on a node in a process of its own, which a lost connection does not end, and which a later look finds again.

Each run has a directory: ``about`` names what it does, ``progress`` how far it is, ``result`` what came out. The process
holds ``alive`` locked for as long as it lives.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STEP_SECONDS = 0.2

Show = Callable[[str], None]


def _lives(run: Path) -> bool:
    with contextlib.suppress(OSError), (run / "alive").open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def running(place: Path, about: str) -> str:
    """The run that does the same already; empty where there is none. The rests of others are removed."""
    if not place.is_dir():
        return ""
    for run in sorted(place.iterdir()):
        if _lives(run):
            with contextlib.suppress(OSError):
                if (run / "about").read_text(encoding="utf-8") == about:
                    return run.name
        else:
            shutil.rmtree(run, ignore_errors=True)
    return ""


def start(place: Path, about: str, work: Callable[[Show], dict[str, Any]]) -> str:
    """Let ``work`` go on in the background; the run's name. ``work`` returns its result and raises nothing expected."""
    run = place / uuid.uuid4().hex
    run.mkdir(parents=True, mode=0o700)
    (run / "about").write_text(about, encoding="utf-8")
    alive = os.open(run / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    progress = os.open(run / "progress", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX)
    if os.fork():
        os.close(alive)
        os.close(progress)
        return run.name
    try:
        os.setsid()
        # Nobody waits for the end of our output.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)

        def show(said: str) -> None:
            os.pwrite(progress, said.encode().ljust(4096)[:4096], 0)

        try:
            result = work(show)
        except BaseException as error:  # noqa: BLE001 - whoever follows shall hear of it, whatever it is
            result = {"failed": True, "msg": f"the work crashed: {type(error).__name__}: {error}"}
        aside = run / ".result"
        aside.write_text(json.dumps(result), encoding="utf-8")
        os.replace(aside, run / "result")
    finally:
        os._exit(0)


def follow(place: Path, name: str, seconds: float) -> dict[str, Any]:
    """The run's result, or ``progress`` after so many seconds, with ``finished`` beside it. The result is given once."""
    run = place / name
    until = time.monotonic() + seconds
    while True:
        lives = _lives(run)
        with contextlib.suppress(OSError, ValueError):
            result = json.loads((run / "result").read_text(encoding="utf-8"))
            shutil.rmtree(run, ignore_errors=True)
            return {**result, "finished": True}
        if not lives:
            shutil.rmtree(run, ignore_errors=True)
            return {
                "failed": True,
                "finished": True,
                "msg": "the work was killed, or the node was restarted. Look at the node's log (journalctl), then run this "
                "again: it goes on from there",
            }
        if time.monotonic() >= until:
            said = (run / "progress").read_text(encoding="utf-8", errors="replace").strip()
            return {"changed": True, "finished": False, "attempt": name, "progress": said}
        time.sleep(_STEP_SECONDS)
