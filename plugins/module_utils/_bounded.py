# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at a path that may never answer: whoever touches a mount whose server is gone waits for as long as it is gone.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import Any, Callable


class NoAnswer(Exception):
    """The time was up."""


def bounded(look: Callable[[], Any], seconds: float) -> Any:
    """What ``look`` returns, in JSON's types, from a process of its own that is killed after ``seconds``.

    Raises NoAnswer after that time, and OSError as ``look`` does. Whatever else goes wrong in ``look`` is a RuntimeError.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Never back into the caller's code, and nothing flushed twice.
        try:
            os.close(reader)
            # Should it outlive its time, it keeps nobody waiting for the end of the caller's output.
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                json.dump(_answer(look), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = _read(pipe.fileno(), time.monotonic() + seconds)
    if text is None:
        os.kill(child, signal.SIGKILL)
    _reap(child, patient=text is not None)
    if text is None:
        raise NoAnswer
    if not text:
        raise RuntimeError("the look ended without an answer")
    answer = json.loads(text)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def _answer(look: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": look()}
    except OSError as error:
        return {"errno": error.errno} if error.errno else {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the caller shall hear of it, whatever it is
        return {"error": f"{type(error).__name__}: {error}"}


def _read(descriptor: int, until: float) -> bytes | None:
    """All that comes before the pipe closes; None where it stays open for too long."""
    text = b""
    while True:
        ready, _writable, _other = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return text
        text += chunk


def _reap(child: int, patient: bool) -> None:
    """What hangs in a driver does not die of SIGKILL, and is left to the first process."""
    until = time.monotonic() + 1
    with contextlib.suppress(ChildProcessError):
        if patient:
            os.waitpid(child, 0)
            return
        while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
