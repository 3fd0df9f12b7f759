# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From clone to finished job with the stand-in for terminal-bench-rl, and its secrets nowhere but where they belong.

The tests build on each other, in this order, and leave the nodes with this job: they come last.
"""

from __future__ import annotations

import json
import re

from sandbox import NODES, Run, assert_unchanged, on, site

SOURCE = "/mnt/shared/src/terminal-bench-rl"
CANARY = "canary-wandb-3c1f08"
OTHER = 'canary-"anthropic"-$77ab'
VARIABLES = {
    "training_job": "terminal_bench_rl",
    "training_preset": "sandbox_2_nodes",
    "training_presets": {"sandbox_2_nodes": {"nodes": 2, "gpus": 0, "project": "stand_in", "experiment": "sandbox"}},
    "python_env_profile": "custom",
    "python_env_source_url": "git://127.0.0.1/terminal-bench-rl",
    "python_env_source_version": "v1",
    "training_secrets": {
        "WANDB_API_KEY": "{{ lookup('env', 'CANARY_WANDB') }}",
        "ANTHROPIC_API_KEY": "{{ lookup('env', 'CANARY_ANTHROPIC') }}",
    },
}
SECRETS = {"CANARY_WANDB": CANARY, "CANARY_ANTHROPIC": OTHER}


def train(tags: str, *more: str, **environment: str) -> Run:
    return site("--tags", tags, "-e", json.dumps(VARIABLES), *more, **environment)


def environment_of_raylet(node: str) -> list[str]:
    return on(node, "sudo cat /proc/$(pgrep -x raylet)/environ | tr '\\0' '\\n'").splitlines()


def test_from_clone_to_finished_job_and_no_secret_is_seen_on_the_way(tmp_path):
    on("node1", "sudo docker network create strangers >/dev/null")
    # Every command line on the head, as often as it can be read.
    on(
        "node1",
        "sudo systemd-run --quiet --unit=spy sh -c "
        '\'while sleep 0.1; do cat /proc/[0-9]*/cmdline; echo; done 2>/dev/null | tr "\\0" " " >/root/spy\'',
    )
    cache = tmp_path / "facts"
    run = train(
        "python_env,ray,dataset,training", "-vvvv", "--diff",
        ANSIBLE_CACHE_PLUGIN="jsonfile", ANSIBLE_CACHE_PLUGIN_CONNECTION=str(cache),
        ANSIBLE_LOG_PATH=str(tmp_path / "log"), ANSIBLE_DISPLAY_ARGS_TO_STDOUT="1", **SECRETS,
    )  # fmt: skip
    on("node1", "sudo systemctl stop spy")
    assert run.status == 0, run.text[-8000:]
    assert "SUCCEEDED" in run.text and "epoch 0, step 6 started" in run.text
    assert "6 tasks, mappings ['terminal_bench'], ranks on" in run.text
    # The job said it; what we print of that does not.
    assert "wandb: logged in with ********" in run.text

    assert len(list(cache.iterdir())) == len(NODES)
    told = [run.text, *(path.read_text(encoding="utf-8") for path in [*cache.iterdir(), tmp_path / "log"])]
    told.append(on("node1", "sudo cat /root/spy"))
    told.append(on("node1", "bash -lc 'ray job list' 2>&1"))
    for node in NODES:
        told.append(on(node, "sudo journalctl --quiet --no-pager --boot"))
        told.append(on(node, "sudo find /home /root /tmp /var/tmp -path '*ansible*' -type f -exec cat {} +"))
        told.append(on(node, "sudo cat /etc/metalray/cluster.env /etc/systemd/system/metalray-*.service"))
    assert "launch_training.py" in told[-3 * len(NODES) - 2]  # the spy has seen what it was to see
    for text in told:
        assert not re.search("canary-", text)

    for node in NODES:
        assert on(node, "sudo stat -c '%a %U' /etc/metalray/secrets.env") == "600 ops"
        environment = environment_of_raylet(node)
        assert f"WANDB_API_KEY={CANARY}" in environment and f"ANTHROPIC_API_KEY={OTHER}" in environment
    # The launcher's prunes reached nobody else's.
    assert on("node1", "sudo docker network ls --quiet --filter name=strangers")


def test_again_nothing_is_done_although_the_launcher_left_the_tree_dirty():
    assert on("node1", f"git -C {SOURCE}/external/rllm status --porcelain")
    assert_unchanged(train("python_env,ray,dataset,training", **SECRETS))


def test_the_job_has_its_files_where_the_launcher_leaves_them():
    record = json.loads(on("node1", f"cat {SOURCE}/data/.metalray-dataset.json"))
    assert record["counts"] == {"data/train.parquet": 6, "data/val.parquet": 1}
    assert on("node2", f"cat {SOURCE}/checkpoints/stand_in/sandbox/latest_checkpointed_iteration.txt") == "6"
    assert not on("node1", f"ls -d {SOURCE}/.venv 2>/dev/null || true")


def test_a_changed_secret_restarts_ray_and_a_shell_without_it_takes_nothing_away():
    changed = train("ray", **{**SECRETS, "CANARY_WANDB": "canary-new-5e1f"})
    assert changed.status == 0 and changed.changed == 2 * len(NODES), changed.text[-4000:]
    assert all("WANDB_API_KEY=canary-new-5e1f" in environment_of_raylet(node) for node in NODES)
    assert_unchanged(train("ray"))
