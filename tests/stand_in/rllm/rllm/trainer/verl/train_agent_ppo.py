# A stand-in: see README.md in tests/stand_in.
"""Joins whatever Ray it finds, trains in a task on any node, and takes files and variables from that node's Ray."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import ray

from rllm.trainer.env_agent_mappings import NAMES

DEFAULTS = {
    "trainer.resume_mode": "auto",
    "trainer.max_actor_ckpt_to_keep": "null",
    "trainer.total_training_steps": "6",
}


@ray.remote(num_cpus=1)
def rank() -> str:
    os.stat("data/train.parquet")  # where Ray was started
    return socket.gethostname()


@ray.remote(num_cpus=1)
def train_agent(config: dict, names: list) -> None:
    import pandas

    rows = len(pandas.read_parquet(config["data.train_files"]))
    for name in ("WANDB_API_KEY", "ANTHROPIC_API_KEY", "LLM_JUDGE_NAME", "VLLM_USE_V1"):
        if not os.environ.get(name):
            raise OSError(f"{name} is not set where the trainer runs")
    nodes = int(config["trainer.nnodes"])
    group = ray.util.placement_group([{"CPU": 1}] * nodes, strategy="STRICT_SPREAD")
    if not group.wait(30):
        raise ValueError(f"Total available nodes are less than total desired nodes {nodes}")
    where = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    hosts = ray.get([rank.options(scheduling_strategy=where).remote() for _number in range(nodes)])
    print(f"wandb: logged in with {os.environ['WANDB_API_KEY']}")
    print(f"{rows} tasks, mappings {names}, ranks on {sorted(hosts)}")
    place = Path("checkpoints", config["trainer.project_name"], config["trainer.experiment_name"])
    latest, step = place / "latest_checkpointed_iteration.txt", 0
    if config["trainer.resume_mode"] == "auto" and latest.exists():
        step = int(latest.read_text())
        loss = json.loads((place / f"global_step_{step}" / "actor" / "model.json").read_text())["loss"]
        print(f"resumed from step {step} with loss {loss}")
    else:
        loss = 1.0
    while step < int(config["trainer.total_training_steps"]):
        step += 1
        print(f"epoch 0, step {step} started")
        loss /= 2
        time.sleep(0.2)
        if step == int(config.get("trainer.fail_at", 0)):
            raise RuntimeError(f"CUDA out of memory (stand-in) at step {step}")
        if step % int(config["trainer.save_freq"]) == 0:
            actor = place / f"global_step_{step}" / "actor"
            actor.mkdir(parents=True, exist_ok=True)
            (actor / "model.json").write_text(json.dumps({"loss": loss}))
            latest.write_text(str(step))
    print(f"trained to step {step}, loss {loss}")


def main() -> None:
    config = {**DEFAULTS, **dict(word.lstrip("+").partition("=")[::2] for word in sys.argv[1:])}
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN"}})
    ray.get(train_agent.remote(config, NAMES))


if __name__ == "__main__":
    main()
