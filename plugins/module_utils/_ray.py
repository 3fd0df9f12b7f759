# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to Ray's dashboard on the head, and decide from what it says. Needs no Ray: the standard library is enough.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ._secrets import parse as parse_secrets

# Arguments shared by the modules that talk to Ray; documented in doc_fragments/ray.py.
CONNECTION_ARGUMENTS = {
    "address": {"type": "str", "default": "http://127.0.0.1:8265"},
    "token_path": {"type": "path", "default": "/etc/metalray/ray_token", "no_log": False},
}

LIVE = ("PENDING", "RUNNING")
# The state API gives no more than this in one answer, and 100 unless asked.
NODE_LIMIT = 10000
LOG_CHUNK = 256 * 1024
# How long Ray may take to notice that a node is gone, in seconds.
NODE_GRACE = 60


class RayError(Exception):
    """Ray cannot be asked or has refused; the text says what, and how to mend it."""


class RayUnreachable(RayError):
    """Nothing answers at the dashboard's address."""


class RayNotFound(RayError):
    """Ray does not know what was asked for."""


# The client ---------------------------------------------------------------------------------------------------------


def read_token(path: str) -> str:
    """The token, or nothing where there is no file: a cluster without authentication needs none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise RayError(
            f"the token file {path} cannot be read ({getattr(error, 'strerror', None) or error}); "
            f"run the task with become, or as the user who owns the file"
        ) from None


class RayClient:
    """The HTTP interface of one dashboard."""

    def __init__(self, address: str, token_path: str, timeout: float = 30) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RayError(f"address must be a URL such as http://127.0.0.1:8265, not '{address}'")
        self.address = address.rstrip("/")
        self.token_path = token_path
        self.timeout = timeout
        self._token = read_token(token_path)
        # The dashboard is on this machine: a proxy from the environment would only be in the way.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def token(self) -> str:
        return self._token

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded JSON of one answer. Raises RayNotFound on 404, RayUnreachable where nobody answers."""
        request = urllib.request.Request(self.address + path, method=method)
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            self._refused(error, f"{method} {path}")
        except (OSError, ValueError) as error:
            # ValueError: something that is not Ray's dashboard answers with something that is not JSON.
            reason = getattr(error, "reason", error)
            raise RayUnreachable(
                f"Ray's dashboard does not answer at {self.address} ({getattr(reason, 'strerror', None) or reason}). "
                f"This must run on the head, with Ray started on it: --tags ray does both; "
                f"if it did, look at: journalctl -u metalray-head -n 50"
            ) from None

    def _refused(self, error: urllib.error.HTTPError, what: str) -> None:
        text = error.read().decode("utf-8", "replace").strip()
        if error.code in (401, 403):
            have = f"the token in {self.token_path} is not the one it started with"
            if not self._token:
                have = f"it wants a token and {self.token_path} does not exist"
            raise RayError(
                f"Ray at {self.address} refused access (HTTP {error.code}): {have}; --tags ray brings both together"
            ) from None
        if error.code == 404:
            raise RayNotFound(last_sentence(text)) from None
        raise RayError(f"Ray answered {what} with HTTP {error.code}: {last_sentence(text)}") from None

    # Cluster

    def nodes(self) -> list[dict[str, Any]]:
        answer = self.call("GET", f"/api/v0/nodes?detail=1&limit={NODE_LIMIT}")
        return answer["data"]["result"]["result"]

    def raylets(self) -> list[dict[str, Any]]:
        """Every node's daemon, with the name of its host and its port."""
        summary = self.call("GET", "/nodes?view=summary")["data"]["summary"]
        return [node["raylet"] for node in summary if (node.get("raylet") or {}).get("nodeManagerAddress")]

    def usage(self) -> dict[str, dict[str, list[float]]]:
        """Node id -> resource -> [used, total]; empty until Ray's monitor has reported for the first time."""
        status = self.call("GET", "/api/cluster_status")["data"].get("clusterStatus") or {}
        return (status.get("loadMetricsReport") or {}).get("usageByNode") or {}

    def version(self) -> str:
        return str(self.call("GET", "/api/version").get("ray_version", ""))

    # Jobs

    def all_jobs(self) -> list[dict[str, Any]]:
        """Submitted ones, and drivers that somebody started by hand on a node."""
        return self.call("GET", "/api/jobs/")

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in self.all_jobs() if job.get("submission_id")]

    def job(self, submission_id: str) -> dict[str, Any]:
        return self.call("GET", f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}")

    def submit(self, body: dict[str, Any]) -> None:
        try:
            self.call("POST", "/api/jobs/", body)
        except RayError as error:
            # A second controller was faster, or the answer to our own request was lost: the job is there, as wanted.
            if "already exists" not in str(error):
                raise

    def stop(self, submission_id: str) -> None:
        self.call("POST", f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}/stop")

    def delete(self, submission_id: str) -> None:
        self.call("DELETE", f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}")

    def log_text(self, submission_id: str) -> str:
        """The whole log: only for a job that runs on another node, since it can be large."""
        return self.call("GET", f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}/logs").get("logs") or ""

    def log_path(self, job: dict[str, Any]) -> str | None:
        """Where the log of a job lies on this machine, if it does."""
        node = job.get("driver_node_id")
        if not node:
            return None
        try:
            detail = self.call("GET", f"/nodes/{node}")["data"]["detail"]
            path = f"{detail['raylet']['sessionDir']}/logs/job-driver-{job['submission_id']}.log"
        except (RayError, KeyError, TypeError):
            return None
        return path if os.access(path, os.R_OK) else None


def silent_nodes(raylets: Iterable[dict[str, Any]], timeout: float = 3) -> list[str]:
    """Addresses of nodes that Ray believes alive and that take no connection."""

    def answers(address: tuple[str, int]) -> bool:
        try:
            with socket.create_connection(address, timeout=timeout):
                return True
        except OSError:
            return False

    addresses = [
        (raylet["nodeManagerAddress"], int(raylet["nodeManagerPort"]))
        for raylet in raylets
        if raylet["state"] == "ALIVE"
    ]
    with ThreadPoolExecutor(max_workers=64) as pool:
        return [address for (address, _port), answered in zip(addresses, pool.map(answers, addresses)) if not answered]


def last_sentence(text: str) -> str:
    """What matters in an answer that may be a traceback of several layers."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (errors or lines or ["no explanation"])[-1][:500]


# The cluster --------------------------------------------------------------------------------------------------------

_COUNTED = {"cpus": "CPU", "gpus": "GPU"}


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def describe_nodes(
    raw: Iterable[dict[str, Any]], usage: dict[str, dict[str, list[float]]], wanted: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Ray's list of nodes as the module returns it.

    Ray keeps every raylet that ever died: of one address only the living ones count, or the last to die.
    """
    names = {node["address"]: node["name"] for node in wanted}
    by_address: dict[str, list[dict[str, Any]]] = {}
    for node in raw:
        by_address.setdefault(node["node_ip"], []).append(node)
    found = []
    for address, nodes in by_address.items():
        living = [node for node in nodes if node["state"] == "ALIVE"]
        for node in living or [max(nodes, key=lambda item: item.get("end_time_ms") or 0)]:
            total = {
                name: _plain(value)
                for name, value in (node.get("resources_total") or {}).items()
                if not name.startswith("node:")
            }
            used = usage.get(node["node_id"], {})
            # Names are mangled in this one answer of Ray's, except for these.
            available = {
                name: _plain(used[name][1] - used[name][0]) for name in ("CPU", "GPU", "memory") if name in used
            }
            found.append(
                {
                    "name": names.get(address) or node.get("node_name") or address,
                    "address": address,
                    "node_id": node["node_id"],
                    "alive": node["state"] == "ALIVE",
                    "head": bool(node.get("is_head_node")),
                    "state_message": node.get("state_message") or "",
                    "resources": {"total": total, "available": available},
                    "labels": {
                        name: value for name, value in (node.get("labels") or {}).items() if name != "ray.io/node-id"
                    },
                }
            )
    return sorted(found, key=lambda node: (not node["head"], _address_key(node["address"]), node["node_id"]))


def _address_key(address: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[.:]", address)]


class Comparison(NamedTuple):
    """The cluster against what it should be: names, and for ``short`` sentences."""

    missing: list[str]
    dead: list[str]
    short: list[str]
    unexpected: list[str]
    problems: list[str]


def compare_nodes(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> Comparison:
    """``problems`` has one sentence for each wanted node that is not as it should be."""
    missing, dead, short, problems = [], [], [], []
    for node in wanted:
        label = f"{node['name']} ({node['address']})"
        same = [item for item in found if item["address"] == node["address"]]
        living = [item for item in same if item["alive"]]
        if not same:
            missing.append(node["name"])
            problems.append(f"{label} has not joined")
            continue
        if not living:
            dead.append(node["name"])
            why = f": {same[0]['state_message']}" if same[0]["state_message"] else ""
            problems.append(f"{label} has left the cluster{why}")
            continue
        for key, resource in _COUNTED.items():
            want = node.get(key) or 0
            have = max(item["resources"]["total"].get(resource, 0) for item in living)
            if have < want:
                short.append(node["name"])
                problems.append(f"{label} offers {have:g} of {want:g} {resource}s")
    known = {node["address"] for node in wanted}
    dead += [item["name"] for item in found if not item["alive"] and item["address"] not in known]
    unexpected = [item["name"] for item in found if wanted and item["alive"] and item["address"] not in known]
    return Comparison(missing, dead, sorted(set(short)), unexpected, problems)


def total_resources(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Sums over the living nodes."""
    sums: dict[str, dict[str, float]] = {"total": {}, "available": {}}
    for node in found:
        if node["alive"]:
            for kind, into in sums.items():
                for name, value in node["resources"][kind].items():
                    into[name] = into.get(name, 0) + value
    return sums


def cluster_report(
    client: RayClient, wanted: list[dict[str, Any]], with_usage: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """What ``ray_cluster_info`` returns, and the problems in words."""
    found = describe_nodes(client.nodes(), client.usage() if with_usage else {}, wanted)
    compared = compare_nodes(found, wanted)
    living = [node for node in found if node["alive"]]
    report = {
        "nodes": found,
        "resources": total_resources(found),
        "missing": compared.missing,
        "dead": compared.dead,
        "short": compared.short,
        "unexpected": compared.unexpected,
        "healthy": bool(living) and not compared.problems,
    }
    return report, compared.problems


def lost_nodes(
    raw: Iterable[dict[str, Any]], silent: Iterable[str], job: dict[str, Any], names: dict[str, str]
) -> list[str]:
    """A sentence for each node that was lost while a job ran. ``names`` are those of the inventory, by address."""
    begin = job.get("start_time") or 0
    end = (job.get("end_time") or begin) + NODE_GRACE * 1000
    found: dict[str, str] = {}
    for node in raw:
        gone = node.get("end_time_ms") or 0
        if node["state"] == "DEAD" and begin < gone <= end:
            after = clock((gone - begin) / 1000)
            why = f": {node['state_message']}" if node.get("state_message") else ""
            found[node["node_ip"]] = f"left the cluster {after} after the job began{why}"
    for address in silent:
        found.setdefault(address, "does not answer")
    return [f"metalray: node {names.get(address, address)} ({address}) {what}" for address, what in found.items()]


# Jobs: attempts and decisions ---------------------------------------------------------------------------------------

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def attempt_id(name: str, number: int) -> str:
    """Ray's submission id of an attempt. The first has the plain name; a dot cannot occur in a name."""
    return name if number == 1 else f"{name}.{number}"


def attempt_number(name: str, submission_id: str) -> int | None:
    """Which attempt of ``name`` a submission id is, or None if it is another job's."""
    if submission_id == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"\.([1-9]\d*)", submission_id)
    return int(match.group(1)) if match else None


def name_of(submission_id: str) -> str:
    """The name of the job that an attempt belongs to."""
    return re.sub(r"\.[1-9]\d*$", "", submission_id)


def running_jobs(jobs: Iterable[dict[str, Any]]) -> list[str]:
    """What runs on the cluster, in words: submission ids, and the processes of drivers that were started by hand."""
    found = []
    for job in jobs:
        if job["status"] in LIVE:
            driver = job.get("driver_info") or {}
            by_hand = f"process {driver.get('pid', '?')} on {driver.get('node_ip_address', '?')}, started by hand"
            found.append(job.get("submission_id") or by_hand)
    return sorted(found)


class Attempt(NamedTuple):
    number: int
    job: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.job["status"])


def attempts_of(name: str, jobs: Iterable[dict[str, Any]]) -> list[Attempt]:
    """The attempts that Ray remembers, oldest first."""
    numbered = ((attempt_number(name, str(job.get("submission_id"))), job) for job in jobs)
    return sorted((Attempt(number, job) for number, job in numbered if number), key=lambda attempt: attempt.number)


def read_result(path: str | None) -> dict[str, Any] | None:
    """The JSON object that a job left, or None: a half-made or foreign file says nothing."""
    if not path:
        return None
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def result_attempt(name: str, result: dict[str, Any] | None) -> int | None:
    """Which attempt wrote the result, or None if it is of another job."""
    return attempt_number(name, str(result.get("submission_id", ""))) if result else None


def succeeded(result: dict[str, Any] | None) -> bool:
    return bool(result) and result.get("status") == "SUCCEEDED"


@dataclass(frozen=True)
class Decision:
    """``action``: submit, attach, done (nothing to do), or fail with ``reason``."""

    action: str
    attempt: int
    reason: str = ""


def decide(
    name: str,
    attempts: list[Attempt],
    result: dict[str, Any] | None,
    wants_result: bool = False,
    force: bool = False,
    retry_failed: bool = True,
) -> Decision:
    """What ``state=present`` means now."""
    written = result_attempt(name, result)
    highest = max([attempt.number for attempt in attempts] + [written or 0])
    latest = attempts[-1] if attempts else None
    if latest and latest.status in LIVE:
        if force:
            return Decision(
                "fail",
                latest.number,
                f"the job {attempt_id(name, latest.number)} is {latest.status.lower()}, so it is not started again; "
                f"wait for it, or stop it first (state: stopped)",
            )
        return Decision("attach", latest.number, f"it is {latest.status.lower()}")
    if force:
        return Decision("submit", highest + 1, "a new run was asked for")
    if latest is None:
        if written and succeeded(result):
            return Decision("done", written, "its result file says that it succeeded")
        return Decision("submit", highest + 1, "it has not run yet" if not written else "its last attempt failed")
    if latest.status == "SUCCEEDED":
        if wants_result and not (written and succeeded(result)):
            return Decision("submit", highest + 1, "it succeeded, but its result file is gone")
        return Decision("done", latest.number, "it succeeded")
    ended = "was stopped" if latest.status == "STOPPED" else "failed"
    if retry_failed:
        return Decision("submit", highest + 1, f"the last attempt {ended}")
    return Decision("done", latest.number, f"the last attempt {ended}, and retry_failed is off")


def elapsed_seconds(job: dict[str, Any], now: float) -> float:
    """How long a job has run, or ran. Ray's times are milliseconds."""
    start = job.get("start_time")
    if not start:
        return 0.0
    return round(max(0.0, (job.get("end_time") or now * 1000) - start) / 1000, 1)


def ray_message(job: dict[str, Any]) -> str:
    """Ray's own words, without the log lines that it appends."""
    message = str(job.get("message") or "")
    return re.split(r",? last available logs", message)[0].strip()[:2000]


# Jobs: log ----------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b\x0c\x0e-\x1f]")
LINE_LIMIT = 400


def clean_lines(text: str) -> list[str]:
    """Lines fit for a terminal: no colours or control characters; of a redrawn line the last state; none endless."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = _ESCAPES.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip()
        if shown:
            lines.append(shown if len(shown) <= LINE_LIMIT else shown[: LINE_LIMIT - 1] + "…")
    return lines


def read_from(path: str, offset: int | None, complete: bool, chunk: int = LOG_CHUNK) -> tuple[bytes, int]:
    """What was written to a log since ``offset``, and the offset to go on from.

    ``None`` starts near the end. Never more than ``chunk`` bytes: where more has come, the older part is left out. An
    unfinished last line waits for its end, or until it is drawn again, unless the log is ``complete``.
    """
    with Path(path).open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        start = size if offset is None else min(offset, size)
        skipped = offset is None or size - start > chunk
        if skipped:
            start = max(0, size - chunk)
        handle.seek(start)
        data = handle.read(size - start)
    return _whole_lines(data, start, skipped and start > 0, complete)


def _whole_lines(data: bytes, start: int, skipped: bool, complete: bool) -> tuple[bytes, int]:
    if skipped:
        cut = data.find(b"\n") + 1
        data, start = data[cut:], start + cut
    if not complete:
        end = data.rfind(b"\n") + 1
        # A progress bar may draw itself again and again in one line: what it drew before the last time is whole.
        data = data[: max(end, data.rfind(b"\r", end, len(data) - 1))]
    return data, start + len(data)


def slice_from(text: str, offset: int | None, complete: bool, chunk: int = LOG_CHUNK) -> tuple[bytes, int]:
    """The same as ``read_from`` over a text that is already here."""
    data = text.encode("utf-8", "replace")
    start = len(data) if offset is None else min(offset, len(data))
    skipped = offset is None or len(data) - start > chunk
    if skipped:
        start = max(0, len(data) - chunk)
    return _whole_lines(data[start:], start, skipped and start > 0, complete)


def secret_values(texts: Iterable[str]) -> list[str]:
    """The values of ``NAME=value`` files, longest first. Short ones are not secrets and would blot out the text."""
    values = set()
    for text in texts:
        lines = (line.strip() for line in text.splitlines())
        bare = (line for line in lines if "=" not in line and not line.startswith("#"))
        values.update(value for value in (*parse_secrets(text).values(), *bare) if len(value) >= 8)
    return sorted(values, key=len, reverse=True)


def mask(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "********")
    return text


# A job's own progress line: "epoch 3/10 …", "step:12 - …" as verl prints it, the dictionary of transformers' Trainer, a bar of
# tqdm with its name.
PROGRESS_PATTERN = r"(?i)\b(?:epoch|step|global_step|iteration)\b[ :=\[]*\d+|\{'(?:loss|train_loss)': |(?:[a-z][\w .-]{0,60}: +)?\d{1,3}%\|"


def last_match(lines: Iterable[str], pattern: str) -> str:
    """The job's own progress line: the last one that matches, from the match on, so that Ray's prefix is left out."""
    expression, found = re.compile(pattern), ""
    for line in lines:
        match = expression.search(line)
        if match:
            found = line[match.start() :]
    return found[:200]


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
