# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a preset of terminal-bench-rl needs, against what the cluster has.

Internal to metalray.cluster: not a public interface. Every function that checks returns a list of problems, each a whole
sentence with its mend.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

JOB = "terminal_bench_rl"
SOURCE_NAME = "terminal-bench-rl"
JUDGE = "anthropic/claude-sonnet-4-20250514"
_BYTES_A_PARAMETER = 2
_CHECKPOINT_BYTES_A_PARAMETER = 6
_FIELDS: dict[str, type] = {"nodes": int, "gpus": int, "project": str, "experiment": str}
_OVERRIDE = re.compile(r"(?:\+{0,2}|~)[A-Za-z_][\w./@-]*(?:=.*)?")
# Which key the judge's service wants, by the prefix of its name.
_JUDGE_KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}


# --- In preflight: from the inventory and the nodes' facts -------------------------------------------------------------


def source_dir(values: Mapping[str, Any]) -> str:
    """Where the role python_env clones the training source to."""
    url = str(values.get("python_env_source_url") or SOURCE_NAME)
    name = values.get("python_env_source_name") or posixpath.splitext(posixpath.basename(url))[0]
    return str(values.get("training_source_dir") or posixpath.join(values["cluster_shared_dir"], "src", name))


def plan_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray must know of the job: where its processes start, and their environment.

    The trainer's workers take both from the Ray of their own node and not from the launcher, and all its paths are relative.
    """
    if values.get("training_job") != JOB:
        return {"working_dir": values["cluster_shared_dir"], "environment": {}}
    source = source_dir(values)
    return {
        "working_dir": source,
        "environment": {
            "PYTHONPATH": f"{source}:{source}/external/rllm",
            "LLM_JUDGE_NAME": str(values.get("training_judge") or JUDGE),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "VLLM_USE_V1": "1",
            "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
            "VLLM_ENGINE_ITERATION_TIMEOUT_S": "100000000000",
        },
    }


def check_choice(
    values: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]], presets: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Whether the job, its preset and the environment fit together, and the nodes are enough."""
    if values.get("training_job") != JOB:
        return []
    problems = []
    profile = values.get("python_env_profile")
    if profile not in (JOB, "custom") or (profile == "custom" and not values.get("python_env_source_url")):
        problems.append(
            f"training_job is '{JOB}', and python_env_profile is '{profile}'. Set it to '{JOB}', or to 'custom' with a lock, "
            "python_env_source_url and python_env_source_version of your own"
        )
    started_in = values.get("ray_working_dir")
    if started_in and started_in != source_dir(values):
        problems.append(
            f"ray_working_dir is '{started_in}', and the job's paths are relative to {source_dir(values)}. Leave it at its default"
        )
    for override in values.get("training_overrides") or []:
        if not _OVERRIDE.fullmatch(str(override)):
            problems.append(
                f"training_overrides has '{override}'. Each is KEY=VALUE, +KEY=VALUE or ~KEY, for the trainer's hydra"
            )
    name = values.get("training_preset") or ""
    known = {**presets, **(values.get("training_presets") or {})}
    if name not in known:
        return [
            *problems,
            f"training_preset is '{name}'. Choose one of {', '.join(known)}, or describe it in training_presets",
        ]
    preset = known[name]
    wrong = [
        f"{field} is {preset.get(field)!r}"
        for field, kind in _FIELDS.items()
        if not isinstance(preset.get(field), kind) or isinstance(preset.get(field), bool)
    ]
    if wrong:
        return [
            *problems,
            f"training_presets: in '{name}' {', '.join(wrong)}. See roles/training/files/presets.yml for the fields",
        ]
    return [*problems, *check_hardware(name, preset, nodes)]


def check_hardware(name: str, preset: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    able = [host for host, node in nodes.items() if node["gpus"] >= preset["gpus"] and node["cpus"] > preset["gpus"]]
    if len(able) < preset["nodes"]:
        seen = "; ".join(f"{host} has {node['gpus']} GPUs and {node['cpus']} CPUs" for host, node in nodes.items())
        problems.append(
            f"training_preset {name} needs {preset['nodes']} nodes with {preset['gpus']} GPUs and {preset['gpus'] + 1} CPUs "
            f"each, and {len(able)} are so ({seen}). Choose a smaller preset, add nodes, or see why GPUs are missing (nvidia-smi)"
        )
    return problems


# --- Before the launch: from what runs ---------------------------------------------------------------------------------


def room(preset: Mapping[str, Any], keep: int, model_there: bool) -> tuple[int, str]:
    """Bytes that a run takes on the shared directory, and how they come about."""
    parameters = int(preset.get("parameters") or 0)
    model = 0 if model_there else _BYTES_A_PARAMETER * parameters
    each = _CHECKPOINT_BYTES_A_PARAMETER * parameters
    all_of_them = max(1, int(preset.get("steps") or 1) // max(1, int(preset.get("save_every") or 1)))
    # The new one is written before the oldest that is kept counts as superfluous.
    count = min(all_of_them, keep + 1) if keep else all_of_them
    parts = [f"{gib(model)} for the model"] if model else []
    parts += [f"{count} checkpoints of {gib(each)}"] if each else []
    return model + count * each, " and ".join(parts)


def gib(count: int) -> str:
    return f"{count / 2**30:,.0f} GiB"


def shortfall(
    name: str,
    preset: Mapping[str, Any],
    cluster: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    head: str,
    keep: int,
    judge: str = JUDGE,
    secrets: Sequence[str] = ("WANDB_API_KEY",),
) -> list[str]:
    """What the cluster lacks for a start of this preset, all of it.

    ``cluster`` is what ``ray_cluster_info`` returns, ``nodes`` what ``training_node_facts`` does for each host.
    """
    problems = []
    gpus, cpus = preset["gpus"], preset["gpus"] + 1
    free = {
        node["name"]: node["resources"]["available"]
        for node in cluster.get("nodes", [])
        if node["alive"] and node["resources"]
    }
    able = [host for host, has in free.items() if has.get("GPU", 0) >= gpus and has.get("CPU", 0) >= cpus]
    if len(able) < preset["nodes"]:
        seen = "; ".join(
            f"{host}: {has.get('GPU', 0):.0f} GPUs, {has.get('CPU', 0):.0f} CPUs" for host, has in free.items()
        )
        problems.append(
            f"{preset['nodes']} nodes with {gpus} GPUs and {cpus} CPUs free are needed, and {len(able)} are so in Ray "
            f"({seen or 'no node'}). Stop what holds them (ray job list on the head), raise ray_num_cpus, or bring the "
            "missing node back (--tags ray)"
        )
    for host, node in nodes.items():
        problems += [f"{host}: {problem}" for problem in _node_shortfall(preset, node)]
    key = _JUDGE_KEYS.get(judge.partition("/")[0])
    wanted = [*secrets, *([key] if key else [])]
    for host, node in nodes.items():
        lacking = [secret for secret in wanted if secret not in node["secrets"]]
        if lacking:
            problems.append(
                f"{host}: {', '.join(lacking)} is not among the node's secrets. Give it in training_secrets and run --tags ray,training"
            )
    has = nodes[head]
    model = has["model"]
    needed, how = room(preset, keep, not model["lacks"])
    if needed > has["free_bytes"] + model.get("bytes", 0) * bool(model["lacks"]):
        problems.append(
            f"{head}: {gib(has['free_bytes'])} are free on the shared directory, and {gib(needed)} are needed ({how}). Make room, "
            "or keep fewer checkpoints (training_checkpoints_keep)"
        )
    if model["lacks"] and model["unreachable"]:
        problems.append(
            f"{head}: the model {preset['model']} {model['lacks']}, and it cannot be fetched: {model['unreachable']}. Open the way, "
            f"name a mirror in training_model_endpoint, or copy the whole model to {model['path']}"
        )
    return problems


def _node_shortfall(preset: Mapping[str, Any], node: Mapping[str, Any]) -> list[str]:
    problems = []
    if node["docker"]:
        problems.append(
            f"the tasks run in Docker, and {node['user']} cannot use it: {node['docker']}. Run --tags docker,ray"
        )
    for registry, why in node["registries"].items():
        problems.append(
            f"base images of the tasks are neither there nor to be had from {registry}: {why}. Open the way, or load them "
            "(docker load)"
        )
    if node["shm_bytes"] < int(preset.get("shm_bytes") or 0):
        problems.append(
            f"/dev/shm has {gib(node['shm_bytes'])}, and {gib(preset['shm_bytes'])} are needed. Remount it larger "
            "(mount -o remount,size=16G /dev/shm), or give the container more (--shm-size)"
        )
    return problems


# --- On a node ---------------------------------------------------------------------------------------------------------


def model_dir(source: str, model: str) -> str:
    """Where the launcher looks for a model."""
    return os.path.join(source, "models", model.replace("/", "_"))


def model_lacks(path: Path) -> str:
    """What a whole model has and this one lacks; empty for a whole one. Each file of weights tells its own length."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            return f"has no {name}"
    index = path / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return f"has a torn {index.name}"
    for name in shards:
        lack = _shard_lacks(path / name)
        if lack:
            return f"{lack} {name}"
    return ""


def _shard_lacks(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, 1 << 28)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = path.stat().st_size == 8 + length + max(ends, default=0)
    except FileNotFoundError:
        return "has no"
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        whole = False
    return "" if whole else "has a torn"


def tree_bytes(path: Path) -> int:
    total = 0
    for directory, _folders, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def model_bytes(path: Path) -> int:
    """How long the whole model is, as its index tells; 0 while there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(
            json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))["metadata"]["total_size"]
        )
    return 0


def base_images(dockerfile: str) -> set[str]:
    """The images that a Dockerfile builds on, without its own stages."""
    found: set[str] = set()
    stages = {"scratch"}
    for line in dockerfile.splitlines():
        words = line.split()
        if not words or words[0].upper() != "FROM":
            continue
        words = [word for word in words[1:] if not word.startswith("--")]
        if words and words[0].lower() not in stages and "$" not in words[0]:
            found.add(words[0])
        if len(words) == 3 and words[1].upper() == "AS":
            stages.add(words[2].lower())
    return found


def registry_of(image: str) -> str:
    first, slash, _rest = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "registry-1.docker.io"


def wanted_images(source: Path) -> set[str]:
    images: set[str] = set()
    for path in source.glob("tasks/*/Dockerfile"):
        with contextlib.suppress(OSError):
            images |= base_images(path.read_text(encoding="utf-8", errors="replace"))
    return images


def by_registry(images: Iterable[str]) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for image in sorted(images):
        told.setdefault(registry_of(image), []).append(image)
    return told
