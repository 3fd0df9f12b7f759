#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ray_job
short_description: Submit, follow, stop or delete a job on the Ray cluster
version_added: 0.1.0
description:
  - Brings a named job to its wanted state through Ray's Jobs interface on the head.
  - A job is one name with any number of attempts. The first attempt has the plain name as its submission id, later ones
    get C(.2), C(.3) and so on, so that the log of a failed attempt is kept.
  - With O(wait) it follows the job from the controller in short rounds and prints the status, the time, new lines of
    the log and the job's own progress line as they come. The job does not depend on it. When the connection to the head
    is lost it tries again; when the playbook is interrupted the job goes on, and a second run, from this controller or
    another, attaches to it.
  - A job that ends badly fails the task with Ray's message, the last lines of the log and, where it is a known one, the
    cause and what mends it.
author:
  - The metalray contributors (@metalray)
extends_documentation_fragment:
  - metalray.cluster.ray
attributes:
  check_mode:
    support: full
    description: Says whether it would submit, stop or delete. Does not wait. A cluster that is not there yet is no
      error.
  diff_mode:
    support: full
    description: Shows the attempts and their states, and of a new one what is submitted.
  idempotent:
    support: full
    description: A job that succeeded is not run again, one that runs is attached to.
  async:
    support: none
    description: Ray runs the job in the background. Use O(wait=false) to leave it there.
options:
  name:
    description:
      - Name of the job, of letters, digits, C(_) and C(-). Put into it what makes the job another one.
      - Needed with O(state=present) and O(state=absent). Without it O(state=attached) takes the job that runs, or the last one,
        and O(state=stopped) the one that runs; where several run it names them and stops none.
    type: str
    aliases: [submission_id]
  state:
    description:
      - V(present) runs the job unless it has succeeded. A running one is attached to. One that failed or was stopped is
        run again, see O(retry_failed).
      - V(attached) follows the newest attempt and never submits.
      - V(stopped) stops it where it runs.
      - V(absent) stops it and makes Ray forget it and its logs. O(result_file) is left, and counts; see there.
    type: str
    choices: [present, attached, stopped, absent]
    default: present
  entrypoint:
    description:
      - The shell command that Ray runs on the head, in the directory that Ray was started in.
      - It has Ray's environment on the head, O(env), and C(METALRAY_SUBMISSION_ID) and C(METALRAY_RESULT_FILE).
      - Required with O(state=present).
    type: str
  env:
    description:
      - Environment variables of the job and all its workers.
      - Everybody who holds the cluster's token can read them. No secrets here; secrets are in the environment of Ray
        itself.
    type: dict
    default: {}
  runtime_env:
    description:
      - Ray's runtime environment of the job. O(env) is added to its C(env_vars).
      - Everybody who holds the cluster's token can read it.
    type: dict
    default: {}
  metadata:
    description: Text to keep with the job, shown in Ray's dashboard.
    type: dict
    default: {}
  entrypoint_num_cpus:
    description: CPUs to reserve for the entrypoint. More than V(0) lets Ray place it on any node.
    type: float
    default: 0
  entrypoint_num_gpus:
    description: GPUs to reserve for the entrypoint. More than V(0) lets Ray place it on any node.
    type: float
    default: 0
  result_file:
    description:
      - A file on the head that the job writes when it ends, a JSON object with at least C(submission_id), as given to
        it in C(METALRAY_SUBMISSION_ID), and C(status), V(SUCCEEDED) or another word. It must be replaced at once, not
        written in place.
      - Ray forgets its jobs when it is restarted on the head. The file is what remains. A job whose file says
        V(SUCCEEDED) counts as done; a job whose file is gone does not.
    type: path
  force:
    description: Run the job although it has succeeded. A job that runs now is not disturbed but makes the task fail.
    type: bool
    default: false
  retry_failed:
    description: Whether O(state=present) runs a job again that failed or was stopped. Otherwise the task fails as it
      did.
    type: bool
    default: true
  wait:
    description: Follow the job to its end. Otherwise return as soon as Ray has accepted it.
    type: bool
    default: true
  wait_timeout:
    description:
      - Fail when the job has not ended after this many seconds. The job itself goes on.
      - V(0) waits for as long as it takes.
    type: int
    default: 0
  reconnect_timeout:
    description: How many seconds in a row the head, or Ray's dashboard on it, may be out of reach while a job is
      followed.
    type: int
    default: 600
  show_log:
    description: Print new lines of the job's log while it is followed. Otherwise its progress line only.
    type: bool
    default: true
  log_lines:
    description: How many of the last lines of the log to return, and to print at most at a time.
    type: int
    default: 25
  progress_pattern:
    description:
      - Regular expression for the job's own progress lines. The last line that matches, from the match on, is shown beside the
        status.
      - The default knows C(epoch 3/10 …), C(step 12) and C(iteration 12), C(step:12 - …) as verl prints it,
        the dictionaries of transformers' Trainer, and the bars of tqdm, which need no new line to be seen.
    type: str
    default: '(?i)\b(?:epoch|step|global_step|iteration)\b[ :=\[]*\d+|\{''(?:loss|train_loss)'': |(?:[a-z][\w .-]{0,60}: +)?\d{1,3}%\|'
  nodes:
    description:
      - The nodes of the cluster, so that one that is lost while the job runs is told by its name. Without it, by the name of its
        host, or by its address once Ray no longer tells that name.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      address:
        description: Its address in the cluster.
        type: str
        required: true
  secret_files:
    description:
      - Files on the head, of C(NAME=value) lines, whose values are replaced by asterisks in everything that is printed
        or returned. The cluster's token always is.
    type: list
    elements: path
    default: [/etc/metalray/secrets.env]
  follow:
    description: Where to go on. For the action plugin, which runs the module again and again. Not for playbooks.
    type: dict
    suboptions:
      attempt:
        description: The submission id to follow.
        type: str
        required: true
      offset:
        description: Bytes of its log that were shown already. Not given at first.
        type: int
      seconds:
        description: How long one round may last.
        type: float
        default: 10
seealso:
  - module: metalray.cluster.ray_cluster_info
"""

EXAMPLES = r"""
- name: Train
  become: true
  metalray.cluster.ray_job:
    name: finetune-7b
    entrypoint: /opt/metalray/venv/bin/python /mnt/shared/jobs/finetune.py
    result_file: /mnt/shared/results/finetune-7b.json

- name: Start a long job and leave it alone
  become: true
  metalray.cluster.ray_job:
    name: pretrain
    entrypoint: bash -c 'cd /mnt/shared/src/pretrain && exec /opt/metalray/venv/bin/python train.py'
    wait: false

- name: See how it does
  become: true
  metalray.cluster.ray_job:
    name: pretrain
    state: attached

- name: Stop what runs, and say which job it was
  become: true
  metalray.cluster.ray_job:
    state: stopped
"""

RETURN = r"""
submission_id:
  description: Ray's submission id of the newest attempt.
  returned: when there is one
  type: str
  sample: smoke-1f2e3d4c.2
attempts:
  description: How many attempts the job had, this one included.
  returned: always
  type: int
status:
  description: V(PENDING), V(RUNNING), V(SUCCEEDED), V(FAILED), V(STOPPED), or V(ABSENT) where there is no such job.
  returned: always
  type: str
message:
  description: Ray's own words about the status.
  returned: when there is an attempt
  type: str
elapsed:
  description: Seconds that the attempt has run.
  returned: when there is an attempt
  type: float
progress:
  description: The last progress line of the job.
  returned: when there is an attempt
  type: str
  sample: epoch 10/10 loss 0.00018 31682 samples/s
log:
  description: The last lines of its log.
  returned: when there is an attempt
  type: list
  elements: str
log_path:
  description: The whole log, on the head.
  returned: when it lies there
  type: str
result:
  description: Content of O(result_file), where this attempt wrote it.
  returned: when O(result_file) is given
  type: dict
cause:
  description: Name of the known cause of a failure.
  returned: on a failure with a known cause
  type: str
  sample: too_many_open_files
evidence:
  description: The line of the log, or what is known of the nodes, that shows the cause.
  returned: on a failure with a known cause
  type: str
  sample: "OSError: [Errno 24] Too many open files"
mend:
  description: What mends it.
  returned: on a failure with a known cause
  type: str
first_error:
  description: The first line of the log that tells of an error.
  returned: on a failure, where there is one
  type: str
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._job_failures import classify, first_error
from ..module_utils._ray import (
    CONNECTION_ARGUMENTS,
    LIVE,
    LOG_CHUNK,
    NAME_PATTERN,
    NODE_GRACE,
    PROGRESS_PATTERN,
    Attempt,
    RayClient,
    RayError,
    RayNotFound,
    RayUnreachable,
    attempt_id,
    attempt_number,
    attempts_of,
    clean_lines,
    clock,
    decide,
    elapsed_seconds,
    last_match,
    lost_nodes,
    mask,
    name_of,
    ray_message,
    read_from,
    read_result,
    result_attempt,
    secret_values,
    silent_nodes,
    slice_from,
    succeeded,
)

# Ray kills a job that does not stop within seconds; the rest is for a slow machine.
STOP_SECONDS = 60
# A shared directory may show a file some seconds late.
RESULT_SECONDS = 5
# Of a failed job this much of the log is searched for the cause.
FAILURE_CHUNK = 2 * 1024 * 1024


class Job:
    """One job of the playbook on the cluster, for one run of the module."""

    def __init__(self, module: AnsibleModule, client: RayClient) -> None:
        self.module = module
        self.params = module.params
        self.client = client
        follow = module.params["follow"]
        self.name: str = module.params["name"] or (name_of(follow["attempt"]) if follow else "")
        self.secrets = [*secret_values(self._secret_texts()), *([client.token] if client.token else [])]

    def _secret_texts(self) -> list[str]:
        texts = []
        for path in self.params["secret_files"]:
            try:
                texts.append(Path(path).read_text(encoding="utf-8", errors="replace"))
            except FileNotFoundError:
                continue
            except OSError as error:
                self.module.fail_json(
                    msg=f"{path} cannot be read ({error.strerror}), so its values could not be kept out of the log; "
                    f"run the task with become"
                )
        return texts

    # What to return

    def about(self, attempt: int, info: dict[str, Any]) -> dict[str, Any]:
        """The part of the answer that is the same whatever happened."""
        return {
            "submission_id": attempt_id(self.name, attempt),
            "attempts": attempt,
            "status": info["status"],
            "message": mask(ray_message(info), self.secrets),
            "elapsed": elapsed_seconds(info, time.time()),
        }

    def from_result(self, attempt: int, result: dict[str, Any]) -> dict[str, Any]:
        """The answer for a job that only its result file remembers."""
        return {
            "submission_id": attempt_id(self.name, attempt),
            "attempts": attempt,
            "status": str(result.get("status")),
            "message": f"Ray no longer knows this job; {self.params['result_file']} does.",
            "elapsed": result.get("elapsed_seconds", 0),
            "progress": "",
            "log": [],
            "result": result,
        }

    def new_log(
        self, info: dict[str, Any], offset: int | None, complete: bool, chunk: int = LOG_CHUNK
    ) -> tuple[list[str], str, int | None, str | None]:
        """New lines of the log, a line that is still drawn again, the offset to go on from, and the log's path on this machine."""
        path = self.client.log_path(info)
        if path:
            data, reached = read_from(path, offset, complete, chunk)
        elif info.get("driver_node_id"):
            data, reached = slice_from(self.client.log_text(info["submission_id"]), offset, complete, chunk)
        else:
            return [], "", offset, None  # It has not started.
        text = mask(data.decode("utf-8", "replace"), self.secrets)
        lines = clean_lines(text)
        drawn = lines.pop() if lines and not complete and not text.endswith("\n") else ""
        return lines, drawn, reached, path

    def awaited_result(self, attempt: int) -> dict[str, Any] | None:
        """The result that this attempt wrote."""
        deadline = time.monotonic() + RESULT_SECONDS
        while True:
            result = read_result(self.params["result_file"])
            if result_attempt(self.name, result) == attempt:
                return result
            if not self.params["result_file"] or time.monotonic() >= deadline:
                return None
            time.sleep(1)

    def end(self, attempt: int, info: dict[str, Any]) -> dict[str, Any]:
        """The answer for an attempt that has ended; ``failed`` and ``msg`` are set where it did not end well."""
        chunk = FAILURE_CHUNK if info["status"] == "FAILED" else LOG_CHUNK
        lines, _drawn, _offset, path = self.new_log(info, None, complete=True, chunk=chunk)
        answer = {
            **self.about(attempt, info),
            "finished": True,
            "progress": last_match(lines, self.params["progress_pattern"]),
            "log": lines[-self.params["log_lines"] :] if self.params["log_lines"] else [],
        }
        if path:
            answer["log_path"] = path
        status = info["status"]
        if self.params["result_file"] and status != "STOPPED":
            result = self.awaited_result(attempt) if status == "SUCCEEDED" else read_result(self.params["result_file"])
            if result_attempt(self.name, result) == attempt:
                answer["result"] = result
        told = answer.get("result") or {}
        label = f"The job {answer['submission_id']}"
        if status == "SUCCEEDED":
            if not self.params["result_file"] or succeeded(told):
                return answer
            why = (
                f"ended, but its result says {told.get('status')}: {told.get('message', '')}"
                if told
                else f"ended, but did not write {self.params['result_file']}"
            )
            return {**answer, "failed": True, "msg": f"{label} {why}"}
        if status == "STOPPED":
            return {**answer, "failed": True, "msg": f"{label} was stopped after {clock(answer['elapsed'])}"}
        own_words = mask(str(told.get("message") or ""), self.secrets)[:500]
        why = own_words or answer["message"] or "no reason given"
        message = f"{label} failed after {clock(answer['elapsed'])}: {why.rstrip('.')}."
        facts = self.facts(info)
        finding = classify(lines, [own_words, answer["message"], str(info.get("error_type") or "")], facts)
        first = first_error(lines)
        if first:
            answer["first_error"] = first
        if finding:
            cause, evidence = finding.cause, finding.evidence.removeprefix("metalray: ")
            answer.update(cause=cause.name, evidence=evidence, mend=cause.mend)
            message += f" Known cause: {cause.summary} ({evidence}). Mend: {cause.mend}."
        if first and first not in message and (not finding or finding.cause.consequence):
            message += f" The first error in its log: {first}."
        where = (
            f"the whole log is {path} on the head"
            if path
            else f"for the whole log: ray job logs {answer['submission_id']}"
        )
        return {**answer, "failed": True, "msg": f"{message} Its last lines are in 'log'; {where}"}

    def facts(self, info: dict[str, Any]) -> list[str]:
        """What is known of the nodes since the job began, as far as Ray can be asked."""
        fresh = time.time() - (info.get("end_time") or 0) / 1000 < NODE_GRACE
        try:
            raylets = self.client.raylets()
            hosts = {raylet["nodeManagerAddress"]: raylet.get("nodeManagerHostname") for raylet in raylets}
            names = {address: host for address, host in hosts.items() if host}
            names.update((node["address"], node["name"]) for node in self.params["nodes"])
            return lost_nodes(self.client.nodes(), silent_nodes(raylets) if fresh else [], info, names)
        except (RayError, KeyError, TypeError, ValueError):
            return []

    # What to do

    def present(self) -> dict[str, Any]:
        params = self.params
        attempts = attempts_of(self.name, self.client.jobs())
        result = read_result(params["result_file"])
        decision = decide(
            self.name,
            attempts,
            result,
            wants_result=bool(params["result_file"]),
            force=params["force"],
            retry_failed=params["retry_failed"],
        )
        submission_id = attempt_id(self.name, decision.attempt)
        if decision.action == "fail":
            return {"failed": True, "msg": decision.reason, **self.about(decision.attempt, attempts[-1].job)}
        if decision.action == "done":
            known = [attempt for attempt in attempts if attempt.number == decision.attempt]
            if not known:
                return {"changed": False, "finished": True, **self.from_result(decision.attempt, result or {})}
            ended = self.end(decision.attempt, known[0].job)
            if "result" not in ended and result_attempt(self.name, result) and known[0].status == "SUCCEEDED":
                # The file is of an earlier attempt that succeeded too.
                ended.update(result=result, failed=False)
            return {"changed": False, **ended}
        if decision.action == "attach":
            return {"changed": False, "reason": decision.reason, **self.about(decision.attempt, attempts[-1].job)}
        body = self.submission(submission_id)
        diff = self.diff(attempts[-1:], f"{submission_id}: submitted\n{as_yaml(body)}")
        if self.module.check_mode:
            return {
                "changed": True,
                "finished": True,
                "status": attempts[-1].status if attempts else "ABSENT",
                "attempts": len(attempts),
                "msg": f"would submit {submission_id}: {decision.reason}",
                "diff": diff,
            }
        self.client.submit(body)
        info = self.client.job(submission_id)
        return {
            "changed": True,
            "reason": decision.reason,
            "offset": 0,
            "diff": diff,
            **self.about(decision.attempt, info),
        }

    def diff(self, before: list[Attempt], after: str) -> dict[str, str]:
        states = "".join(f"{attempt_id(self.name, attempt.number)}: {attempt.status}\n" for attempt in before)
        return {
            "before_header": "job",
            "after_header": "job",
            "before": states,
            "after": mask(after, self.secrets),
        }

    def submission(self, submission_id: str) -> dict[str, Any]:
        params = self.params
        own = {"METALRAY_SUBMISSION_ID": submission_id}
        if params["result_file"]:
            own["METALRAY_RESULT_FILE"] = params["result_file"]
        runtime_env = dict(params["runtime_env"])
        given = {**(runtime_env.get("env_vars") or {}), **params["env"]}
        runtime_env["env_vars"] = {**{name: as_text(value) for name, value in given.items()}, **own}
        body: dict[str, Any] = {
            "entrypoint": params["entrypoint"],
            "submission_id": submission_id,
            "runtime_env": runtime_env,
            "metadata": {name: as_text(value) for name, value in params["metadata"].items()},
        }
        for option in ("entrypoint_num_cpus", "entrypoint_num_gpus"):
            if params[option]:
                body[option] = params[option]
        return body

    def newest(self) -> dict[str, Any]:
        """For ``state=attached``."""
        if not self.name:
            jobs = sorted(self.client.jobs(), key=lambda job: (job["status"] in LIVE, job.get("start_time") or 0))
            if not jobs:
                return {
                    "failed": True,
                    "status": "ABSENT",
                    "attempts": 0,
                    "msg": "Ray knows no job: none was submitted, or Ray was restarted on the head since",
                }
            others = [job["submission_id"] for job in jobs[:-1] if job["status"] in LIVE]
            self.name = name_of(jobs[-1]["submission_id"])
            reason = f"the last of those that run, beside {', '.join(others)}" if others else ""
        else:
            jobs, reason = self.client.jobs(), ""
        attempts = attempts_of(self.name, jobs)
        if attempts:
            return {"changed": False, "reason": reason, **self.about(attempts[-1].number, attempts[-1].job)}
        result = read_result(self.params["result_file"])
        attempt = result_attempt(self.name, result)
        if attempt and succeeded(result):
            return {"changed": False, "finished": True, **self.from_result(attempt, result or {})}
        return {
            "failed": True,
            "status": "ABSENT",
            "attempts": 0,
            "msg": f"Ray knows no job named {self.name}; it was not submitted, or Ray was restarted on the head since",
        }

    def stopped(self) -> dict[str, Any]:
        jobs = self.client.jobs()
        if not self.name:
            running = sorted(job["submission_id"] for job in jobs if job["status"] in LIVE)
            if len(running) > 1:
                return {
                    "failed": True,
                    "msg": f"{len(running)} jobs run: {', '.join(running)}. None was stopped; say which by its name, "
                    f"{name_of(running[0])} for the first",
                }
            self.name = name_of(running[0]) if running else ""
        attempts = attempts_of(self.name, jobs)
        live = [attempt for attempt in attempts if attempt.status in LIVE]
        if not attempts:
            return {"changed": False, "finished": True, "status": "ABSENT", "attempts": 0, "msg": "No job runs."}
        newest, info = attempts[-1], attempts[-1].job
        answer: dict[str, Any] = {"changed": bool(live), "finished": True}
        if live:
            ids = [attempt_id(self.name, attempt.number) for attempt in live]
            answer["diff"] = self.diff(live, "".join(f"{submission_id}: STOPPED\n" for submission_id in ids))
            for submission_id in () if self.module.check_mode else ids:
                info = self.stop(submission_id)
        answer.update(self.about(newest.number, info))
        verb = "Would stop" if self.module.check_mode else "Stopped"
        done = f"{verb} {answer['submission_id']} after {clock(answer['elapsed'])}." if live else "It did not run."
        return {**answer, "msg": done}

    def stop(self, submission_id: str) -> dict[str, Any]:
        self.client.stop(submission_id)
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            info = self.client.job(submission_id)
            if info["status"] not in LIVE:
                return info
            if time.monotonic() > deadline:
                hint = (
                    "Ray gives a job up that waits for resources only at its own start time-out (15 minutes)"
                    if info["status"] == "PENDING"
                    else "look at the dashboard, or restart Ray on the head"
                )
                raise RayError(
                    f"{submission_id} is still {info['status']} {STOP_SECONDS} seconds after it was stopped; {hint}"
                )
            time.sleep(0.5)

    def absent(self) -> dict[str, Any]:
        attempts = attempts_of(self.name, self.client.jobs())
        if not self.module.check_mode:
            for attempt in attempts:
                submission_id = attempt_id(self.name, attempt.number)
                if attempt.status in LIVE:
                    self.stop(submission_id)
                self.client.delete(submission_id)
        diff = {"diff": self.diff(attempts, "")} if attempts else {}
        return {"changed": bool(attempts), "finished": True, "status": "ABSENT", "attempts": 0, **diff}

    # One round of following

    def round(self, submission_id: str, offset: int | None, seconds: float) -> dict[str, Any]:
        """Wait for news of an attempt, at most ``seconds``."""
        attempt = attempt_number(self.name, submission_id) or 1
        deadline = time.monotonic() + seconds
        earliest = time.monotonic() + min(2.0, seconds)
        lines: list[str] = []
        progress = ""
        while True:
            try:
                info = self.client.job(submission_id)
            except RayNotFound:
                result = read_result(self.params["result_file"])
                if result_attempt(self.name, result) == attempt and succeeded(result):
                    return {"finished": True, "lines": lines, **self.from_result(attempt, result or {})}
                return {
                    "finished": True,
                    "failed": True,
                    "status": "ABSENT",
                    "submission_id": submission_id,
                    "attempts": attempt,
                    "lines": lines,
                    "msg": f"Ray does not know {submission_id} any more: Ray was restarted on the head while the job "
                    f"ran (journalctl -u metalray-head), or somebody deleted it. Run the same again for a new attempt",
                }
            ended = info["status"] not in LIVE
            more, drawn, offset, _path = self.new_log(info, offset, ended)
            lines += more
            progress = last_match([*more, drawn], self.params["progress_pattern"]) or progress
            if ended:
                answer = self.end(attempt, info)
                break
            now = time.monotonic()
            if now >= deadline or (lines and now >= earliest):
                answer = {
                    **self.about(attempt, info),
                    "finished": False,
                    "progress": progress,
                }
                break
            time.sleep(min(1.0, max(0.05, deadline - now)))
        limit = self.params["log_lines"]
        return {
            **answer,
            "offset": offset,
            "lines": lines[-limit:] if limit else [],
            "unshown": max(0, len(lines) - limit),
        }


def as_text(value: Any) -> str:
    """As Ray wants values: YAML's true is the word, not Python's."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_yaml(value: Any) -> str:
    """For a diff: one line a value, nothing left out."""
    return "".join(f"{name}: {json.dumps(item)}\n" for name, item in value.items() if item not in ({}, None))


def check(params: dict[str, Any]) -> str | None:
    """What is wrong with the options, or None."""
    if params["name"] is not None and not NAME_PATTERN.fullmatch(params["name"]):
        return (
            f"name must be at most 100 letters, digits, '_' and '-', beginning with a letter or digit, "
            f"not '{params['name']}'"
        )
    if params["state"] == "present" and not (params["entrypoint"] or "").strip():
        return "entrypoint must be a shell command, and is empty"
    for option in ("wait_timeout", "reconnect_timeout", "log_lines"):
        if params[option] < 0:
            return f"{option} must not be negative, and is {params[option]}"
    if params["result_file"] and not os.path.isabs(params["result_file"]):
        return f"result_file must be an absolute path, not '{params['result_file']}'"
    try:
        re.compile(params["progress_pattern"])
    except re.error as error:
        return f"progress_pattern is no regular expression: {error}"
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "name": {"type": "str", "aliases": ["submission_id"]},
            "state": {"type": "str", "choices": ["present", "attached", "stopped", "absent"], "default": "present"},
            "entrypoint": {"type": "str"},
            "env": {"type": "dict", "default": {}},
            "runtime_env": {"type": "dict", "default": {}},
            "metadata": {"type": "dict", "default": {}},
            "entrypoint_num_cpus": {"type": "float", "default": 0},
            "entrypoint_num_gpus": {"type": "float", "default": 0},
            "result_file": {"type": "path"},
            "force": {"type": "bool", "default": False},
            "retry_failed": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 0},
            "reconnect_timeout": {"type": "int", "default": 600},
            "show_log": {"type": "bool", "default": True},
            "log_lines": {"type": "int", "default": 25},
            "progress_pattern": {"type": "str", "default": PROGRESS_PATTERN},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                },
            },
            "secret_files": {
                "type": "list",
                "elements": "path",
                "default": ["/etc/metalray/secrets.env"],
                "no_log": False,
            },
            "follow": {
                "type": "dict",
                "options": {
                    "attempt": {"type": "str", "required": True},
                    "offset": {"type": "int"},
                    "seconds": {"type": "float", "default": 10},
                },
            },
        },
        required_if=[("state", "present", ["name", "entrypoint"]), ("state", "absent", ["name"])],
        supports_check_mode=True,
    )
    params, follow = module.params, module.params["follow"]
    problem = check(params)
    if problem:
        module.fail_json(msg=problem)
    try:
        job = Job(module, RayClient(params["address"], params["token_path"]))
        if follow:
            answer = job.round(follow["attempt"], follow["offset"], follow["seconds"])
        else:
            state = params["state"]
            answer = {"present": job.present, "attached": job.newest, "stopped": job.stopped, "absent": job.absent}[
                state
            ]()
    except RayUnreachable as error:
        if module.check_mode:
            # Before the first run there is no Ray; what a real run would do is still plain.
            would = params["state"] == "present"
            module.exit_json(
                changed=would,
                finished=True,
                status="ABSENT",
                attempts=0,
                msg=f"would submit {params['name']}: there is no Ray yet"
                if would
                else "there is no Ray, and no job on it",
            )
        module.fail_json(msg=str(error), unreachable_dashboard=True, status="UNKNOWN", attempts=0)
    except RayError as error:
        module.fail_json(msg=str(error), status="UNKNOWN", attempts=0)
    if answer.pop("failed", False):
        module.fail_json(**answer)
    module.exit_json(**{"changed": False, **answer})


if __name__ == "__main__":
    main()
