# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of module_utils/_ray.py: what is decided from Ray's answers, and how the dashboard is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _ray as ray

TOKEN = "0123456789abcdef"


def raw_node(address: str, state: str = "ALIVE", **changes: Any) -> dict[str, Any]:
    """A node as /api/v0/nodes of Ray 2.60 gives it."""
    return {
        "node_id": f"id-{address}-{state}",
        "node_ip": address,
        "is_head_node": address.endswith(".11"),
        "state": state,
        "state_message": None,
        "node_name": address,
        "resources_total": {
            "node:__internal_head__": 1.0,
            f"node:{address}": 1.0,
            "memory": 24420605440.0,
            "CPU": 4.0,
            "object_store_memory": 200000000.0,
        },
        "labels": {"ray.io/node-id": "x", "rack": "7"},
        "start_time_ms": 1,
        "end_time_ms": 0,
        **changes,
    }


def wanted(name: str, address: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "address": address, "cpus": 0, "gpus": 0, **more}


class TestNodes:
    def test_names_resources_and_order(self) -> None:
        usage = {"id-10.0.0.11-ALIVE": {"CPU": [1.0, 4.0], "node:InternalHead": [0.0, 1.0]}}
        found = ray.describe_nodes(
            [raw_node("10.0.0.101"), raw_node("10.0.0.9"), raw_node("10.0.0.11")], usage, [wanted("n1", "10.0.0.11")]
        )
        assert [node["address"] for node in found] == ["10.0.0.11", "10.0.0.9", "10.0.0.101"]
        assert found[0]["name"] == "n1"
        assert found[1]["name"] == "10.0.0.9"
        assert found[0]["resources"] == {
            "total": {"CPU": 4, "memory": 24420605440, "object_store_memory": 200000000},
            "available": {"CPU": 3},
        }
        assert found[0]["labels"] == {"rack": "7"}

    def test_a_node_that_came_back_is_alive_once(self) -> None:
        found = ray.describe_nodes([raw_node("10.0.0.12", "DEAD"), raw_node("10.0.0.12")], {}, [])
        assert [node["alive"] for node in found] == [True]

    def test_of_several_deaths_the_last_counts(self) -> None:
        deaths = [
            raw_node("10.0.0.12", "DEAD", end_time_ms=5, state_message="new", node_id="b"),
            raw_node("10.0.0.12", "DEAD", end_time_ms=2, state_message="old", node_id="a"),
        ]
        assert [node["state_message"] for node in ray.describe_nodes(deaths, {}, [])] == ["new"]

    def test_what_is_wrong_is_named(self) -> None:
        raw = [
            raw_node("10.0.0.11"),
            raw_node("10.0.0.12", "DEAD", state_message="health check failed"),
            raw_node("10.0.0.14"),
        ]
        want = [
            wanted("head", "10.0.0.11", cpus=8, gpus=1),
            wanted("w1", "10.0.0.12"),
            wanted("w2", "10.0.0.13"),
        ]
        compared = ray.compare_nodes(ray.describe_nodes(raw, {}, want), want)
        assert compared.missing == ["w2"]
        assert compared.dead == ["w1"]
        assert compared.short == ["head"]
        assert compared.unexpected == ["10.0.0.14"]
        assert compared.problems == [
            "head (10.0.0.11) offers 4 of 8 CPUs",
            "head (10.0.0.11) offers 0 of 1 GPUs",
            "w1 (10.0.0.12) has left the cluster: health check failed",
            "w2 (10.0.0.13) has not joined",
        ]

    def test_old_deaths_of_strangers_are_no_problem(self) -> None:
        raw = [raw_node("10.0.0.11"), raw_node("10.0.0.99", "DEAD")]
        want = [wanted("head", "10.0.0.11", cpus=4)]
        compared = ray.compare_nodes(ray.describe_nodes(raw, {}, want), want)
        assert compared.problems == []
        assert compared.dead == ["10.0.0.99"]

    def test_sums_are_of_the_living(self) -> None:
        found = ray.describe_nodes([raw_node("10.0.0.11"), raw_node("10.0.0.12", "DEAD")], {}, [])
        assert ray.total_resources(found)["total"]["CPU"] == 4


def job(submission_id: str, status: str, **more: Any) -> dict[str, Any]:
    return {"submission_id": submission_id, "status": status, **more}


class TestAttempts:
    @pytest.mark.parametrize(
        ("submission_id", "number"),
        [("a", 1), ("a.2", 2), ("a.10", 10), ("a.0", None), ("a.x", None), ("a-2", None), ("b", None), ("a.2.3", None)],
    )
    def test_number(self, submission_id: str, number: int | None) -> None:
        assert ray.attempt_number("a", submission_id) == number

    def test_the_id_leads_back(self) -> None:
        assert [ray.attempt_number("a", ray.attempt_id("a", number)) for number in (1, 2, 33)] == [1, 2, 33]

    def test_what_runs_in_words(self) -> None:
        by_hand = {"type": "DRIVER", "submission_id": None, "driver_info": {"pid": "7", "node_ip_address": "10.0.0.11"}}
        jobs = [job("b", "RUNNING"), job("a", "PENDING"), job("c", "FAILED"), {**by_hand, "status": "RUNNING"}]
        assert ray.running_jobs(jobs) == ["a", "b", "process 7 on 10.0.0.11, started by hand"]

    def test_only_its_own_in_order(self) -> None:
        jobs = [job("a.10", "FAILED"), job("b", "RUNNING"), job("a", "FAILED"), job("a.9", "STOPPED")]
        assert [attempt.number for attempt in ray.attempts_of("a", jobs)] == [1, 9, 10]


SUCCESS = {"submission_id": "a", "status": "SUCCEEDED"}


@pytest.mark.parametrize(
    ("statuses", "result", "options", "action", "attempt"),
    [
        ([], None, {}, "submit", 1),
        (["RUNNING"], None, {}, "attach", 1),
        (["FAILED", "PENDING"], None, {}, "attach", 2),
        (["SUCCEEDED"], None, {}, "done", 1),
        (["FAILED"], None, {}, "submit", 2),
        (["STOPPED"], None, {}, "submit", 2),
        (["FAILED"], None, {"retry_failed": False}, "done", 1),
        (["SUCCEEDED"], None, {"force": True}, "submit", 2),
        (["RUNNING"], None, {"force": True}, "fail", 1),
        # Ray was restarted: only the file remembers.
        ([], SUCCESS, {"wants_result": True}, "done", 1),
        ([], {"submission_id": "a.3", "status": "SUCCEEDED"}, {"wants_result": True, "force": True}, "submit", 4),
        ([], {"submission_id": "a.3", "status": "FAILED"}, {"wants_result": True}, "submit", 4),
        ([], {"submission_id": "other", "status": "SUCCEEDED"}, {"wants_result": True}, "submit", 1),
        # The file was removed, to train again.
        (["SUCCEEDED"], None, {"wants_result": True}, "submit", 2),
        (["SUCCEEDED"], SUCCESS, {"wants_result": True}, "done", 1),
        # A newer failure counts more than an older success.
        (["SUCCEEDED", "FAILED"], SUCCESS, {"wants_result": True}, "submit", 3),
    ],
)
def test_decide(
    statuses: list[str], result: dict[str, Any] | None, options: dict[str, Any], action: str, attempt: int
) -> None:
    attempts = [ray.Attempt(number, job("x", status)) for number, status in enumerate(statuses, 1)]
    decision = ray.decide("a", attempts, result, **options)
    assert (decision.action, decision.attempt) == (action, attempt)
    assert decision.reason


class TestResult:
    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"SUCCEEDED"', "\x00"])
    def test_what_is_no_object_says_nothing(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "result.json"
        path.write_text(text)
        assert ray.read_result(str(path)) is None

    def test_bytes_and_absence_say_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        assert ray.read_result(str(tmp_path / "bytes")) is None
        assert ray.read_result(str(tmp_path / "none")) is None
        assert ray.read_result(None) is None

    def test_object(self, tmp_path: Path) -> None:
        (tmp_path / "r").write_text(json.dumps(SUCCESS))
        assert ray.read_result(str(tmp_path / "r")) == SUCCESS


class TestLog:
    def test_only_news_and_only_whole_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("one\ntwo\nthr")
        data, offset = ray.read_from(str(path), 0, complete=False)
        assert data == b"one\ntwo\n"
        path.write_text("one\ntwo\nthree\nfo")
        data, offset = ray.read_from(str(path), offset, complete=False)
        assert data == b"three\n"
        data, offset = ray.read_from(str(path), offset, complete=True)
        assert data == b"fo"
        assert ray.read_from(str(path), offset, complete=True)[0] == b""

    def test_a_flood_is_cut_at_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("".join(f"line {number}\n" for number in range(1000)))
        data, offset = ray.read_from(str(path), 0, complete=False, chunk=100)
        assert len(data) <= 100
        assert data.startswith(b"line ")
        assert data.endswith(b"line 999\n")
        assert offset == path.stat().st_size

    def test_an_attached_log_begins_near_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("first\nlast\n")
        assert ray.read_from(str(path), None, complete=False)[0] == b"first\nlast\n"
        assert ray.read_from(str(path), None, complete=False, chunk=8)[0] == b"last\n"

    def test_a_log_that_shrank_starts_no_error(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("x\n")
        assert ray.read_from(str(path), 500, complete=False) == (b"", 2)

    @pytest.mark.parametrize("offset", [0, 4, 7, None])
    def test_a_text_is_cut_as_a_file(self, tmp_path: Path, offset: int | None) -> None:
        text = "one\ntwö\nthree"
        path = tmp_path / "log"
        path.write_text(text, encoding="utf-8")
        for complete in (True, False):
            assert ray.slice_from(text, offset, complete) == ray.read_from(str(path), offset, complete)

    def test_clean(self) -> None:
        text = "\x1b[36m(W pid=1)\x1b[0m hi\r\n 10%|#\r 20%|##\r100%|###\n\x07\n\x1b]0;title\x07end   \n" + "x" * 5000
        lines = ray.clean_lines(text)
        assert lines[:3] == ["(W pid=1) hi", "100%|###", "end"]
        assert len(lines[3]) == ray.LINE_LIMIT

    def test_progress_is_the_last_match_without_prefix(self) -> None:
        lines = ["(W pid=1) epoch 1/9 loss 2", "other", "(W pid=1) epoch 2/9 loss 1", "epochal"]
        assert ray.last_match(lines, r"\bepoch \d") == "epoch 2/9 loss 1"
        assert ray.last_match(["nothing"], r"epoch \d") == ""

    @pytest.mark.parametrize(
        ("line", "shown"),
        [
            ("(TrainWorker pid=1) epoch 3/10 loss 0.1", "epoch 3/10 loss 0.1"),
            ("Step 12/100", "Step 12/100"),
            ("(TaskRunner pid=9) step:12 - actor/loss:0.1", "step:12 - actor/loss:0.1"),
            ("{'loss': 1.5, 'grad_norm': 2.0, 'epoch': 0.5}", "{'loss': 1.5, 'grad_norm': 2.0, 'epoch': 0.5}"),
            (
                "(x pid=1) Training Progress:  10%|# | 1/10 [00:01<00:09]",
                "Training Progress:  10%|# | 1/10 [00:01<00:09]",
            ),
            ("  4%|4         | 4/100", "4%|4         | 4/100"),
            ("a stepping stone 3", ""),
            ("50% of nodes", ""),
        ],
    )
    def test_progress_lines_that_are_known(self, line: str, shown: str) -> None:
        assert ray.last_match([line], ray.PROGRESS_PATTERN) == shown

    def test_secrets_are_masked_whole(self) -> None:
        env = 'A_KEY=abcdefgh\nexport B="abcdefgh-longer"\n# C=commented-out-secret\nSHORT=1\nEMPTY=\n'
        secrets = ray.secret_values([env])
        assert secrets == ["abcdefgh-longer", "abcdefgh"]
        assert ray.mask("x abcdefgh-longer y abcdefgh 1", secrets) == "x ******** y ******** 1"

    @pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3723, "1:02:03")])
    def test_clock(self, seconds: float, text: str) -> None:
        assert ray.clock(seconds) == text


class Dashboard(BaseHTTPRequestHandler):
    """A stand-in for Ray's dashboard: answers what the test put there, to who has the token."""

    answers: ClassVar[dict[str, tuple[int, str]]] = {}
    seen: ClassVar[list[tuple[str, str, str]]] = []

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.seen.append((self.command, self.path, self.rfile.read(length).decode()))
        given = self.headers.get("Authorization")
        status, text = self.answers.get(f"{self.command} {self.path}", (404, "Job x does not exist"))
        if given != f"Bearer {TOKEN}":
            status, text = (403 if given else 401), "Unauthorized"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture(name="address")
def _address() -> Iterator[str]:
    Dashboard.answers, Dashboard.seen = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(name="token_path")
def _token_path(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return str(path)


class TestClient:
    def test_the_token_goes_with_the_request_past_a_proxy(
        self, address: str, token_path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        Dashboard.answers["GET /api/version"] = (200, '{"ray_version": "2.60.0"}')
        assert ray.RayClient(address, token_path).version() == "2.60.0"

    def test_more_than_a_hundred_nodes_are_asked_for(self, address: str, token_path: str) -> None:
        body = json.dumps({"data": {"result": {"result": [raw_node("10.0.0.11")]}}})
        Dashboard.answers["GET /api/v0/nodes?detail=1&limit=10000"] = (200, body)
        assert len(ray.RayClient(address, token_path).nodes()) == 1

    @pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), ("wrong", "not the one it started with")])
    def test_a_refusal_says_which_token(self, address: str, tmp_path: Path, content: str | None, words: str) -> None:
        path = tmp_path / "other"
        if content:
            path.write_text(content)
        with pytest.raises(ray.RayError, match=words) as caught:
            ray.RayClient(address, str(path)).version()
        assert "--tags ray" in str(caught.value)
        assert not isinstance(caught.value, ray.RayUnreachable)

    def test_nobody_there_names_the_stage(self, token_path: str) -> None:
        with pytest.raises(ray.RayUnreachable, match=r"Connection refused.*--tags ray"):
            ray.RayClient("http://127.0.0.1:1", token_path).version()

    def test_something_else_there_is_not_ray(self, address: str, token_path: str) -> None:
        Dashboard.answers["GET /api/version"] = (200, "<html>hello</html>")
        with pytest.raises(ray.RayUnreachable):
            ray.RayClient(address, token_path).version()

    @pytest.mark.parametrize("address", ["127.0.0.1:8265", "file:///etc/passwd", "ftp://x"])
    def test_an_address_is_a_url(self, address: str, token_path: str) -> None:
        with pytest.raises(ray.RayError, match="must be a URL"):
            ray.RayClient(address, token_path)

    def test_an_unreadable_token_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ray.RayError, match="cannot be read"):
            ray.RayClient("http://127.0.0.1:1", str(tmp_path))

    def test_a_job_that_is_there_already_is_as_wanted(self, address: str, token_path: str) -> None:
        trace = (
            "Traceback\nValueError: Job with submission_id a already exists. Please use a different submission_id.\n.\n"
        )
        Dashboard.answers["POST /api/jobs/"] = (500, trace)
        ray.RayClient(address, token_path).submit({"entrypoint": "true", "submission_id": "a"})
        assert json.loads(Dashboard.seen[-1][2])["submission_id"] == "a"

    def test_a_refused_job_gives_the_last_error(self, address: str, token_path: str) -> None:
        Dashboard.answers["POST /api/jobs/"] = (
            400,
            "Traceback\n  File x\nTypeError: entrypoint must be a string\n\n.\n",
        )
        with pytest.raises(ray.RayError, match="HTTP 400: TypeError: entrypoint must be a string"):
            ray.RayClient(address, token_path).submit({})

    def test_an_unknown_job(self, address: str, token_path: str) -> None:
        with pytest.raises(ray.RayNotFound):
            ray.RayClient(address, token_path).job("x/../y")
        assert Dashboard.seen[-1][1] == "/api/jobs/x%2F..%2Fy"

    def test_the_log_is_read_here_only_if_it_lies_here(self, address: str, token_path: str, tmp_path: Path) -> None:
        client = ray.RayClient(address, token_path)
        about = {"submission_id": "a", "driver_node_id": "n"}
        Dashboard.answers["GET /nodes/n"] = (
            200,
            json.dumps({"data": {"detail": {"raylet": {"sessionDir": str(tmp_path)}}}}),
        )
        assert client.log_path(about) is None
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "job-driver-a.log").write_text("x\n")
        assert client.log_path(about) == f"{tmp_path}/logs/job-driver-a.log"
        assert client.log_path({**about, "driver_node_id": None}) is None
        assert client.log_path({**about, "driver_node_id": "unknown"}) is None


def test_ray_message_leaves_the_log_out() -> None:
    message = "Job entrypoint command failed with exit code 7, last available logs (truncated to 20,000 chars):\nsecret"
    assert ray.ray_message({"message": message}) == "Job entrypoint command failed with exit code 7"


def test_elapsed() -> None:
    assert ray.elapsed_seconds({"start_time": 1000, "end_time": 3500}, 99) == 2.5
    assert ray.elapsed_seconds({"start_time": 1000, "end_time": None}, 11) == 10
    assert ray.elapsed_seconds({"start_time": None}, 11) == 0
