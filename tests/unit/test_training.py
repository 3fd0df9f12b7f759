# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what a preset needs, against what a cluster has."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _training as training
from ansible_collections.metalray.cluster.plugins.plugin_utils._settings import ROLES, load_presets

PRESETS = load_presets()
BIG = {"gpus": 8, "cpus": 64}
VALUES = {
    "cluster_shared_dir": "/mnt/shared",
    "training_job": "terminal_bench_rl",
    "training_preset": "prod_32b_2x8_h100",
    "python_env_profile": "terminal_bench_rl",
}


def node(**changes):
    return {
        "user": "ray",
        "docker": "",
        "registries": {},
        "secrets": ["ANTHROPIC_API_KEY", "WANDB_API_KEY"],
        "shm_bytes": 2**36,
        "free_bytes": 2**41,
        "model": {"path": "/m", "lacks": "", "bytes": 0, "unreachable": ""},
        **changes,
    }


def ray(**hosts):
    return {
        "nodes": [
            {"name": name, "alive": cpus is not None, "resources": {"available": {"GPU": gpus, "CPU": cpus}}}
            for name, (gpus, cpus) in hosts.items()
        ]
    }


def short(nodes, cluster=None, preset="prod_32b_2x8_h100", **more):
    cluster = cluster or ray(a=(8, 64), b=(8, 64))
    return training.shortfall(preset, PRESETS[preset], cluster, nodes, "a", more.pop("keep", 2), **more)


def test_a_cluster_that_has_it_all_is_not_refused():
    assert short({"a": node(), "b": node()}) == []


def test_all_that_is_missing_is_told_at_once():
    poor = node(
        docker="permission denied",
        registries={"ghcr.io": "timed out"},
        secrets=["WANDB_API_KEY"],
        shm_bytes=2**26,
        free_bytes=2**37,
        model={"path": "/m", "lacks": "has no config.json", "bytes": 0, "unreachable": "no route"},
    )
    told = "\n".join(short({"a": poor, "b": node()}, ray(a=(8, 64), b=(8, 8))))
    for text in (
        "2 nodes with 8 GPUs and 9 CPUs free are needed, and 1 are so in Ray (a: 8 GPUs, 64 CPUs; b: 8 GPUs, 8 CPUs)",
        "a: the tasks run in Docker, and ray cannot use it: permission denied",
        "had from ghcr.io: timed out",
        "a: ANTHROPIC_API_KEY is not among",
        "/dev/shm has 0 GiB, and 8 GiB are needed",
        "a: 128 GiB are free on the shared directory, and 610 GiB are needed (61 GiB for the model and 3 checkpoints of 183 GiB)",
        "Qwen/Qwen3-32B has no config.json, and it cannot be fetched: no route",
    ):
        assert text in told, text
    assert "b: " not in told.replace("; b: 8", "")


def test_a_node_that_has_left_ray_does_not_count():
    assert "and 1 are so" in short({"a": node(), "b": node()}, ray(a=(8, 64), b=(8, None)))[0]


def test_all_checkpoints_of_a_run_need_more_than_two_of_them():
    kept, _how = training.room(PRESETS["prod_32b_2x8_h100"], 2, True)
    everything, how = training.room(PRESETS["prod_32b_2x8_h100"], 0, True)
    assert everything > 200 * kept and "662 checkpoints" in how


def test_the_key_is_the_judge_s():
    nodes = {"a": node(secrets=["WANDB_API_KEY"]), "b": node()}
    assert "ANTHROPIC_API_KEY" in short(nodes)[0]
    assert "OPENAI_API_KEY" in short(nodes, judge="openai/gpt-5")[0]
    assert short(nodes, judge="ollama/qwen3") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"training_job": "smoke", "training_preset": "nope"}, None),
        ({"training_preset": "prod"}, "training_preset is 'prod'. Choose one of test_8b_2_gpus"),
        ({"python_env_profile": "smoke"}, "python_env_profile is 'smoke'. Set it to 'terminal_bench_rl'"),
        ({"python_env_profile": "custom"}, "python_env_profile is 'custom'"),
        ({"python_env_profile": "custom", "python_env_source_url": "git://x/y.git"}, None),
        ({"training_overrides": ["trainer.total_epochs=1", "+a.b=2", "~c"]}, None),
        ({"training_overrides": ["--skip-upload"]}, "training_overrides has '--skip-upload'"),
        ({"training_preset": "prod_32b_4x8_h100"}, "needs 4 nodes with 8 GPUs and 9 CPUs each, and 2 are so"),
        ({"training_presets": {"mine": {"nodes": "2"}}, "training_preset": "mine"}, "nodes is '2'"),
        ({"ray_working_dir": "/srv"}, "ray_working_dir is '/srv'"),
    ],
)
def test_the_choice_is_judged_from_the_inventory(change, says):
    told = training.check_choice({**VALUES, **change}, {"a": BIG, "b": BIG}, PRESETS)
    assert (says is None and told == []) or (len(told) == 1 and says in told[0]), told


def test_ray_starts_in_the_source_and_with_what_the_trainer_s_workers_read():
    plan = training.plan_training({**VALUES, "training_judge": "openai/gpt-5"})
    assert plan["working_dir"] == "/mnt/shared/src/terminal-bench-rl"
    assert plan["environment"]["PYTHONPATH"].split(":")[1] == "/mnt/shared/src/terminal-bench-rl/external/rllm"
    assert plan["environment"]["LLM_JUDGE_NAME"] == "openai/gpt-5"
    mine = {**VALUES, "python_env_source_url": "git://host/team/fork.git"}
    assert training.plan_training(mine)["working_dir"] == "/mnt/shared/src/fork"
    assert training.plan_training({**VALUES, "training_job": "smoke"}) == {
        "working_dir": "/mnt/shared",
        "environment": {},
    }


def test_no_preset_is_without_its_fields():
    for name, preset in PRESETS.items():
        values = {**VALUES, "training_preset": name}
        nodes = {str(number): BIG for number in range(preset["nodes"])}
        assert training.check_choice(values, nodes, PRESETS) == []
        assert {"model", "parameters", "save_every", "steps", "shm_bytes"} <= set(preset)


class TestModel:
    @pytest.fixture
    def model(self, tmp_path):
        header = json.dumps({"__metadata__": {}, "w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
        shard = struct.pack("<Q", len(header)) + header + bytes(8)
        for name in ("config.json", "tokenizer_config.json"):
            (tmp_path / name).write_text("{}")
        (tmp_path / "one.safetensors").write_bytes(shard)
        (tmp_path / "two.safetensors").write_bytes(shard)
        index = {"metadata": {"total_size": 16}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return tmp_path

    def test_a_whole_one(self, model):
        assert training.model_lacks(model) == "" and training.model_bytes(model) == 16

    def test_a_small_one_has_one_file_and_no_index(self, model):
        (model / "model.safetensors.index.json").unlink()
        assert training.model_lacks(model) == "has no model.safetensors"
        (model / "one.safetensors").rename(model / "model.safetensors")
        assert training.model_lacks(model) == ""

    @pytest.mark.parametrize(
        ("name", "size", "says"),
        [
            ("config.json", None, "has no config.json"),
            ("two.safetensors", None, "has no two.safetensors"),
            ("two.safetensors", -1, "has a torn two.safetensors"),
            ("two.safetensors", 3, "has a torn two.safetensors"),
            ("model.safetensors.index.json", 5, "has a torn model.safetensors.index.json"),
        ],
    )
    def test_a_configuration_alone_proves_nothing(self, model, name, size, says):
        data = (model / name).read_bytes()
        (model / name).unlink()
        if size is not None:
            (model / name).write_bytes(data[:size])
        assert training.model_lacks(model) == says


def test_base_images_are_those_that_a_build_fetches():
    text = "FROM --platform=linux/amd64 ghcr.io/a/b:1 AS base\nRUN x\nfrom base\nFROM scratch\nFROM $OTHER\nFROM python:3.13\n"
    assert training.base_images(text) == {"ghcr.io/a/b:1", "python:3.13"}
    assert training.by_registry(training.base_images(text)) == {
        "ghcr.io": ["ghcr.io/a/b:1"],
        "registry-1.docker.io": ["python:3.13"],
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="the environment of a service is root's")
class TestFetch:
    """The module, with stand-ins for systemd and for what its service runs."""

    @pytest.fixture
    def options(self, tmp_path, monkeypatch):
        programs = {
            "systemctl": "echo inactive",
            "systemd-run": f'echo "$*" >{tmp_path}/called; for to; do :; done; test -e {tmp_path}/gated || '
            '{ mkdir -p "$to"; for name in config.json tokenizer_config.json; do echo "{}" >"$to/$name"; done; '
            'printf "\\002\\000\\000\\000\\000\\000\\000\\000{}" >"$to/model.safetensors"; }',
            "journalctl": "printf 'Traceback (most recent call last):\\n  x\\nGatedRepoError: ask for access\\n'",
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        (tmp_path / "venv/bin").mkdir(parents=True)
        (tmp_path / "venv/bin/hf").touch()
        return {
            "model": "Qwen/Tiny",
            "source": str(tmp_path),
            "venv": str(tmp_path / "venv"),
            "user": "root",
            "environment": {"HTTPS_PROXY": "http://canary@proxy:3128"},
        }

    def test_a_model_is_fetched_once_and_no_proxy_s_account_is_on_a_command_line(self, options, run_module, tmp_path):
        assert "would fetch Qwen/Tiny" in run_module("training_model", check=True, **options)["msg"]
        assert not (tmp_path / "called").exists()
        told = run_module("training_model", **options)
        assert told["changed"] and told["finished"] and told["path"] == f"{tmp_path}/models/Qwen_Tiny"
        assert "download Qwen/Tiny --revision main" in (called := (tmp_path / "called").read_text())
        assert "canary" not in called + json.dumps(told)
        assert not run_module("training_model", **options)["changed"]

    def test_a_download_that_ended_too_early_is_told_with_its_last_words(self, options, run_module, tmp_path):
        (tmp_path / "gated").touch()
        begun = run_module("training_model", **options)
        assert begun["changed"] and not begun["finished"]
        told = run_module("training_model", follow={"seconds": 0.1}, **options)
        assert told["failed"] and "has no config.json: GatedRepoError: ask for access" in told["msg"]


def test_the_launcher_s_docker_removes_its_own_and_passes_all_else_on(tmp_path):
    tools, real, log = tmp_path / "metalray-tools", tmp_path / "real", tmp_path / "log"
    tools.mkdir()
    real.mkdir()
    shutil.copy(ROLES / "training/files/docker", tools)
    (real / "docker").write_text(
        f'#!/bin/sh\necho "$*" >>{log}\n[ "$1" = ps ] && echo mine\n[ "$1 $2" = "network ls" ] && echo net\nexit 0\n'
    )
    for path in (tools / "docker", real / "docker"):
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{real}:/usr/bin:/bin"}
    for words in ("container prune -f", "network prune -f", "compose up"):
        subprocess.run(["docker", *words.split()], env=environment, check=True)
    assert log.read_text().splitlines() == [
        "ps --quiet --all --filter name=rllm_ --filter status=exited --filter status=dead",
        "rm mine",
        "network ls --quiet --filter name=rllm_",
        "network rm net",
        "compose up",
    ]
