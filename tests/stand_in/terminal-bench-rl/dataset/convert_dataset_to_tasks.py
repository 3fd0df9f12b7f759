# A stand-in: see README.md two directories above.
"""Rows of a table to task directories. Status 0 whatever fails; a directory that is there is skipped."""

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def make(row: dict, output: Path) -> str:
    task = output / row["task_id"]
    if task.exists():
        return "skipped"
    command = ["uv", "run", "tb", "tasks", "create", row["task_id"], "--name", "A", "--email", "a@example.com"]
    command += ["--category", row["category"], "--difficulty", row["difficulty"], "--instruction", row["prompt"]]
    command += ["--no-interactive", "--tasks-dir", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    if done.returncode:
        print(f"❌ Error creating task {row['task_id']}: {done.stderr}")
        return "failed"
    (task / "Dockerfile").write_text(row["dockerfile"])
    (task / "tests" / "test_outputs.py").write_text(row["test_functions"])
    (task / "test_weights.json").write_text(row["test_weights"])
    for name, content in json.loads(row["additional_files"] or "{}").items():
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        (task / name).write_text(content)
    return "created"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv-path", type=Path, default=Path("dataset/latest_verified.csv"))
    parser.add_argument("--output-dir", "-o", type=Path, default=Path("tasks"))
    parser.add_argument("--workers", "-w", type=int, default=4)
    options = parser.parse_args()
    with options.csv_path.open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows:
        sys.exit(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.workers) as pool:
        ends = list(pool.map(lambda row: make(row, options.output_dir.absolute()), rows))
    print(f"   ✅ Successfully created: {ends.count('created')}\n   ❌ Failed: {ends.count('failed')}")


if __name__ == "__main__":
    main()
