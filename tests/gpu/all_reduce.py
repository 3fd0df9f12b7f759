# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time NCCL's all-reduce under several settings in one run, on one machine with two or more NVIDIA GPUs.

    python tests/gpu/all_reduce.py SETTINGS.json RESULT.json --gpus 2 --groups 2 --rounds 5

SETTINGS.json maps a name to the environment that it stands for: ``{"unset": {}, "ethernet": {"NCCL_CONF_FILE": "..."}}``.
Every measurement is made in fresh processes, since NCCL reads its settings once, and the settings take turns in every round,
so that a machine which grows slower or faster in the meantime favours none of them.

``--groups 2`` gives either half of the GPUs an ``NCCL_HOSTID`` of its own. NCCL then takes them for two hosts: it stops using
NVLink and shared memory between the halves and goes over the network. Without ``--namespaces`` that network is the loopback
device, which has no wire; with it each half lives in a network namespace that a veth pair connects to the other's.

The result has, for each setting and size, the bus bandwidth in GB/s (10^9 bytes a second, 2 (n-1)/n times the algorithm's,
as nccl-tests defines it) of every round: bytes over the median time of an all-reduce, the slowest rank's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

MIB = 1 << 20
_WARM_UP = 3
_SECONDS_A_SIZE = 0.4


def measure(size: int) -> float:
    """Median seconds of one all-reduce of ``size`` bytes of bfloat16, the slowest rank's."""
    tensor = torch.ones(size // 2, dtype=torch.bfloat16, device="cuda")

    def timed(count: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _event in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            dist.all_reduce(tensor)
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(events, events[1:])]

    trial = torch.tensor(statistics.median(timed(_WARM_UP)), device="cuda")
    dist.all_reduce(trial, dist.ReduceOp.MAX)
    tensor.zero_()
    count = int(min(200, max(5, _SECONDS_A_SIZE / trial.item())))
    slowest = torch.tensor(statistics.median(timed(count)), device="cuda")
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def meet(rank: int, world: int, address: str, ports: Any) -> dist.TCPStore:
    """Rank 0 takes a port that is free where it lives, which may be a namespace, and tells the others."""
    if rank:
        return dist.TCPStore(address, ports.get(timeout=60), world)
    store = dist.TCPStore(address, 0, world, is_master=True, wait_for_workers=False)
    for _other in range(world - 1):
        ports.put(store.port)
    return store


def worker(
    rank: int, world: int, options: argparse.Namespace, environment: dict[str, str], ports: Any, queue: Any
) -> None:
    group = rank * options.groups // world
    os.environ.update(environment)
    if options.groups > 1:
        os.environ["NCCL_HOSTID"] = f"group{group}"
    if options.namespaces:
        with open(f"/run/netns/{options.namespaces[group]}", encoding="utf-8") as namespace:
            os.setns(namespace.fileno())  # type: ignore[attr-defined]
    torch.cuda.set_device(rank)
    store = meet(rank, world, options.address, ports)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)
    seconds = {size: measure(size * MIB) for size in options.sizes}
    if rank == 0:
        queue.put({size: 2 * (world - 1) / world * size * MIB / value / 1e9 for size, value in seconds.items()})
    dist.destroy_process_group()


def one_round(options: argparse.Namespace, environment: dict[str, str]) -> dict[int, float]:
    """Bus bandwidth by size, from one process a GPU."""
    context = multiprocessing.get_context("fork")  # torch is imported once; CUDA is first touched in the children
    ports, queue = context.Queue(), context.Queue()
    world = options.gpus
    workers = [
        context.Process(target=worker, args=(rank, world, options, environment, ports, queue)) for rank in range(world)
    ]
    for process in workers:
        process.start()
    deadline = time.monotonic() + options.timeout
    for process in workers:
        process.join(max(0, deadline - time.monotonic()))
    failed = [process for process in workers if process.exitcode != 0]
    for process in failed:
        process.kill()
    if failed:
        raise SystemExit(f"{len(failed)} of {world} ranks failed or took longer than {options.timeout} s")
    return queue.get(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("settings", help="JSON file: name to environment")
    parser.add_argument("result", help="JSON file to write; NCCL prints to stdout as it likes")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--groups", type=int, choices=(1, 2), default=1)
    parser.add_argument("--namespaces", nargs=2, metavar="NAME", help="a network namespace for either half")
    parser.add_argument("--address", default="127.0.0.1", help="where rank 0 listens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024], help="in MiB")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one measurement")
    options = parser.parse_args()

    with open(options.settings, encoding="utf-8") as handle:
        settings: dict[str, dict[str, str]] = json.load(handle)
    results: dict[str, dict[int, list[float]]] = {name: {size: [] for size in options.sizes} for name in settings}
    for number in range(options.rounds):
        for name, environment in settings.items():
            for size, bandwidth in one_round(options, environment).items():
                results[name][size].append(round(bandwidth, 3))
            print(f"round {number + 1}: {name}: { {s: v[-1] for s, v in results[name].items()} }", file=sys.stderr)
    with open(options.result, "w", encoding="utf-8") as handle:
        json.dump({"gpus": options.gpus, "groups": options.groups, "bus_gb_per_s": results}, handle, indent=1)


if __name__ == "__main__":
    main()
