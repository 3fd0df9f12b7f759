# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of ray_job: the module against a dashboard with a memory, and the following on the controller."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.metalray.cluster.plugins.action import ray_job as action
from ansible_collections.metalray.cluster.plugins.modules import ray_cluster_info, ray_job

SECRET = "canary-8f2e1d"


class Ray:
    """What a dashboard knows, and how long its jobs take: one more question each."""

    def __init__(self, session: Path) -> None:
        self.session = session
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ends_as = "SUCCEEDED"
        self.log = "epoch 1/2\nepoch 2/2\n"
        self.result: dict[str, Any] | None = None
        self.questions = 0
        self.raylets: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        self.jobs[body["submission_id"]] = {
            **body,
            "type": "SUBMISSION",
            "status": "RUNNING",
            "message": "Job is currently running.",
            "driver_node_id": "n",
            "start_time": time.time() * 1000,
            "end_time": None,
        }
        (self.session / "logs").mkdir(exist_ok=True)
        (self.session / "logs" / f"job-driver-{body['submission_id']}.log").write_text(self.log)
        return {}

    def look(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        self.questions += 1
        if job["status"] == "RUNNING" and self.questions > 2:
            job.update(
                status=self.ends_as,
                message=f"Job ended, last available logs (x):\n{SECRET}",
                end_time=time.time() * 1000,
            )
            target = (job.get("runtime_env") or {}).get("env_vars", {}).get("METALRAY_RESULT_FILE")
            if target and self.result is not None:
                Path(target).write_text(json.dumps({"submission_id": name, **self.result}))
        return job


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path) -> Iterator[tuple[str, Ray]]:
    ray = Ray(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = self.path.strip("/").split("/")
            status, value = 200, {}  # type: tuple[int, Any]
            if self.path == "/nodes/n":
                value = {"data": {"detail": {"raylet": {"sessionDir": str(ray.session)}}}}
            elif self.path == "/nodes?view=summary":
                value = {"data": {"summary": [{"raylet": raylet} for raylet in ray.raylets]}}
            elif parts[:3] == ["api", "v0", "nodes?detail=1&limit=10000"]:
                value = {"data": {"result": {"result": ray.nodes}}}
            elif self.path == "/api/jobs/":
                value = ray.submit(json.loads(body)) if self.command == "POST" else list(ray.jobs.values())
            elif parts[2] not in ray.jobs:
                status, value = 404, "Job does not exist"
            elif self.command == "DELETE":
                del ray.jobs[parts[2]]
            elif parts[-1] == "stop":
                ray.jobs[parts[2]]["status"] = "STOPPED"
            else:
                value = ray.look(parts[2])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", ray
    server.shutdown()
    server.server_close()


def run_module(module: Any, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Run a module as Ansible does, in a process of its own, and return what it printed."""
    payload = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}})
    program = (
        "import sys; from ansible.module_utils import basic; basic._ANSIBLE_ARGS = sys.argv[2].encode(); "
        "basic._ANSIBLE_PROFILE = 'legacy'; import importlib; importlib.import_module(sys.argv[1]).main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program, module.__name__, payload],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(name="run")
def _run(cluster: tuple[str, Ray], tmp_path: Path) -> Any:
    (tmp_path / "secrets.env").write_text(f"A_KEY={SECRET}\n")

    def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
        base = {
            "name": "a",
            "entrypoint": "true",
            "address": cluster[0],
            "token_path": str(tmp_path / "no-token"),
            "secret_files": [str(tmp_path / "secrets.env")],
        }
        return run_module(ray_job, {**base, **arguments}, check)

    return run


class TestModule:
    def test_life_of_a_job(self, cluster: tuple[str, Ray], run: Any, tmp_path: Path) -> None:
        ray, result_file = cluster[1], str(tmp_path / "result.json")
        ray.result = {"status": "SUCCEEDED", "loss": 1}
        would = run(check=True, result_file=result_file)
        assert would["changed"] and not ray.jobs
        started = run(result_file=result_file, env={"FLAG": True})
        assert (started["changed"], started["submission_id"]) == (True, "a")
        assert ray.jobs["a"]["runtime_env"]["env_vars"] == {
            "FLAG": "true",
            "METALRAY_SUBMISSION_ID": "a",
            "METALRAY_RESULT_FILE": result_file,
        }
        ended = run(result_file=result_file, follow={"attempt": "a", "offset": 0, "seconds": 20})
        while not ended["finished"]:
            ended = run(result_file=result_file, follow={"attempt": "a", "offset": ended["offset"], "seconds": 20})
        assert ended["status"] == "SUCCEEDED"
        assert ended["log"] == ["epoch 1/2", "epoch 2/2"]
        assert ended["progress"] == "epoch 2/2"
        assert ended["result"]["loss"] == 1
        again = run(result_file=result_file)
        assert (again["changed"], again["status"], again["result"]["loss"]) == (False, "SUCCEEDED", 1)
        ray.jobs.clear()  # Ray was restarted.
        forgotten = run(result_file=result_file)
        assert (forgotten["changed"], forgotten["status"]) == (False, "SUCCEEDED")
        forced = run(result_file=result_file, force=True)
        assert (forced["changed"], forced["submission_id"]) == (True, "a.2")

    def test_a_failure_is_explained_and_tells_no_secret(self, cluster: tuple[str, Ray], run: Any) -> None:
        ray = cluster[1]
        ray.ends_as, ray.log = "FAILED", f"key {SECRET}\nOSError: [Errno 24] Too many open files\n"
        run()
        ended = run(follow={"attempt": "a", "seconds": 20})
        while not ended["finished"]:
            ended = run(follow={"attempt": "a", "offset": ended["offset"], "seconds": 20})
        assert ended["failed"]
        assert ended["cause"] == "too_many_open_files"
        assert "--tags limits,ray" in ended["msg"]
        assert ended["log"][0] == "key ********"
        assert SECRET not in json.dumps({**ended, "invocation": None})
        assert run()["submission_id"] == "a.2"

    def test_an_end_without_the_result_is_a_failure(
        self, cluster: tuple[str, Ray], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "result.json"
        path.write_text('{"submission_id": "other", "status": "SUCCEEDED"}')
        cluster[1].submit({"submission_id": "a"})
        cluster[1].jobs["a"]["status"] = "SUCCEEDED"
        ended = run(result_file=str(path), follow={"attempt": "a", "seconds": 1})
        assert ended["failed"] and "did not write" in ended["msg"]

    def test_stop_and_forget(self, cluster: tuple[str, Ray], run: Any) -> None:
        ray = cluster[1]
        assert run(state="stopped")["changed"] is False
        run()
        assert run(check=True, state="stopped")["changed"] is True
        assert ray.jobs["a"]["status"] == "RUNNING"
        assert run(force=True)["failed"]
        assert run(state="stopped")["status"] == "STOPPED"
        assert run(state="stopped")["changed"] is False
        assert run(check=True, state="absent")["changed"] is True
        assert run(state="absent")["changed"] is True
        assert ray.jobs == {}
        assert run(state="absent")["changed"] is False
        assert "knows no job" in run(state="attached")["msg"]

    def test_without_a_name_it_is_the_one_that_runs(self, cluster: tuple[str, Ray], run: Any) -> None:
        ray = cluster[1]
        assert "knows no job" in run(name=None, state="attached")["msg"]
        assert run(name=None, state="stopped")["msg"] == "No job runs."
        for name, status in {"b.2": "SUCCEEDED", "c": "RUNNING", "a": "FAILED"}.items():
            ray.submit({"submission_id": name})
            ray.jobs[name]["status"] = status
        assert run(name=None, state="attached")["submission_id"] == "c"
        assert run(name=None, state="attached", follow={"attempt": "b.2"})["status"] == "SUCCEEDED"
        would = run(check=True, name=None, state="stopped")
        assert would["msg"].startswith("Would stop c ") and ray.jobs["c"]["status"] == "RUNNING"
        stopped = run(name=None, state="stopped")
        assert stopped["changed"] and stopped["msg"].startswith("Stopped c ")
        assert stopped["diff"]["before"] == "c: RUNNING\n" and stopped["diff"]["after"] == "c: STOPPED\n"
        assert run(name=None, state="attached")["submission_id"] == "a"

    def test_of_two_that_run_none_is_stopped_by_guess(self, cluster: tuple[str, Ray], run: Any) -> None:
        for name in ("b", "a"):
            cluster[1].submit({"submission_id": name})
        refused = run(name=None, state="stopped")
        assert refused["failed"] and "2 jobs run: a, b. None was stopped" in refused["msg"]
        assert "beside" in run(name=None, state="attached")["reason"]

    def test_the_diff_shows_what_is_submitted_and_no_secret(self, cluster: tuple[str, Ray], run: Any) -> None:
        would = run(check=True, entrypoint=f"train --key {SECRET}", env={"A": 1})
        assert would["diff"]["before"] == "" and 'entrypoint: "train --key ********"' in would["diff"]["after"]
        assert '"A": "1"' in would["diff"]["after"]
        assert run(entrypoint="train")["diff"]["after"].startswith("a: submitted\n")
        assert run(state="absent")["diff"] == {
            "before_header": "job", "after_header": "job", "before": "a: RUNNING\n", "after": "",
        }  # fmt: skip

    def test_a_bar_that_is_drawn_again_and_again_is_progress_and_no_log(
        self, cluster: tuple[str, Ray], run: Any
    ) -> None:
        ray = cluster[1]
        ray.log, ray.questions = "begin\nTraining:  10%|#    | 1/10\rTraining:  20%|##   | 2/10\r 30%", -99
        run()
        news = run(follow={"attempt": "a", "offset": 0, "seconds": 0})
        assert (news["lines"], news["progress"]) == (["begin"], "Training:  20%|##   | 2/10")
        log = ray.session / "logs" / "job-driver-a.log"
        log.write_text(ray.log + "\rTraining: 100%|#####| 10/10\r\nend\n")
        news = run(follow={"attempt": "a", "offset": news["offset"], "seconds": 0})
        assert news["lines"] == ["Training: 100%|#####| 10/10", "end"]

    @pytest.mark.parametrize("given", [[], [{"name": "node3", "address": "10.0.0.13"}]])
    def test_a_node_that_was_lost_is_named(
        self, cluster: tuple[str, Ray], run: Any, given: list[dict[str, str]]
    ) -> None:
        ray = cluster[1]
        ray.ends_as, ray.log, ray.questions = "FAILED", "epoch 1/2\nRuntimeError: Connection reset by peer\n", 9
        run()
        now = int(time.time() * 1000)
        gone = {
            "node_ip": "10.0.0.13",
            "state": "DEAD",
            "end_time_ms": now + 500,
            "state_message": "health check failed",
        }
        before = {"node_ip": "10.0.0.14", "state": "DEAD", "end_time_ms": now - 60000, "state_message": "restart"}
        ray.nodes = [gone, before, {"node_ip": "10.0.0.12", "state": "ALIVE", "end_time_ms": 0}]
        where = {"nodeManagerHostname": "host3", "nodeManagerPort": 1, "state": "DEAD"}
        ray.raylets = [{"nodeManagerAddress": "10.0.0.13", **where}]
        ended = run(follow={"attempt": "a", "offset": 0, "seconds": 0}, nodes=given)
        name = "node3" if given else "host3"
        assert ended["cause"] == "node_lost"
        assert f"node {name} (10.0.0.13) left the cluster 0:00 after the job began: health check failed" in ended["msg"]
        assert "10.0.0.14" not in ended["msg"] and "last checkpoint" in ended["mend"]

    def test_so_is_one_that_ray_still_believes_alive(self, cluster: tuple[str, Ray], run: Any) -> None:
        ray = cluster[1]
        ray.ends_as, ray.log, ray.questions = "FAILED", "RuntimeError: Connection reset by peer\n", 9
        run()
        with socket.create_server(("127.0.0.1", 0)) as server:
            alive = {"state": "ALIVE", "nodeManagerHostname": "host"}
            ray.raylets = [
                {**alive, "nodeManagerAddress": "127.0.0.1", "nodeManagerPort": server.getsockname()[1]},
                {**alive, "nodeManagerAddress": "127.0.0.2", "nodeManagerPort": server.getsockname()[1]},
            ]
            ended = run(follow={"attempt": "a", "offset": 0, "seconds": 0})
        assert ended["evidence"] == "node host (127.0.0.2) does not answer"

    def test_a_job_that_ray_lost(self, run: Any) -> None:
        ended = run(follow={"attempt": "a", "seconds": 1})
        assert ended["failed"] and ended["status"] == "ABSENT"
        assert "restarted" in ended["msg"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"name": "a.2"}, "name must be"),
            ({"name": "a b"}, "name must be"),
            ({"wait_timeout": -1}, "wait_timeout must not be negative"),
            ({"progress_pattern": "("}, "progress_pattern"),
            ({"result_file": "relative"}, "absolute"),
            ({"entrypoint": None}, "entrypoint"),
        ],
    )
    def test_bad_input(self, run: Any, arguments: dict[str, Any], words: str) -> None:
        answer = run(**arguments)
        assert answer["failed"] and words in answer["msg"]

    def test_before_ray_check_mode_says_what_would_be_done(self, run: Any) -> None:
        answer = run(check=True, address="http://127.0.0.1:1")
        assert answer["changed"] and "would submit" in answer["msg"]
        refused = run(address="http://127.0.0.1:1")
        assert refused["failed"] and "--tags ray" in refused["msg"]


class TestInfo:
    def test_absent_cluster(self, tmp_path: Path) -> None:
        arguments = {
            "address": "http://127.0.0.1:1",
            "token_path": str(tmp_path / "none"),
            "nodes": [{"name": "n1", "address": "10.0.0.1"}],
        }
        failed = run_module(ray_cluster_info, arguments)
        assert failed["failed"] and "--tags ray" in failed["msg"]
        seen = run_module(ray_cluster_info, {**arguments, "wait_timeout": 60}, check=True)
        assert (seen["reachable"], seen["healthy"], seen["missing"]) == (False, False, ["n1"])


class Follower(action.ActionModule):
    """The action with a script in the place of the node."""

    def __init__(self, script: list[Any], arguments: dict[str, Any], check_mode: bool = False) -> None:
        self.script, self.calls, self.resets = script, [], 0
        self._task = SimpleNamespace(args=arguments, check_mode=check_mode, async_val=0, diff=False)
        self._connection = SimpleNamespace(reset=self._reset, _shell=SimpleNamespace(tmpdir="/old"))

    def _reset(self) -> None:
        self.resets += 1

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(arguments)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return dict(step)


RUNNING = {"submission_id": "a", "attempts": 1, "status": "RUNNING", "elapsed": 5, "finished": False, "lines": ["x"]}
FIRST = {"submission_id": "a", "attempts": 1, "status": "PENDING", "changed": True, "offset": 0, "reason": "new"}
ENDED = {**RUNNING, "status": "SUCCEEDED", "finished": True, "changed": False, "lines": ["epoch 2/2"], "log": ["x"]}


@pytest.fixture(name="shown")
def _shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(action, "Display", lambda: SimpleNamespace(display=lines.append))
    monkeypatch.setattr(action.ActionBase, "run", lambda *_arguments, **_options: {})
    monkeypatch.setattr(action.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(action.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    return lines


def follow(script: list[Any], check_mode: bool = False, **arguments: Any) -> tuple[dict[str, Any], Follower]:
    plugin = Follower(script, {"name": "a", **arguments}, check_mode)
    return plugin.run(task_vars={"inventory_hostname": "n1"}), plugin


class TestAction:
    def test_follows_to_the_end(self, shown: list[str]) -> None:
        result, plugin = follow([FIRST, {**RUNNING, "offset": 7, "progress": "epoch 1/2"}, ENDED])
        assert (result["changed"], result["status"]) == (True, "SUCCEEDED")
        assert result["progress"] == "epoch 1/2"
        assert plugin.calls[1]["follow"] == {"attempt": "a", "offset": 0, "seconds": 10}
        assert plugin.calls[2]["follow"]["offset"] == 7
        assert not set(result) & set(action.INTERNAL)
        assert shown[0] == "[n1] a submitted: new"
        assert "[n1]   | x" in shown
        assert "[n1] a RUNNING 0:05  epoch 1/2" in shown

    def test_without_the_log_the_progress_is_shown(self, shown: list[str]) -> None:
        follow([FIRST, {**RUNNING, "progress": "epoch 1/2"}, ENDED], show_log="no")
        assert not any("|" in line for line in shown)
        assert "[n1] a RUNNING 0:05  epoch 1/2" in shown

    @pytest.mark.parametrize(
        "lost",
        [AnsibleConnectionFailure("ssh: gone"), {"failed": True, "unreachable_dashboard": True, "msg": "refused"}],
    )
    def test_outlives_a_lost_connection(self, shown: list[str], lost: Any) -> None:
        result, plugin = follow([FIRST, {**RUNNING, "offset": 7}, lost, lost, ENDED])
        assert result["status"] == "SUCCEEDED"
        assert plugin.calls[-1]["follow"]["offset"] == 7
        assert plugin.resets == 2
        assert plugin._connection._shell.tmpdir is None
        assert any("out of reach" in line for line in shown)
        assert "[n1] a: reached again" in shown

    def test_but_not_for_ever(self, shown: list[str]) -> None:
        lost = AnsibleConnectionFailure("ssh: gone")
        result, _plugin = follow([FIRST, RUNNING, lost], reconnect_timeout=60)
        assert result["failed"] and result["changed"]
        assert "could not be followed any more for 1:" in result["msg"]
        assert "attach" in result["msg"]

    def test_another_error_ends_it_at_once(self, shown: list[str]) -> None:
        result, plugin = follow([FIRST, {"failed": True, "msg": "sudo: a password is required"}])
        assert result["failed"] and "sudo" in result["msg"]
        assert len(plugin.calls) == 2

    def test_waits_no_longer_than_told(self, shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = iter(range(0, 1000, 4))
        monkeypatch.setattr(action.time, "monotonic", lambda: next(ticks))
        result, _plugin = follow([FIRST, RUNNING], wait_timeout="20")
        assert result["failed"] and "still RUNNING after 20 seconds" in result["msg"]

    def test_a_failed_job_fails_the_task(self, shown: list[str]) -> None:
        failed = {**ENDED, "status": "FAILED", "failed": True, "msg": "why"}
        result, _plugin = follow([FIRST, failed])
        assert (result["failed"], result["msg"], result["changed"]) == (True, "why", True)

    @pytest.mark.parametrize("arguments", [{"wait": False}, {"wait": "no"}, {"state": "stopped"}])
    def test_does_not_follow(self, shown: list[str], arguments: dict[str, Any]) -> None:
        result, plugin = follow([FIRST], **arguments)
        assert len(plugin.calls) == 1 and result["changed"]

    def test_check_mode_asks_once(self, shown: list[str]) -> None:
        _result, plugin = follow([{**FIRST, "changed": False}], check_mode=True)
        assert len(plugin.calls) == 1

    def test_a_heartbeat_in_silence(self) -> None:
        lines: list[str] = []
        now = SimpleNamespace(value=0.0)
        reporter = action.Reporter(lines.append, "n1", True, lambda: now.value)
        for now.value in range(0, 100, 10):
            reporter.round({**RUNNING, "lines": []})
        assert len(lines) == 4
