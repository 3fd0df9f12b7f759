# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what the profiles are worth, on one machine with two or more NVIDIA GPUs and no other job.

    python tests/gpu/measure.py --gpus 2 > RESULTS.md

The collection's modules render each profile on this machine (``render.yml``, connection local), and ``all_reduce.py`` times
NCCL under the files that they wrote: inside the node, between two halves of its GPUs that take each other for another host,
and, as root and with iproute2, between two network namespaces that a wire of a given speed joins. A veth pair with a token
bucket stands in for that wire, and is told to be as fast as it is, since a veth pair always says 10 Gb/s.

Needs ansible-core and a torch with CUDA in the Python that runs it. Progress goes to stderr, a Markdown report to stdout.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMESPACES = ("metalray-a", "metalray-b")
# The same in both, since all ranks get one environment.
INTERFACE = "wire0"
ADDRESSES = ("10.9.0.1", "10.9.0.2")
ACCEPTED = ["NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_ASYNC_ERROR_HANDLING"]
SWEEP = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4)]
BURST_SECONDS = 0.001


def run(*command: str, **more: Any) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **more).stdout


def render(directory: Path, profile: str, hosts: int, interpreters: Sequence[str], mbps: int) -> dict[str, str]:
    """The environment that the modules make for the first host: their variables, and NCCL's file."""
    output = directory / f"{profile}-{hosts}-{mbps}"
    output.mkdir(parents=True)
    inventory = {
        "all": {
            "vars": {
                "ansible_connection": "local",
                "gpu_output": str(output),
                "gpu_venv": sys.prefix,
                "network_env_profile": profile,
                "network_env_link_mbps": mbps,
                "network_env_accept": ACCEPTED,
            },
            "hosts": {
                f"half{number}": {"ansible_python_interpreter": interpreter}
                for number, interpreter in enumerate(interpreters[:hosts])
            },
        }
    }
    (output / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
    run(
        *(sys.executable, "-m", "ansible", "playbook", "-i", str(output / "inventory.json"), str(HERE / "render.yml")),
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    lines = (output / "half0.env").read_text(encoding="utf-8").splitlines()
    words = [word for line in lines if not line.startswith("#") for word in shlex.split(line)]
    environment = dict(word.split("=", 1) for word in words)
    return {**environment, "NCCL_CONF_FILE": str(output / "half0.conf")}


def time_all(settings: Mapping[str, Any], directory: Path, *options: str) -> dict[str, dict[str, list[float]]]:
    path = directory / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    result = directory / "result.json"
    run(sys.executable, str(HERE / "all_reduce.py"), str(path), str(result), *options)
    return json.loads(result.read_text(encoding="utf-8"))["bus_gb_per_s"]


def set_wire(gbps: int | None) -> None:
    """Two network namespaces that a veth pair joins, each end sending at most ``gbps``; None takes them away."""
    for namespace in NAMESPACES:
        subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)
    if gbps is None:
        return
    for namespace in NAMESPACES:
        run("ip", "netns", "add", namespace)
    peer = ("type", "veth", "peer", "name", INTERFACE, "netns", NAMESPACES[1])
    run("ip", "link", "add", INTERFACE, "netns", NAMESPACES[0], *peer)
    for namespace, address in zip(NAMESPACES, ADDRESSES):
        inside = ("ip", "-n", namespace)
        run(*inside, "address", "add", f"{address}/24", "dev", INTERFACE)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", INTERFACE, "up")
        burst = f"{int(gbps * 1e9 / 8 * BURST_SECONDS)}b"
        shape = ("tbf", "rate", f"{gbps}gbit", "burst", burst, "latency", "10ms")
        run("ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", INTERFACE, "root", *shape)


def inside_namespaces(directory: Path) -> list[str]:
    """A Python for either namespace, for Ansible to run the modules with."""
    wrappers = []
    for namespace in NAMESPACES:
        path = directory / f"python-{namespace}"
        path.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} {sys.executable} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        wrappers.append(str(path))
    return wrappers


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A Markdown table: a row a setting, a column a size, each cell the median with the least and the most."""
    sizes = list(next(iter(results.values())))
    lines = ["| setting | " + " | ".join(f"{size} MiB" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for name, by_size in results.items():
        cells = [f"{statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})" for v in by_size.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def ratio(results: Mapping[str, Mapping[str, Sequence[float]]], one: str, other: str) -> str:
    pairs = {
        size: statistics.median(results[one][size]) / statistics.median(results[other][size]) for size in results[one]
    }
    return f"{one} / {other}: " + ", ".join(f"{value:.2f} at {size} MiB" for size, value in pairs.items())


def streams(threads: int, each: int) -> dict[str, str]:
    return {"NCCL_SOCKET_NTHREADS": str(threads), "NCCL_NSOCKS_PERTHREAD": str(each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wires", type=int, nargs="*", default=[], metavar="GBPS", help="speeds to try; root only")
    parser.add_argument("--sweep", action="store_true", help="also threads and sockets one by one")
    options = parser.parse_args()
    import torch

    gpus = ("--gpus", str(options.gpus), "--rounds", str(options.rounds))
    sizes = ("--sizes", "1", "16", "64")
    sweep = {f"{t} x {n}": streams(t, n) for t, n in SWEEP} if options.sweep else {}
    report = [
        "# All-reduce under the profiles",
        "",
        f"{datetime.date.today()}, {options.gpus} x {torch.cuda.get_device_name(0)}, {os.cpu_count()} CPUs, Linux "
        f"{platform.release()}, torch {torch.__version__}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}",
        "",
        f"    {shlex.join(['python', *sys.argv])}",
        "",
        "Bus bandwidth of bfloat16 in GB/s (10^9 bytes a second), the median of "
        f"{options.rounds} rounds with the least and the most. Settings take turns in every round.",
    ]
    kept = {name: value for name, value in os.environ.items() if name.startswith("NCCL_") and name != "NCCL_VERSION"}
    if kept:
        report += ["", f"Set under all of them: {' '.join(f'{name}={value}' for name, value in kept.items())}."]

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        def profiles(
            hosts: int, interpreters: Sequence[str] = (sys.executable,) * 2, mbps: int = 0
        ) -> dict[str, dict[str, str]]:
            made = {profile: render(directory, profile, hosts, interpreters, mbps) for profile in ("seed", "auto")}
            return {"nothing set": {}, **made}

        results = time_all(profiles(1), directory, *gpus)
        report += ["", "## Inside the node", "", *table(results), "", ratio(results, "auto", "nothing set")]

        results = time_all(profiles(2), directory, *gpus, "--groups", "2")
        report += ["", "## Two halves that take each other for another host, over loopback", "", *table(results)]
        report += ["", ratio(results, "auto", "nothing set"), "", ratio(results, "auto", "seed")]
        if sweep:
            results = time_all({"nothing set": {}, **sweep}, directory, *gpus, "--groups", "2", *sizes)
            report += ["", "Threads x sockets a thread, over loopback:", "", *table(results)]

        wrappers = inside_namespaces(directory)
        for gbps in options.wires:
            set_wire(gbps)
            try:
                over = ("--groups", "2", "--namespaces", *NAMESPACES, "--address", ADDRESSES[0])
                settings = {**profiles(2, wrappers, gbps * 1000), **sweep}
                results = time_all(settings, directory, *gpus, *over, *sizes)
            finally:
                set_wire(None)
            report += ["", f"## Over an emulated wire of {gbps} Gb/s ({gbps / 8:g} GB/s)", "", *table(results)]
            report += ["", ratio(results, "auto", "nothing set")]
    print("\n".join(report))


if __name__ == "__main__":
    main()
