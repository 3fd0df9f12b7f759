# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built-in training job: a small model, data-parallel over every node, that proves the cluster trains.

One worker a GPU with NCCL, or one worker a node with Gloo where there is no GPU. The job ends well only if the loss
fell, an all-reduce summed right on every rank, a checkpoint lies on the shared directory, every node took part, and the
traffic between ranks used the interface that the node's environment names. It sets no network variable itself: what it
proves is the environment that the cluster gave it.

A run that was cut off goes on from its newest complete checkpoint, with the same losses that it would have had. Complete is one
whose state has the digest that its manifest names, so that a half-written one is never read.

By hand, on a node of a running cluster: ``python smoke.py --storage /mnt/shared/checkpoints --result /tmp/smoke.json``
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SIOCGIFADDR = 0x8915
# Offsets of tcpi_bytes_acked and tcpi_bytes_received in the kernel's struct tcp_info (Linux 4.1 and later).
TCP_INFO_BYTES = 120
STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
# What the workers get of the arguments.
LOOP_ARGUMENTS = ("epochs", "samples", "batch", "features", "hidden", "learning_rate", "seed", "checkpoint_every")


class SmokeError(Exception):
    """The cluster did not pass; the text says in what."""


# What a rank can say about its own traffic -------------------------------------------------------------------------


def names_interface(backend: str, setting: str, interface: str) -> bool:
    """Whether an interface is one that the setting names, as its reader understands it.

    Gloo takes a list of names. NCCL takes a list of prefixes; ``=`` before it makes them names, ``^`` excludes them.
    """
    if backend != "nccl":
        return interface in setting.split(",")
    exclude = setting.startswith("^")
    rest = setting[1:] if exclude else setting
    exact = rest.startswith("=")
    names = [name for name in (rest[1:] if exact else rest).split(",") if name]
    found = any(interface == name if exact else interface.startswith(name) for name in names)
    return found != exclude


def nccl_setting(name: str, environment: Mapping[str, str], files: Iterable[str]) -> str:
    """A setting of NCCL in force: the environment wins, then the first file that has it."""
    if environment.get(name):
        return environment[name]
    for path in files:
        with contextlib.suppress(OSError):
            for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
                key, equals, value = line.partition("=")
                if equals and key.strip() == name:
                    return value.strip()
    return ""


def interfaces_by_address() -> dict[str, str]:
    """IPv4 address -> interface, from the kernel."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[socket.inet_ntoa(answer[20:24])] = name
    return found


def own_connections() -> list[dict[str, Any]]:
    """Every established TCP connection of this process, with the bytes that the kernel counted on it."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                local, remote = connection.getsockname()[:2], connection.getpeername()[:2]
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # Gone in the meantime, or not connected.
        sent, received = struct.unpack_from("QQ", info, TCP_INFO_BYTES) if len(info) >= TCP_INFO_BYTES + 16 else (0, 0)
        ends = [(address.replace("::ffff:", ""), port) for address, port in (local, remote)]
        found.append({"local": ends[0], "remote": ends[1], "sent": sent, "received": received})
    return found


def rank_traffic(
    rank: int, connections: list[list[dict[str, Any]]], interfaces: dict[str, str], skip_port: int
) -> list[dict[str, Any]]:
    """What ``rank`` exchanged with the other ranks: one entry for each local address, within the node and beyond it.

    A connection counts if its two ends are held by two ranks. ``skip_port`` is the rendezvous of torch, which says
    nothing about the transport.
    """
    held_elsewhere = {
        (tuple(item["local"]), tuple(item["remote"]))
        for other, items in enumerate(connections)
        if other != rank
        for item in items
    }
    by_address: dict[tuple[str, bool], dict[str, Any]] = {}
    for item in connections[rank]:
        local, remote = tuple(item["local"]), tuple(item["remote"])
        if (remote, local) not in held_elsewhere or skip_port in (local[1], remote[1]):
            continue
        within = remote[0] in interfaces
        new = {"address": local[0], "interface": interfaces.get(local[0], ""), "within_node": within, "peers": []}
        entry = by_address.setdefault((local[0], within), {**new, "bytes_sent": 0, "bytes_received": 0})
        entry["peers"] = sorted({*entry["peers"], remote[0]})
        entry["bytes_sent"] += item["sent"]
        entry["bytes_received"] += item["received"]
    return [by_address[key] for key in sorted(by_address)]


def misrouted(ranks: Iterable[dict[str, Any]]) -> list[str]:
    """One sentence for each rank whose measured interface is not the configured one.

    Within a node the kernel chooses the address, whatever the interface.
    """
    found = []
    for rank in ranks:
        variable = "NCCL_SOCKET_IFNAME" if rank["backend"] == "nccl" else "GLOO_SOCKET_IFNAME"
        setting = rank[variable.lower()]
        for entry in rank["traffic"]:
            if entry["within_node"] or not setting or not entry["interface"]:
                continue
            if not names_interface(rank["backend"], setting, entry["interface"]):
                found.append(
                    f"rank {rank['rank']} on {rank['hostname']} talked to {', '.join(entry['peers'])} through "
                    f"{entry['interface']} ({entry['address']}), but {variable} is {setting}"
                )
    return found


# Checkpoints --------------------------------------------------------------------------------------------------------


def describe_state(checkpoint: Path, epoch: int, loss: float) -> dict[str, Any]:
    """The manifest of a checkpoint."""
    digest = hashlib.sha256((checkpoint / STATE_FILE).read_bytes()).hexdigest()
    return {"epoch": epoch, "loss": loss, "sha256": digest}


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint whose state is as it was saved, or None.

    Ray Train copies file by file, and a node may go down at any time.
    """
    try:
        told = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        return told if told == describe_state(checkpoint, told["epoch"], told["loss"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_complete(run: Path, epochs: int) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, one that leaves something to do, and its manifest. Their names are their times."""
    for path in sorted(run.glob("checkpoint_*"), reverse=True):
        manifest = read_manifest(path)
        if manifest and manifest["epoch"] < epochs:
            return path, manifest
    return None


def keep_only(run: Path, kept: Path | None) -> None:
    """Forget the checkpoints of a run but one, and Ray's record of them beside, which may be torn too."""
    for path in run.glob("checkpoint_*"):
        if path != kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


# The worker ---------------------------------------------------------------------------------------------------------


def train_worker(config: dict[str, Any]) -> None:
    """Runs in every rank."""
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    # Ray Train's loggers are named after their files, so only the root reaches them all.
    logging.getLogger().setLevel(logging.WARNING)
    rank, world = dist.get_rank(), dist.get_world_size()
    backend = str(dist.get_backend())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)

    # Every rank adds its number: a wrong or partial sum shows that not all of them met.
    proof = torch.tensor([float(rank + 1)], device=device)
    dist.all_reduce(proof)
    if proof.item() != world * (world + 1) / 2:
        raise SmokeError(f"all_reduce on rank {rank} of {world} gave {proof.item()}, not {world * (world + 1) / 2}")

    features, samples, batch = config["features"], config["samples"], config["batch"]
    teacher = torch.randn(features, 1, generator=torch.Generator().manual_seed(config["seed"]))
    inputs = torch.randn(samples, features, generator=torch.Generator().manual_seed(config["seed"] + 1 + rank))
    targets = torch.tanh(inputs @ teacher / features**0.5).to(device)
    inputs = inputs.to(device)

    torch.manual_seed(config["seed"])
    model = torch.nn.Sequential(
        torch.nn.Linear(features, config["hidden"]), torch.nn.Tanh(), torch.nn.Linear(config["hidden"], 1)
    )
    model = ray.train.torch.prepare_model(model)
    plain = model.module if hasattr(model, "module") else model
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    done, losses = 0, []
    if config["checkpoint"]:
        state = torch.load(Path(config["checkpoint"]) / STATE_FILE, map_location=device, weights_only=True)
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, losses = state["epoch"], state["losses"]
    resumed_from = done

    order = torch.Generator()
    timed_samples, timed_seconds = 0, 0.0
    for epoch in range(done + 1, config["epochs"] + 1):
        started = time.perf_counter()
        total = torch.zeros((), device=device)
        # Every epoch has an order of its own, the same after a resumption.
        order.manual_seed(config["seed"] + rank + world * epoch)
        batches = torch.randperm(samples, generator=order).split(batch)
        for chosen in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        mean = total / len(batches)
        dist.all_reduce(mean)
        losses.append(mean.item() / world)
        seconds = time.perf_counter() - started
        if epoch > resumed_from + 1 or epoch == config["epochs"]:  # The first one warms up.
            timed_samples, timed_seconds = timed_samples + samples * world, timed_seconds + seconds
        if rank == 0:
            rate = samples * world / seconds
            # Not print(): Ray Train has its own, which says everything twice.
            sys.stdout.write(f"epoch {epoch}/{config['epochs']} loss {losses[-1]:.5f} {rate:.0f} samples/s\n")
            sys.stdout.flush()

        last = epoch == config["epochs"]
        if not last and epoch % config["checkpoint_every"]:
            continue
        metrics: dict[str, Any] = {"epoch": epoch, "losses": losses}
        if last:
            nccl_files = [os.environ.get("NCCL_CONF_FILE") or os.path.expanduser("~/.nccl.conf"), "/etc/nccl.conf"]
            mine = {
                "rank": rank,
                "hostname": socket.gethostname(),
                "node_ip": ray.util.get_node_ip_address(),
                "node_id": ray.get_runtime_context().get_node_id(),
                "pid": os.getpid(),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "backend": backend,
                "gloo_socket_ifname": os.environ.get("GLOO_SOCKET_IFNAME", ""),
                "nccl_socket_ifname": nccl_setting("NCCL_SOCKET_IFNAME", os.environ, nccl_files),
            }
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, (mine, own_connections(), interfaces_by_address()))
            everyone = [connections for _mine, connections, _interfaces in gathered]
            rendezvous = int(os.environ.get("MASTER_PORT", "0"))
            metrics.update(
                ranks=[
                    {**about, "traffic": rank_traffic(number, everyone, interfaces, rendezvous)}
                    for number, (about, _connections, interfaces) in enumerate(gathered)
                ],
                samples_per_second=round(timed_samples / timed_seconds, 1),
                resumed_from=resumed_from,
            )
        saved = None
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state = {
                    "model": plain.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "losses": losses,
                }
                torch.save(state, Path(folder) / STATE_FILE)
                manifest = describe_state(Path(folder), epoch, losses[-1])
                (Path(folder) / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=saved)


# The driver ---------------------------------------------------------------------------------------------------------


def plan_workers(nodes: list[dict[str, Any]], workers: int) -> dict[str, Any]:
    """How many workers, with what, and on which nodes at least one must run.

    ``nodes`` are the living ones: ``{"id", "name", "cpus", "gpus"}``. ``workers`` 0 means one a GPU, or one a node.
    """
    with_gpu = [node for node in nodes if node["gpus"] >= 1]
    able = with_gpu or [node for node in nodes if node["cpus"] >= 1]
    if not able:
        raise SmokeError("no node of this Ray cluster offers a GPU or a CPU, so nothing can train on it")
    room = int(sum(node["gpus"] if with_gpu else node["cpus"] for node in able))
    count = workers or (room if with_gpu else len(able))
    if count > room:
        raise SmokeError(
            f"{count} workers are wanted, but the cluster has {room} {'GPUs' if with_gpu else 'CPUs'}; "
            f"lower training_smoke_workers (0 chooses what fits)"
        )
    return {
        "workers": count,
        "use_gpu": bool(with_gpu),
        # One a node: nothing less than every node passes. Otherwise as even as it goes.
        "strategy": "STRICT_SPREAD" if count == len(able) and not with_gpu else "SPREAD",
        "expected": sorted(node["name"] for node in able) if count >= len(able) else [],
    }


def judge(metrics: dict[str, Any], expected: list[str], loss_fraction: float) -> None:
    """Raise SmokeError unless the run proved what it is for."""
    first, last = metrics["losses"][0], metrics["losses"][-1]
    if not last <= first * loss_fraction:  # NaN fails as well.
        raise SmokeError(
            f"the loss did not fall: {first:.5f} in the first epoch, {last:.5f} in the last of "
            f"{len(metrics['losses'])}, and at most {loss_fraction:g} of the first is right; train longer "
            f"(training_smoke_epochs) or look for a rank that computes wrongly"
        )
    absent = sorted(set(expected) - {rank["node_ip"] for rank in metrics["ranks"]})
    if absent:
        raise SmokeError(f"no worker ran on {', '.join(absent)}, though the cluster has room there")
    wrong = misrouted(metrics["ranks"])
    if wrong:
        raise SmokeError("; ".join(wrong) + "; put the environment right (--tags network_env,ray) and train again")


def write_result(path: str, result: dict[str, Any]) -> None:
    """Whole or not at all: other nodes may read it at any time."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def in_short(error: BaseException) -> str:
    """One line of an error that may carry the tracebacks of all ranks; the whole is in the log."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    telling = [line for line in lines[1:] if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (telling or lines)[-1 if telling else 0][:500]


def finished_before(path: str) -> bool:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("status") == "SUCCEEDED"
    except (OSError, ValueError, AttributeError):
        return False


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    # Notice a lost worker soon, and leave a node that goes down to the judgement of who runs this.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray takes the lines of different epochs for repetitions of one.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    import ray.train
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="auto", log_to_driver=True)
    nodes = [
        {
            "id": node["NodeID"],
            "name": node["NodeManagerAddress"],
            "cpus": node["Resources"].get("CPU", 0),
            "gpus": node["Resources"].get("GPU", 0),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]
    plan = plan_workers(nodes, arguments.workers)
    kind = "GPU" if plan["use_gpu"] else "CPU"
    deadline = time.monotonic() + arguments.resource_timeout
    while ray.available_resources().get(kind, 0) < plan["workers"]:
        if time.monotonic() > deadline:
            raise SmokeError(
                f"{plan['workers']} {kind}s are needed, {ray.available_resources().get(kind, 0):g} are free: another "
                f"job holds the rest; wait for it or stop it"
            )
        time.sleep(1)
    print(f"{plan['workers']} workers, {kind}, on {len(nodes)} nodes", flush=True)

    # A finished run is not resumed but made again; an unfinished one goes on from its last checkpoint.
    run = Path(arguments.storage) / arguments.name
    anew = arguments.fresh or finished_before(arguments.result)
    start_from, manifest = (None if anew else newest_complete(run, arguments.epochs)) or (None, {})
    keep_only(run, start_from)
    if start_from:
        where = f"epoch {manifest['epoch']}/{arguments.epochs} loss {manifest['loss']:.5f}"
        print(f"resuming after {where}, from {start_from}", flush=True)
    patience = {"max_failures": 0, "controller_failure_limit": 1, "max_preemption_failures": 0}
    known = {field.name for field in dataclasses.fields(FailureConfig)}
    quiet = {}
    if hasattr(ray.train, "LoggingConfig"):
        quiet["logging_config"] = ray.train.LoggingConfig(log_level="WARNING")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "checkpoint": str(start_from or ""),
            **{name: getattr(arguments, name) for name in LOOP_ARGUMENTS},
        },
        scaling_config=ScalingConfig(
            num_workers=plan["workers"], use_gpu=plan["use_gpu"], placement_strategy=plan["strategy"]
        ),
        run_config=RunConfig(
            name=arguments.name,
            storage_path=str(arguments.storage),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(**{name: value for name, value in patience.items() if name in known}),
            **quiet,
        ),
    )
    outcome = trainer.fit()
    metrics = outcome.metrics
    judge(metrics, plan["expected"], arguments.loss_fraction)
    checkpoint = Path(outcome.checkpoint.path)
    if not read_manifest(checkpoint):
        raise SmokeError(
            f"the checkpoint {checkpoint} is not complete here; is {arguments.storage} shared by all nodes?"
        )
    return {
        "world_size": plan["workers"],
        "backend": metrics["ranks"][0]["backend"],
        "epochs": len(metrics["losses"]),
        "resumed_from": metrics["resumed_from"],
        "first_loss": round(metrics["losses"][0], 6),
        "last_loss": round(metrics["losses"][-1], 6),
        "samples_per_second": metrics["samples_per_second"],
        "ranks": metrics["ranks"],
        "checkpoint": str(checkpoint),
        "versions": {"ray": ray.__version__, "torch": torch.__version__},
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", required=True, help="directory of the checkpoints, the same on every node")
    parser.add_argument("--result", default=os.environ.get("METALRAY_RESULT_FILE"), help="file for the result, JSON")
    parser.add_argument("--name", default="smoke", help="name of the run: a folder under the storage directory")
    parser.add_argument(
        "--fresh",
        action="store_true",
        default=os.environ.get("METALRAY_FRESH") == "1",
        help="forget the checkpoints of an unfinished run, as METALRAY_FRESH=1 in the environment does",
    )
    parser.add_argument("--workers", type=int, default=0, help="0: one a GPU, or one a node where there is no GPU")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=4096, help="of each worker, in an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--checkpoint-every", type=int, default=5, help="epochs")
    parser.add_argument("--loss-fraction", type=float, default=0.2, help="the last loss may be this part of the first")
    parser.add_argument("--resource-timeout", type=float, default=60, help="seconds to wait for free CPUs or GPUs")
    arguments = parser.parse_args(argv)
    if not arguments.result:
        parser.error("--result is needed where METALRAY_RESULT_FILE is not set")
    return arguments


def main() -> int:
    arguments = parse()
    started = time.time()
    result: dict[str, Any] = {"submission_id": os.environ.get("METALRAY_SUBMISSION_ID", arguments.name)}
    try:
        result.update(train(arguments), status="SUCCEEDED", message="")
    except SmokeError as error:
        result.update(status="FAILED", message=str(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence: the result file must say what happened
        import traceback

        traceback.print_exc()
        result.update(status="FAILED", message=in_short(error))
    result["elapsed_seconds"] = round(time.time() - started, 1)
    write_result(arguments.result, result)
    if result["status"] != "SUCCEEDED":
        print(f"smoke job failed: {result['message']}", file=sys.stderr, flush=True)
        return 1
    print(
        f"loss {result['first_loss']} -> {result['last_loss']}, {result['samples_per_second']} samples/s, "
        f"{result['world_size']} ranks over {result['backend']}, checkpoint {result['checkpoint']}",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
