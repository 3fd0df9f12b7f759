# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a job failed: the known causes, how each shows in a log, and what mends it.

A new cause is one more entry of ``CAUSES`` and an excerpt of a true log in ``tests/unit/data/jobs``.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Callable


@dataclass(frozen=True)
class Cause:
    """A known way to fail.

    ``pattern`` is searched line by line. ``also`` must be found somewhere in the log too, notices and warnings included.
    ``source`` is where the symptom and its mend are known from. ``consequence`` says that something else may have come before:
    the log is searched for that first. ``survivable`` is what a program may report and go on.
    """

    name: str
    pattern: str
    summary: str
    mend: str
    source: str
    also: str = ""
    consequence: bool = False
    survivable: bool = False


_FEW_GPUS = r"Total available GPUs [\d.]+ is less than total desired GPUs"
_LOCAL = Cause(
    "local_cluster",
    r"has 0 actors, but vllm_dp_size|actor_names\b.{0,40}(?:\bempty\b|\[\])",
    "a process started a Ray of its own instead of joining the cluster",
    "RAY_ADDRESS must be in the environment of every process, before Ray starts: run --tags network_env,ray and train again; "
    "a program's own ray.init() takes no address, or address='auto'",
    "rllm-org/rllm#166",
)
_LAUNCH_KEYS = "(training_secrets, from Ansible Vault or the environment), and run --tags training again"

# In order: of two that a log shows, the first one is the cause. What is sure stands before what may have been survived.
CAUSES: tuple[Cause, ...] = (
    Cause(
        "nodes_differ",
        r"^version mismatch: .{1,300} of \d+ nodes differs? from the rest in ",
        "the nodes have different versions, so the job did not begin",
        "the table in the log has what differs on which node, and the mend below it; --tags versions compares them again",
        "metalray_parity, the first step of a job",
    ),
    Cause(
        "out_of_gpu_memory",
        r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
        r"|Cuda failure.{0,20}out of memory|CUBLAS_STATUS_ALLOC_FAILED|No available memory for the cache blocks"
        r"|Free memory on device .{0,80}less than desired GPU memory utilization"
        r"|max seq len .{0,120}(?:larger than the|KV cache)",
        "a GPU ran out of memory",
        "see with nvidia-smi on the node of the log line who holds the GPUs; then lower the micro batch, the sequence length or "
        "the memory fraction of the inference engine (gpu_memory_utilization)",
        "torch, vllm",
    ),
    Cause(
        "gpu_fault",
        r"uncorrectable ECC error|GPU is lost|fallen off the bus|NVLink error|CUDA error: (?:unspecified launch failure|hardware)",
        "a GPU or its link is broken",
        "look at dmesg (Xid) and nvidia-smi -q on the node of the log line; reset the GPU, or take the node out of the inventory",
        "CUDA",
    ),
    Cause(
        "out_of_memory",
        r"ray\.exceptions\.OutOfMemoryError|Task was killed due to the node running low on memory"
        r"|killed due to memory pressure \(OOM\)|oom-kill:|[Oo]ut of memory: Killed process|Memory cgroup out of memory"
        r"|can't allocate memory|\[Errno 12\]|Cannot allocate memory|std::bad_alloc|^MemoryError\b",
        "a node ran out of main memory",
        "see on the node of the log line what took it (the log, dmesg); use fewer workers a node or smaller buffers, or a node "
        "with more memory",
        "Ray's memory monitor, the kernel",
    ),
    Cause(
        "shared_memory",
        r"out of shared memory|unable to (?:allocate|resize|mmap|write to).{0,80}(?:shared memory|/torch_\d+)",
        "/dev/shm of a node is full",
        "see with df -h /dev/shm on the node of the log line; lower ray_object_store_memory or the data loader's workers, or give "
        "/dev/shm more room",
        "torch",
    ),
    Cause(
        "no_space",
        r"No space left on device|Disk quota exceeded|OutOfDiskError",
        "a disk is full",
        "see with df -h and df -i on the node of the log line: the shared directory, /tmp/ray, /dev/shm and Docker's images fill "
        "first",
        "the kernel",
    ),
    Cause(
        "checkpoint_not_written",
        r"inline_container\.cc.{0,40}unexpected pos|basic_ios::clear: iostream error",
        "torch could not write a checkpoint, mostly because a disk or a quota is full",
        "see with df -h and quota in the directory of the checkpoints; what was written before is still whole",
        "torch",
    ),
    Cause(
        "too_many_open_files",
        r"Too many open files|\bEMFILE\b",
        "a process reached its limit of open files",
        "raise limits_nofile and run --tags limits,ray: Ray takes the limit over when it starts",
        "the guide's issue 1",
    ),
    Cause(
        "aimv2",
        r"['\"]?aimv2['\"]? is already used by a Transformers config",
        "transformers 4.54 and later clash with vllm before 0.10",
        "pin transformers==4.51.3 in the lock, run --tags python_env,versions, and never sync by hand",
        "the guide's issue 3, vllm-project/vllm#22178",
    ),
    Cause(
        "compiled_for_another_torch",
        r"flash_attn.{0,200}undefined symbol|undefined symbol: _ZN?K?\d*(?:3c10|2at|5torch)|undefined symbol: _ZNK?3c10",
        "flash-attn, or another compiled package, was built for another torch",
        "take the wheel for the locked torch, or build it again (--tags python_env), after which --tags versions tells that the "
        "nodes agree",
        "mudler/LocalAI#9557",
    ),
    Cause(
        "version_mismatch",
        r"Version mismatch: The cluster was started with|Can't get attribute .{1,80} on <module",
        "Python or Ray differ between a node, or a program, and the cluster",
        "run --tags versions: it names the odd node and package; --tags python_env,ray brings them together; the job's python must "
        "be the one in /opt/metalray/venv",
        "ray-project/ray#50511",
    ),
    Cause(
        "asks_a_question",
        r"EOFError: EOF when reading a line",
        "a program asked a question, and a job has nobody to answer",
        "find its option for no questions; for terminal-bench's overview --tags dataset answers once for all",
        "terminal-bench's first start",
    ),
    Cause(
        "runtime_env_conflict",
        r"Failed to merge the Job's runtime env",
        "the job's environment and the program's own ray.init() set the same variable",
        "take it out of training_env (the message names it), or set RAY_OVERRIDE_JOB_RUNTIME_ENV=1 there: then the program's wins",
        "ray-project/ray#39208, rllm-org/rllm#521",
    ),
    Cause(
        "runtime_env",
        r"RuntimeEnvSetupError|RUNTIME_ENV_SETUP_FAILED",
        "Ray could not make the environment of the job",
        "what it lacks is in the message; packages belong into the lock (--tags python_env), code onto the shared directory",
        "Ray",
    ),
    replace(_LOCAL, pattern=_FEW_GPUS, also=r"Started a local Ray instance", source="verl-project/verl#2515"),
    _LOCAL,
    Cause(
        "not_enough_gpus",
        _FEW_GPUS + r"|GPUs are needed, [\d.]+ are free|workers are wanted, but the cluster has \d+ GPUs",
        "the job wants more GPUs than the cluster has free",
        "bring the missing node back (--tags ray), stop the job that holds GPUs (playbooks/stop.yml), or choose a smaller preset",
        "verl-project/verl#3358",
    ),
    Cause(
        "register_center",
        r"[Ff]ailed to get register_center_actor",
        "the workers of verl did not find each other: what an earlier run left is in the way, or the start took too long",
        "restart Ray on every node and train again; where the nodes are slow, raise trainer.ray_wait_register_center_timeout",
        "verl-project/verl#491",
    ),
    Cause(
        "docker_address_pools",
        r"all predefined address pools have been fully subnetted|non-overlapping IPv4 address pool",
        "Docker has no address left for another network",
        "see with 'docker network ls' on the node and remove what nobody uses; give docker_daemon_options more or smaller "
        "default-address-pools and run --tags docker",
        "terminal-bench's rollouts",
        survivable=True,
    ),
    Cause(
        "docker_access",
        r"permission denied while trying to connect to the [Dd]ocker|Cannot connect to the Docker daemon",
        "the job cannot use the Docker engine of its node",
        "run --tags docker,ray: it adds cluster_user to the engine's group, which Ray takes over when it starts",
        "terminal-bench's rollouts",
        survivable=True,
    ),
    Cause(
        "wandb_key",
        r"wandb.{0,60}(?:api_key not configured|No API key|AuthenticationError|API key must|permission to access)"
        r"|api_key not configured \(no-tty\)|WANDB_API_KEY\b.{0,60}(?:not set|must be set|is required|missing|is empty)",
        "Weights & Biases was given no key, or does not accept it",
        f"give WANDB_API_KEY {_LAUNCH_KEYS}; WANDB_MODE=offline in training_env does without",
        "wandb",
        survivable=True,
    ),
    Cause(
        "hugging_face_token",
        r"GatedRepoError|RepositoryNotFoundError|401 Client Error.{0,80}huggingface\.co|Invalid user token"
        r"|Access to model .{1,100} is restricted|HF_TOKEN\b.{0,60}(?:not set|must be set|is required|is missing)",
        "Hugging Face gives the model or data set to nobody without the right token, or it does not exist",
        f"see that the name is right and its terms are accepted there; give HF_TOKEN {_LAUNCH_KEYS}",
        "huggingface_hub",
        survivable=True,
    ),
    Cause(
        "anthropic_key",
        r"anthropic\.AuthenticationError|invalid x-api-key|litellm\.(?:exceptions\.)?AuthenticationError"
        r"|Missing Anthropic API Key|ANTHROPIC_API_KEY\b.{0,60}(?:not set|must be set|is required|is missing)",
        "the judge's interface was given no key, or does not accept it",
        f"give ANTHROPIC_API_KEY {_LAUNCH_KEYS}",
        "litellm",
        survivable=True,
    ),
    Cause(
        "module_missing",
        r"ModuleNotFoundError: No module named",
        "a Python package is missing in the environment that the job ran in",
        "add it to the lock and run --tags python_env; a command's own python must be the one in /opt/metalray/venv",
        "Python",
    ),
    Cause(
        "packages_do_not_fit",
        r"ImportError: cannot import name",
        "two packages of the environment do not fit together",
        "run --tags versions for the odd node; where none is odd, the lock is wrong: make it again with the versions that fit",
        "Python",
    ),
    Cause(
        "port_taken",
        r"EADDRINUSE|\[Errno 98\]|[Aa]ddress already in use",
        "another process holds a port that the job wants",
        "see with 'ss -tlnp' on the node of the log line: what an earlier run left is mostly it",
        "torch",
    ),
    Cause(
        "resources",
        r"No available node types can fulfill|cannot be scheduled|PlacementGroupSchedulingError|CPUs are needed, [\d.]+ are free"
        r"|workers are wanted, but the cluster has \d+ CPUs"
        r"|JOB_SUPERVISOR_ACTOR_(?:UNSCHEDULABLE|START_TIMEOUT)|WorkerGroupStartupTimeoutError",
        "the cluster cannot give the resources that the job asks for",
        "compare 'ray status' on the head with the request; a node that is away comes back with --tags ray",
        "Ray, the guide's issue 5",
    ),
    Cause(
        "loss",
        r"the loss did not fall",
        "training ran, but learned nothing",
        "train longer (training_smoke_epochs); if that does not help, a rank computes wrongly: compare versions and GPUs",
        "the smoke job",
    ),
    # From here on: what follows from something else, which the log does not always tell.
    Cause(
        "node_lost",
        r"^metalray: node .{1,200} (?:left the cluster|does not answer)|(?:its|the) node (?:has died|.{0,80}was terminated)"
        r"|NodeDiedError|Owner's node has crashed|node .{0,120}marked dead",
        "a node was lost in mid-run",
        "bring it back (see its console, 'journalctl -u metalray-worker -n 50' and dmesg on it, then --tags ray) and train again: "
        "the job goes on from its last checkpoint",
        "Ray",
        consequence=True,
    ),
    Cause(
        "killed",
        r"exitcode\s*: -9\b|Signals\.SIGKILL: 9|exit (?:code|status) (?:-9|137)\b|is killed by signal: Killed",
        "a process of the job was killed from outside",
        "mostly the kernel, for its memory: look for 'Killed process' in dmesg on the node of the log line; use fewer workers a "
        "node or smaller buffers",
        "the kernel",
        consequence=True,
    ),
    Cause(
        "gloo_connect",
        r"connectFullMesh|[Gg]loo.{0,200}(?:Connection refused|Unable to find (?:address|interface)|[Tt]imed out connecting)"
        r"|Unable to find address for: ",
        "the nodes cannot reach each other through the interface that Gloo uses",
        "run --tags network_env,firewall,ray: GLOO_SOCKET_IFNAME must name the cluster's interface on each node, and Ray must be "
        "started after it was set",
        "the guide's issue 2, verl-project/verl#967",
        consequence=True,
    ),
    Cause(
        "nccl_network",
        r"Bootstrap : no socket interface found|NCCL WARN.{0,200}(?:No route to host|Connection refused|Connection timed out)"
        r"|NCCL WARN NET/(?:IB|Socket).{0,200}(?:error|failed)|transport retry counter exceeded"
        r"|ncclInvalidUsage.{0,200}interface",
        "NCCL cannot reach the other nodes through the network that it uses",
        "run playbooks/network_report.yml, then --tags network_env,firewall,ray: NCCL_SOCKET_IFNAME must name the cluster's "
        "interface on each node; on Ethernet alone network_env_profile turns InfiniBand off",
        "the guide's issue 4, verl-project/verl#726",
        consequence=True,
    ),
    Cause(
        "nccl_timeout",
        r"Watchdog caught collective operation timeout|NCCL.{0,80}[Tt]imeout|ncclRemoteError|ncclSystemError|NCCL error",
        "a collective operation between GPUs did not end",
        "mostly another rank failed or hung before: the first error of the log tells more than the time-out; if there is none, "
        "prove the network (--tags network_env -e network_env_prove=always)",
        "verl-project/verl#2995",
        consequence=True,
    ),
    Cause(
        "worker_died",
        r"ActorDiedError|ActorUnavailableError|WorkerCrashedError|[Tt]he actor (?:is dead|died)|DataLoader worker.{0,80}killed"
        r"|(?:[Gg]loo|ProcessGroup|pair\.cc).{0,200}Connection (?:reset|closed) by peer|Did the remote server shutdown or crash",
        "a worker process ended, and no node was lost with it",
        "its own last words come before in the log; where it has none, look at dmesg on its node: the kernel may have killed it",
        "Ray, torch",
        consequence=True,
    ),
)

# What a healthy run may say as well: notices, warnings, another attempt, and Ray's list of what may kill a worker.
_HARMLESS = re.compile(
    r"(?:^|[\s\[(|-])(?:INFO|DEBUG|WARNING|(?<!NCCL )WARN)(?:$|[\s\]):|-])|\w*[Ww]arning:|\b[Rr]etrying\b"
    r"|[Pp]otential root causes|[Cc]ommon causes include"
    r"|Exception ignored|\[[^\]]* [WI] \d+ \d+\]|\[[WI]\d{3,4} "
)
_TRACEBACK = "Traceback (most recent call last)"
_CHAINED = re.compile(r"direct cause of the following exception|During handling of the above exception")
_PREFIX = r"^(?:\([^()]*\)\s*|\[[^\[\]]*\]:?\s*)*"
_ERROR = re.compile(
    _PREFIX
    + r"(?:\w[\w.]*(?:Error|Exception|Exit|Interrupt)\b(?:\([\w.]*\))?(?::|\s*$)|terminate called after|what\(\):|.{0,60}\bERROR\b)"
)
# Errors that only say that there was one.
_EMPTY = re.compile(
    r"CalledProcessError|ChildFailedError|WorkerGroupError|TrainingFailedError|ControllerError|SystemExit|RayTaskError|ProcessRaisedException"
    r"|ProcessExitedException|Engine core initialization failed|EngineDeadError"
)
_NO_TRACEBACK_LINES = 30
# What a job printed that many lines after a traceback was not its last word.
_SURVIVED_LINES = 60
_EVIDENCE_LENGTH = 300
_COMPILED = tuple((re.compile(cause.pattern), cause) for cause in CAUSES)


@dataclass(frozen=True)
class Finding:
    """The cause of a failure, and the line of the log that shows it."""

    cause: Cause
    evidence: str


def classify(lines: Sequence[str], words: Iterable[str] = (), facts: Iterable[str] = ()) -> Finding | None:
    """Why a job failed, or None: a wrong answer is worse than none.

    ``lines`` are its log, ``words`` what the job and Ray say of its end, and ``facts`` what is known besides, in sentences.

    What killed a job is in its last error. Where that says nothing, the one before it counts; where it is the consequence of
    something, the whole log is searched for that. What a job may well have survived, hours before its end, is left out there.
    """
    whole = "\n".join(lines)
    telling = [line for line in lines if not _HARMLESS.search(line)]
    left, said = telling, [line for text in words for line in text.splitlines()]
    while True:
        begin = _last_error(left)
        last = [*left[begin:], *said]
        found = _first(last, whole, lambda cause: not cause.consequence) or _first(facts, whole, lambda _cause: True)
        if found:
            return found
        consequence = _first(last, whole, lambda cause: cause.consequence)
        if consequence:
            return _first(telling, whole, lambda cause: not (cause.consequence or cause.survivable)) or consequence
        if not begin or not any(_EMPTY.search(line) for line in last):
            return None
        left, said = left[:begin], []


def first_error(lines: Iterable[str]) -> str:
    """The first line of a log that tells of an error, without Ray's prefix."""
    for line in lines:
        if _ERROR.search(line) and not _HARMLESS.search(line) and not _EMPTY.search(line):
            return re.sub(_PREFIX, "", line).strip()[:_EVIDENCE_LENGTH]
    return ""


def _first(lines: Iterable[str], whole: str, among: Callable[[Cause], bool]) -> Finding | None:
    lines = list(lines)
    for expression, cause in _COMPILED:
        if among(cause) and not (cause.also and not re.search(cause.also, whole)):
            for line in lines:
                if expression.search(line):
                    return Finding(cause, re.sub(_PREFIX, "", line).strip()[:_EVIDENCE_LENGTH])
    return None


def _last_error(lines: Sequence[str]) -> int:
    """Where the last error begins: the last traceback with those that led to it, or the last lines."""
    starts = [number for number, line in enumerate(lines) if _TRACEBACK in line]
    plain = max(0, len(lines) - _NO_TRACEBACK_LINES)
    if not starts:
        return plain
    begin = starts.pop()
    end = next((number for number in range(begin, len(lines)) if _ERROR.search(lines[number])), begin)
    if len(lines) - end > _SURVIVED_LINES:
        return plain
    while starts and any(_CHAINED.search(line) for line in lines[max(0, begin - 2) : begin]):
        begin = starts.pop()
    return begin
