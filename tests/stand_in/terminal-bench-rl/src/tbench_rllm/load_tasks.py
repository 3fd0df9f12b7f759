# A stand-in: see README.md three directories above.
"""Reads every directory, and dies of the first that is not whole."""

import json
from pathlib import Path


def load(folder: Path) -> list[dict]:
    rows = []
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        instruction = (task / "task.yaml").read_text()
        weights = json.loads((task / "test_weights.json").read_text())
        for name in ("Dockerfile", "tests/test_outputs.py"):
            if not (task / name).read_text():
                raise ValueError(f"{name} is empty for task: {task.name}")
        rows.append(
            {
                "prompt": instruction,
                "task_name": task.name,
                "task_path": str(task),
                "instruction": instruction,
                "data_source": "terminal_bench",
                "metadata": json.dumps({"test_weights": weights}),
                "extra_info": json.dumps({"task_path": str(task)}),
            }
        )
    return rows
