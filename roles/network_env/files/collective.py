# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collective of the network proof: an all-reduce inside this node, then one across all nodes.

``network_proof`` writes this file and its settings into a directory and runs it on every node at once, in a fresh login of
the account that will train. It sets no network variable: what it shows is the environment that a login gets. Every rank
leaves ``rank<N>.json`` and, with NCCL, ``nccl<N>.log`` in that directory; the module judges them.

Every process here ends as soon as its standard input does: whoever started it holds the other end, so nothing outlives it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

SIOCGIFADDR = 0x8915
# Offsets of tcpi_bytes_acked and tcpi_bytes_received in the kernel's struct tcp_info (Linux 4.1 and later).
TCP_INFO_BYTES = 120
MIB = 1 << 20
TIMED_SECONDS = 2.0
LAST_WORDS = 5.0


class CollectiveError(Exception):
    """The ranks met, and something is wrong; the text says what."""


def end_with_stdin(folder: Path) -> None:
    """End this process when whoever started it is gone, and so nobody wants the answers."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


# What the kernel knows of this process's connections ----------------------------------------------------------------
# The role training's smoke.py asks the same; each of the two travels as one file that needs nothing of the collection.


def plain(address: str) -> str:
    """An address as it was configured: no IPv4 inside IPv6, no zone."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


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
        ends = {"local": [plain(local[0]), local[1]], "remote": [plain(remote[0]), remote[1]]}
        found.append({**ends, "sent": sent, "received": received})
    return found


def interfaces_by_address() -> dict[str, str]:
    """Address -> interface, from the kernel."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            packed, *_rest, name = line.split()
            found[str(ipaddress.ip_address(bytes.fromhex(packed)))] = name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[socket.inet_ntoa(answer[20:24])] = name
    return found


# A rank -------------------------------------------------------------------------------------------------------------


def ranks_of(counts: list[int], node: int) -> range:
    """The global ranks of a node's processes; ranks are counted through, node after node."""
    first = sum(counts[:node])
    return range(first, first + counts[node])


def check_sum(values: list[float], members: range, where: str) -> None:
    """Every member adds its rank + 1: a wrong or partial sum shows that not all of them met."""
    right = float(sum(rank + 1 for rank in members))
    wrong = next((value for value in values if value != right), None)
    if wrong is not None:
        raise CollectiveError(f"the all-reduce {where} gave {wrong:g} where {right:g} is right")


def bus_bandwidth(size: int, world: int, seconds: float) -> float | None:
    """GB/s (10^9 bytes) as nccl-tests counts them; None where there is nobody to talk to."""
    return round(2 * (world - 1) / world * size / seconds / 1e9, 3) if world > 1 and seconds > 0 else None


@contextlib.contextmanager
def rendezvous(config: dict[str, Any], rank: int, world: int, timeout: datetime.timedelta) -> Iterator[Any]:
    """The store by which ranks find each other: on the first node's chosen address only, and only for this run."""
    import torch.distributed as dist

    host, port = config["store"]
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    server = None
    if rank == 0:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
    store = dist.TCPStore(
        host,
        port,
        world,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=server.detach() if server else None,
    )
    store = dist.PrefixStore(config["token"], store)
    yield store
    # The server lives in rank 0, which therefore leaves last.
    store.add("left", 1)
    until = time.monotonic() + LAST_WORDS
    while rank == 0 and store.add("left", 0) < world and time.monotonic() < until:
        time.sleep(0.02)


def timed(reduce: Callable[[], None], agree: Callable[[float], float]) -> float:
    """Median seconds of one call. ``agree`` makes one number of all ranks' numbers, so that all call equally often."""

    def once() -> float:
        started = time.perf_counter()
        reduce()
        return time.perf_counter() - started

    once()
    trial = agree(once())
    count = int(min(20, max(3, TIMED_SECONDS / max(trial, 1e-6))))
    return agree(statistics.median(once() for _turn in range(count)))


def run_rank(config: dict[str, Any], local_rank: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One rank's whole part; ``say`` tells what it is about to do."""
    say("loading torch")
    import torch
    import torch.distributed as dist

    counts, node, backend = config["counts"], config["node"], config["backend"]
    mine, world = ranks_of(counts, node), sum(counts)
    rank = mine[local_rank]
    timeout = datetime.timedelta(seconds=config["seconds"])
    device = torch.device("cpu")
    if backend == "nccl":
        say("taking its GPU")
        if not dist.is_nccl_available():
            raise CollectiveError(
                f"torch {torch.__version__} of {sys.prefix} is built without NCCL, and the node has GPUs"
            )
        seen = torch.cuda.device_count()
        if seen < counts[node]:
            raise CollectiveError(
                f"torch {torch.__version__} sees {seen} of the node's {counts[node]} GPUs "
                f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')})"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)

    def reduce(tensor: Any, group: Any = None, how: Any = dist.ReduceOp.SUM) -> Any:
        dist.all_reduce(tensor, how, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return tensor

    def agree(value: float) -> float:
        return reduce(torch.tensor([value], dtype=torch.float64, device=device), how=dist.ReduceOp.MAX).item()

    say(f"meeting the other ranks at {config['store'][0]} port {config['store'][1]}")
    with rendezvous(config, rank, world, timeout) as store:
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        chosen = os.environ.get(variable)
        say(f"connecting to the other ranks ({variable} is {chosen or 'not set'} in this login)")
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
        for members, where in ((mine, "inside the node"), (range(world), "across the nodes")):
            if members is mine and len(mine) in (1, world):
                continue
            say(f"the all-reduce {where}")
            group = dist.new_group(list(mine), use_local_synchronization=True) if members is mine else None
            values = reduce(torch.full((1024,), float(rank + 1), device=device), group).tolist()
            check_sum(values, members, where)

        say("timing an all-reduce")
        size = config["bytes"]
        tensor = torch.zeros(size // 4, dtype=torch.float32, device=device)
        seconds = timed(lambda: reduce(tensor), agree)
        result = {
            "ok": True,
            "rank": rank,
            "gb_per_s": bus_bandwidth(size, world, seconds),
            "torch": str(torch.__version__),
            "connections": own_connections(),
            "interfaces": interfaces_by_address(),
            "chosen": chosen,
        }
        dist.destroy_process_group()
    return result


def rank_main(folder: Path, local_rank: int) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    target = folder / f"rank{local_rank}.json"
    doing = ""

    def write(answer: dict[str, Any]) -> None:
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps(answer), encoding="utf-8")
        os.replace(temporary, target)

    def say(what: str) -> None:
        nonlocal doing
        doing = what
        write({"doing": what})

    if config["backend"] == "nccl":
        # The environment wins over NCCL's files, which may ask for less.
        os.environ.update(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,BOOTSTRAP,ENV")
        os.environ["NCCL_DEBUG_FILE"] = str(folder / f"nccl{local_rank}.log")
    try:
        write(run_rank(config, local_rank, say))
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer carries it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
        write(
            {"doing": doing, "error": text if isinstance(error, CollectiveError) else f"{type(error).__name__}: {text}"}
        )
        return 1
    return 0


def main(folder: Path) -> int:
    """One process a local rank; the first that fails takes the others with it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(folder), str(local_rank)])
        for local_rank in range(config["counts"][config["node"]])
    ]
    failed_at = None
    while any(rank.poll() is None for rank in ranks):
        if failed_at is None and any(rank.poll() for rank in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + min(LAST_WORDS, config["seconds"] / 5):
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    return int(any(rank.returncode for rank in ranks))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    end_with_stdin(where)
    sys.exit(rank_main(where, int(sys.argv[2])) if len(sys.argv) > 2 else main(where))
