# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's life on the cluster: followed from two controllers, its connection and then a node lost, resumed, stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from sandbox import NODES, Run, assert_unchanged, fingerprints, on, power, site, start

# Long enough to be cut off in the middle: told by the job's own progress, and never waited for.
LONG = ["-e", "training_smoke_epochs=60", "-e", "training_smoke_samples=8192"]
ALIVE = "ray status 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c node_"


def losses(text: str) -> dict[int, str]:
    """What the job printed for each epoch."""
    return {int(epoch): loss for epoch, loss in re.findall(r"\| .*\bepoch (\d+)/60 loss (\S+) \d+ samples/s", text)}


def cut_connection(directory: Path) -> None:
    """Kill the connection that a controller holds to the head, as a network would."""
    killed = 0
    for path in directory.iterdir():
        said = subprocess.run(
            ["ssh", "-O", "check", "-S", path, "head"], capture_output=True, text=True, check=False
        ).stderr
        peer = re.search(r"pid=(\d+)", said)
        if peer:
            os.kill(int(peer.group(1)), signal.SIGKILL)
            killed += 1
    assert killed


def test_a_lost_connection_is_outlived_and_a_lost_node_is_named_and_resumed_from(tmp_path):
    controllers = [{"ANSIBLE_SSH_CONTROL_PATH_DIR": str(tmp_path / name)} for name in ("a", "b")]
    first = start(*LONG, playbook="playbooks/train.yml", **controllers[0])
    job = first.until(r"(smoke-[0-9a-f]+) submitted").group(1)
    log = f"/tmp/ray/session_latest/logs/job-driver-{job}.log"
    second = start(playbook="playbooks/logs.yml", **controllers[1])
    second.until(f"{job} attached")
    cut_connection(tmp_path / "a")
    first.until(f"{job}: reached again")

    # Between two checkpoints, of which there is one every five epochs.
    on("node1", f"timeout 200 tail --lines=+1 --follow {log} | grep --max-count=1 --extended-regexp 'epoch [1-4][27]/'")
    power("node3", "cut")
    try:
        ends = [first.end(), second.end()]
        # Who only looks on has the name from Ray, as long as that tells it.
        for end, node in zip(ends, ("node3", r"(?:node3|10\.77\.\d+\.13)")):
            assert end.status != 0 and "Traceback" not in end.text.split("PLAY RECAP")[-1]
            assert f"The job {job} failed after" in end.said
            assert re.search(rf"a node was lost in mid-run \(node {node} \(10\.77\.", end.said), end.text[-4000:]
            assert "from its last checkpoint" in end.said, end.text[-4000:]
        before = losses(ends[0].text)

        # What a run of the site says of the node meanwhile.
        run = site()
        assert run.status != 0
        assert run.recap["node3"]["unreachable"] == 1
        assert run.recap["node1"]["ok"] > 20 and run.recap["node2"]["ok"] > 20
        assert "No training: node3 did not answer" in run.text
        # One attempt, not one a task.
        assert run.text.count("UNREACHABLE!") == 1
    finally:
        power("node3", "started")
    # A boot: everything is back with nobody's help, and its firewall forgot nothing.
    on("node1", f"bash -lc 'timeout 240 sh -c '\"'\"'until [ \"$({ALIVE})\" = 3 ]; do sleep 1; done'\"'\"")

    again = site(*LONG)
    assert again.status == 0, again.text[-4000:]
    assert "3 workers, CPU, on 3 nodes" in again.text
    resumed = re.search(r"resuming after epoch (\d+)/60 loss (\S+), from", again.text)
    assert resumed, again.text[-4000:]
    epoch, loss = int(resumed.group(1)), resumed.group(2)
    assert epoch >= 10 and epoch % 5 == 0
    after = losses(again.text)
    # It had this loss there, it did nothing before that again, and what follows is what would have followed.
    assert before[epoch] == loss and min(after, default=61) > epoch
    assert all(after[number] == before[number] for number in set(after) & set(before))
    result = json.loads(on("node1", f"cat /mnt/shared/results/{job}.json"))
    assert (result["resumed_from"], result["epochs"], result["submission_id"]) == (epoch, 60, f"{job}.2")
    assert_unchanged(site(*LONG))


def test_ray_is_not_restarted_under_a_job_and_the_job_is_stopped_by_name():
    command = [
        "-e",
        "training_job=command",
        "-e",
        "training_command_name=long",
        "-e",
        '{"training_command": "exec sleep 900"}',
    ]
    started = site(*command, "-e", "training_wait=false", playbook="playbooks/train.yml")
    assert started.status == 0 and started.changed == 1, started.text[-4000:]
    before = fingerprints()
    pids = {node: on(node, "pgrep -x raylet") for node in NODES}
    for check in ([], ["--check"]):
        refused = site("--tags", "ray", "-e", '{"ray_environment": {"NEW": "1"}}', *check)
        assert refused.status != 0 and refused.changed == 0, refused.text[-4000:]
        assert (
            "would end what runs on the cluster: long-" in refused.said and "ray_restart_running_jobs" in refused.said
        )
    assert fingerprints() == before
    assert {node: on(node, "pgrep -x raylet") for node in NODES} == pids
    # What needs no restart goes on.
    assert_unchanged(site("--tags", "ray"))

    would = site("--check", playbook="playbooks/stop.yml")
    assert would.status == 0 and "Would stop long-" in would.said, would.text
    stopped = site(playbook="playbooks/stop.yml")
    assert stopped.status == 0 and stopped.changed == 1 and "Stopped long-" in stopped.said, stopped.text
    idle = site(playbook="playbooks/stop.yml")
    assert idle.status == 0 and idle.changed == 0 and "No job runs." in idle.said, idle.text
    last = site(playbook="playbooks/logs.yml")
    assert last.status != 0 and "was stopped after" in last.said, last.text


def dashboard(*arguments: str) -> Run:
    run = site(*arguments, playbook="playbooks/dashboard.yml")
    assert run.status == 0, run.text
    return run


def test_the_dashboard_comes_to_this_machine_and_goes():
    def status(url: str, token: str) -> int:
        request = urllib.request.Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    token = on("node1", "sudo cat /etc/metalray/ray_token")
    assert token not in dashboard("--check").text.replace(f"Token: {token}", "")
    opened = dashboard("-vvv")
    try:
        url = re.search(r"Dashboard: (http://localhost:\d+)", opened.text).group(1)
        assert opened.changed == 1 and f"Token: {token}" in opened.text
        # Once, for who asked, and nowhere else.
        assert opened.text.count(token) == 1
        assert status(url, token) == 200 and status(url, "wrong") in (401, 403)
        again = dashboard("-e", "dashboard_show_token=false")
        assert again.changed == 0 and url in again.text and token not in again.text
    finally:
        closed = dashboard("-e", "dashboard_state=closed")
    assert closed.changed == 1 and dashboard("-e", "dashboard_state=closed").changed == 0
    try:
        status(url, token)
    except urllib.error.URLError as error:
        assert "refused" in str(error.reason)
    else:
        raise AssertionError("the tunnel is still open")
