# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's main process, as a real process with real children, a real HTTP server and a real notify socket."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _ray_supervisor
from ansible_collections.metalray.cluster.plugins.module_utils._ray_supervisor import fingerprint


class Health:
    """Answers for a raylet: 200 while ``alive``, else 503."""

    def __init__(self) -> None:
        self.alive = True
        health = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if health.alive else 503)
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def health():
    health = Health()
    yield health
    health.server.shutdown()
    health.server.server_close()


@pytest.fixture
def supervise(tmp_path, health):
    """Start the supervisor over a command; gives the process and what it tells systemd."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(20)
    started = []

    def start(*command: str, depends=(), **options):
        arguments = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in {"interval": 0.05, "patience": 3, "directory": tmp_path, **options}.items()
        ]
        process = subprocess.Popen(
            [sys.executable, _ray_supervisor.__file__, f"--health={health.url}", f"--state={tmp_path / 'state'}", *arguments,
             *[f"--depends={path}" for path in depends], "--", *command],
            # Nothing listens there: the raylet must be asked without it.
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "http_proxy": "http://127.0.0.1:9"},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        started.append(process)
        return process, notify

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    notify.close()


def wait_ready(notify: socket.socket) -> None:
    while notify.recv(100) != b"READY=1":
        pass


def test_ready_only_when_the_raylet_answers_and_says_what_it_was_started_with(supervise, health, tmp_path):
    depends = tmp_path / "cluster.env"
    depends.write_text("A=1\n")
    health.alive = False
    process, notify = supervise("sleep", "60", depends=[depends])
    assert notify.recv(100) == b"WATCHDOG=1"
    assert not (tmp_path / "state").exists()
    health.alive = True
    wait_ready(notify)
    assert (tmp_path / "state").read_text() == fingerprint([str(depends)])
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_fails_when_the_raylet_is_gone_though_the_command_lives(supervise, health):
    process, notify = supervise("sleep", "60")
    wait_ready(notify)
    health.alive = False
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "has not answered 3 times in a row" in err


def test_fails_when_the_raylet_never_answers(supervise, health):
    health.alive = False
    process, _notify = supervise("sleep", "60", start_timeout=0.3)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "did not answer within" in err


def test_fails_when_the_command_ends_whatever_its_status(supervise):
    process, _notify = supervise("true")
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "ended with status 0" in err


def test_the_command_runs_in_the_directory_and_not_without_it(supervise, tmp_path):
    (tmp_path / "share").mkdir()
    process, _notify = supervise("touch", "here", directory=tmp_path / "share")
    _out, err = process.communicate(timeout=20)
    assert "ended with status 0" in err and (tmp_path / "share" / "here").exists()

    late = tmp_path / "late"
    process, _notify = supervise("touch", str(tmp_path / "started"), directory=late)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and f"{late}: No such file or directory; the unit is to be started again" in err
    assert not (tmp_path / "started").exists()


def test_a_command_that_will_not_stop_is_killed(supervise):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    process, notify = supervise(sys.executable, "-c", stubborn, grace=0.3)
    wait_ready(notify)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_fingerprint_sees_text_links_and_absence(tmp_path):
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "venv"
    one.mkdir()
    two.mkdir()
    text = tmp_path / "cluster.env"
    paths = [str(text), str(link)]
    seen = {fingerprint(paths)}
    text.write_text("A=1\n")
    seen.add(fingerprint(paths))
    text.write_text("A=2\n")
    seen.add(fingerprint(paths))
    link.symlink_to(one)
    seen.add(fingerprint(paths))
    link.unlink()
    link.symlink_to(two)
    seen.add(fingerprint(paths))
    assert len(seen) == 5
    assert fingerprint(paths) in seen
