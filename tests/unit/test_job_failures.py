# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a job failed, told from its log.

``data/jobs`` has logs of real failures: Ray 2.60, torch 2.13 on CPUs, wandb. What needs GPUs, or services that are not here, is
quoted below as its program prints it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _job_failures as failures
from ansible_collections.metalray.cluster.plugins.module_utils._ray import clean_lines

LOGS = Path(__file__).parent / "data" / "jobs"
RAY_SAYS = "Job entrypoint command failed with exit code 1"
WATCHDOG = (
    "[rank0]:[E602 11:18:52.489301002 ProcessGroupNCCL.cpp:684] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466, NumelOut=466, Timeout(ms)=600000) ran for 600004 milliseconds"
)
LAUNCHER = """\
Traceback (most recent call last):
  File "/mnt/shared/src/trainer/training_scripts/launch_training.py", line 300, in main
subprocess.CalledProcessError: Command '['bash', 'train.sh']' returned non-zero exit status 1."""
JUDGE = """\
Traceback (most recent call last):
  File "judge.py", line 9, in score
litellm.exceptions.AuthenticationError: AnthropicException - {"type":"error","error":{"message":"invalid x-api-key"}}"""


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


def told(text: str, *words: str, facts: tuple[str, ...] = ()) -> str | None:
    finding = failures.classify(clean_lines(text), [*words, RAY_SAYS], facts)
    return finding.cause.name if finding else None


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_real_failures(path: Path) -> None:
    name = told(log(path.stem))
    assert name and path.stem.startswith(name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("out_of_gpu_memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        ("out_of_gpu_memory", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        (
            "out_of_gpu_memory",
            "ValueError: Free memory on device (11.2/79.1 GiB) on startup is less than desired GPU memory utilization (0.85)",
        ),
        (
            "out_of_gpu_memory",
            "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be stored in",
        ),
        ("gpu_fault", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
        ("out_of_memory", "Memory cgroup out of memory: Killed process 4711 (ray::train) total-vm:1kB"),
        ("shared_memory", "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
         "dataloader's workers are out of shared memory."),
        ("no_space", "OSError: [Errno 28] No space left on device: 'checkpoints/x/global_step_5'"),
        ("no_space", "OSError: [Errno 122] Disk quota exceeded"),
        ("aimv2", "ValueError: 'aimv2' is already used by a Transformers config, pick another name."),
        (
            "compiled_for_another_torch",
            "ImportError: /opt/metalray/venv/lib/python3.12/site-packages/flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so: "
            "undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationESs",
        ),
        ("not_enough_gpus", "ValueError: Total available GPUs 8 is less than total desired GPUs 16"),
        ("not_enough_gpus", "SmokeError: 16 GPUs are needed, 8 are free: another job holds the rest"),
        (
            "local_cluster",
            "AssertionError: instance_id: 4f:xWorkerDict:2:0 has 0 actors, but vllm_dp_size: 2 * vllm_tp_size: 8 = 16 is expected.",
        ),
        ("local_cluster", "AssertionError: actor_names is empty"),
        ("register_center", "AssertionError: failed to get register_center_actor: 5cWorkerDict_register_center in []"),
        (
            "docker_address_pools",
            "docker.errors.APIError: 500 Server Error: all predefined address pools have been fully subnetted",
        ),
        ("docker_access", "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"),
        ("wandb_key", "OSError: WANDB_API_KEY environment variable must be set"),
        ("wandb_key", "wandb.errors.errors.AuthenticationError: The API key you provided is either invalid or missing."),
        (
            "hugging_face_token",
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url https://huggingface.co/x",
        ),
        ("anthropic_key", 'anthropic.AuthenticationError: Error code: 401 - {"message": "invalid x-api-key"}'),
        ("packages_do_not_fit", "ImportError: cannot import name 'Qwen3Config' from 'transformers' (/opt/x/__init__.py)"),
        ("port_taken", "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
         "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"),
        ("resources", "Error: No available node types can fulfill resource request {'GPU': 4.0}."),
        ("node_lost", "ray.exceptions.ActorDiedError: The actor died because its node has died. Node Id: 5cb8"),
        ("killed", "torch.distributed.elastic: exitcode  : -9 (pid: 4711)"),
        ("nccl_network", "node1:1:1 [0] NCCL WARN Bootstrap : no socket interface found"),
        ("nccl_network", "node1:1:1 [0] NCCL WARN socketProgress: Connection refused by 10.0.0.12<40213>"),
        ("nccl_network", "node1:1:1 [3] NCCL WARN NET/IB : Got completion with error 12, opcode 0, len 0, vendor err 129"),
        ("nccl_timeout", WATCHDOG),
        ("nccl_timeout", "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited"),
        ("loss", "SmokeError: the loss did not fall: 0.1 in the first epoch, 0.1 in the last of 10"),
    ],
)  # fmt: skip
def test_quoted_failures(name: str, line: str) -> None:
    text = (
        f"step 1\nTraceback (most recent call last):\n  File 'x.py', line 1\n(WorkerDict pid=7, ip=10.0.0.12) {line}\n"
    )
    assert told(text) == name
    finding = failures.classify(clean_lines(text))
    assert finding and line.strip().endswith(finding.evidence)


def test_a_job_s_own_words_and_ray_s_count() -> None:
    assert told("training", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT") == "resources"
    assert told("training", "RuntimeEnvSetupError: pip failed") == "runtime_env"


class TestOrder:
    """Of several signs in one log."""

    def test_the_first_error_counts_and_not_the_time_out(self) -> None:
        first = (
            "Traceback (most recent call last):\n  File 'x'\n(W pid=3) torch.OutOfMemoryError: CUDA out of memory.\n"
        )
        text = f"{first}{'step 2' + chr(10)}{WATCHDOG}\nwhat():  {WATCHDOG}\n"
        assert told(text) == "out_of_gpu_memory"
        assert told(text.replace("CUDA out of memory.", "?").replace("OutOfMemory", "Some")) == "nccl_timeout"
        assert failures.first_error(clean_lines(text)) == "torch.OutOfMemoryError: CUDA out of memory."

    def test_a_launcher_that_only_says_that_its_child_failed(self) -> None:
        assert told(f"{log('too_many_open_files')}\n{LAUNCHER}") == "too_many_open_files"
        assert told(f"{log('wandb_key')}\n{LAUNCHER}") == "wandb_key"
        assert told(LAUNCHER) is None

    def test_a_lost_node_is_behind_what_the_others_say(self) -> None:
        lost = ("metalray: node node3 (10.0.0.13) left the cluster 1:02 after the job began: health check failed",)
        assert told(log("worker_died_peer"), facts=lost) == "node_lost"
        assert told(WATCHDOG, facts=lost) == "node_lost"
        assert told("step 3", facts=lost) == "node_lost"
        # But not behind what has a cause of its own.
        assert told(log("too_many_open_files"), facts=lost) == "too_many_open_files"

    def test_too_few_gpus_because_it_asked_a_cluster_of_its_own(self) -> None:
        started = "2026-11-25 10:00:00,1 INFO worker.py:1843 -- Started a local Ray instance.\n"
        few = "ValueError: Total available GPUs 8 is less than total desired GPUs 16"
        assert told(started + few) == "local_cluster"
        assert told(few) == "not_enough_gpus"
        # On its own it is no fault.
        assert told(started + "ValueError: 3") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step 1\nTraceback (most recent call last):\n  File 'x.py', line 3\nValueError: 3",
        "Traceback (most recent call last):\n  File 'x.py', line 3\nKeyError: 'node'",
        "node 1 is fine\nlater something died of boredom",
        "bash: line 1: train: command not found",
        # Survived long ago.
        JUDGE + "\nstep 2" * 99 + "\nTraceback (most recent call last):\n  File 'x'\nValueError: 3",
        "OSError: [Errno 24] Too many open files" + "\nstep 2" * 99 + "\nAssertionError: batch",
        # Warnings, notices and further attempts.
        "(raylet) [2026-11-25 10:00:00,1 W 4 4] file_system_monitor.cc:116: /tmp/ray is over 95% full, No space left on device",
        "UserWarning: HF_TOKEN is not set, requests are unauthenticated\nValueError: 3",
        "WARNING: Too many open files, closing some\nValueError: 3",
        "Connection refused by gloo, retrying in 5 s\nValueError: 3",
        "Exception ignored in: <function x>\nValueError: 3",
    ],
)
def test_no_cause_is_better_than_a_wrong_one(text: str) -> None:
    assert told(text) is None


def test_what_may_have_killed_a_worker_did_not() -> None:
    """Ray lists the OOM killer first among what may be behind any worker's end."""
    assert "OOM killer" in log("worker_died")
    assert told(log("worker_died")) == "worker_died"


def test_a_key_that_only_the_judge_lacked_does_not_explain_a_time_out() -> None:
    assert told(f"{JUDGE}\n{WATCHDOG}") == "anthropic_key"
    assert told(JUDGE + "\nstep 2" * 99 + f"\n{WATCHDOG}") == "nccl_timeout"


def test_each_has_all_that_is_shown() -> None:
    for cause in failures.CAUSES:
        assert cause.summary and cause.mend and cause.source
        assert not cause.summary.endswith(".") and not cause.mend.endswith(".")
    # What is called the same means the same.
    assert len({(cause.name, cause.mend) for cause in failures.CAUSES}) == len(
        {cause.name for cause in failures.CAUSES}
    )


def test_the_tags_playbooks_and_variables_that_mend_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    known = "".join(path.read_text(encoding="utf-8") for path in root.glob("roles/*/meta/argument_specs.yml"))
    stages = "".join(path.read_text(encoding="utf-8") for path in root.glob("playbooks/**/*.yml"))
    for cause in failures.CAUSES:
        for tags in failures.re.findall(r"--tags ([a-z_,]+)", cause.mend):
            assert all(f"tags: [{tag}]" in stages for tag in tags.strip(",").split(",")), cause.name
        for name in failures.re.findall(r"\b(?:training|limits|network_env|ray|docker)_[a-z_]+\b", cause.mend):
            assert f"      {name}:\n" in known or name in ("ray_wait_register_center_timeout", "training_secrets"), (
                cause.name,
                name,
            )
        for playbook in failures.re.findall(r"playbooks/\w+\.yml", cause.mend):
            assert (root / playbook).exists(), cause.name


def test_a_long_log_is_searched_without_running_wild() -> None:
    lines = [
        f"(WorkerDict pid={number}) step:{number} - actor/loss:0.1 - gloo NCCL node " + "x, " * 100
        for number in range(9000)
    ]
    assert failures.classify([*lines, WATCHDOG]) is not None
