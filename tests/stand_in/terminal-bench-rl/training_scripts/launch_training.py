# A stand-in: see README.md two directories above.
"""Launches a preset. --dry-run and --list print secrets; Docker is cleaned for everybody; the status is the training's."""

import argparse
import os
import subprocess
import sys
import threading

PRESETS = {
    "sandbox_2_nodes": {
        "PROJECT_NAME": "stand_in",
        "EXPERIMENT_NAME": "sandbox",
        "NNODES": "2",
        "SAVE_FREQ": "2",
        "WANDB_API_KEY": os.getenv("WANDB_API_KEY", ""),
    }
}


def clean() -> None:
    for what in ("container", "network"):
        subprocess.run(["docker", what, "prune", "-f"], capture_output=True, timeout=30, check=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", choices=PRESETS, nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--skip-upload", action="store_true")
    parser.add_argument("extra_args", nargs="*")
    options = parser.parse_args()
    if options.list or options.dry_run:
        print({**os.environ, **PRESETS})
        return
    if not options.config:
        parser.error("config is required unless using --list")
    if not os.getenv("WANDB_API_KEY"):
        raise OSError("WANDB_API_KEY is not set. Please set it in your environment.")
    if os.getenv("SKIP_INITIAL_CLEANUP", "").lower() not in ("true", "1", "yes"):
        clean()
    clean()
    threading.Thread(target=clean, daemon=True).start()
    os.environ.update(PRESETS[options.config])
    here = os.path.dirname(__file__)
    if subprocess.run([sys.executable, os.path.join(here, "patch_rllm_mappings.py")], check=False).returncode:
        sys.exit(1)
    script = os.path.join(here, "train_terminal_bench_grpo_rllm.sh")
    os.chmod(script, 0o755)
    sys.exit(subprocess.run([script, *options.extra_args], check=False).returncode)


if __name__ == "__main__":
    main()
