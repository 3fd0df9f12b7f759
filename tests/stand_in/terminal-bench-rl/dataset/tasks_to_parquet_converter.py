# A stand-in: see README.md two directories above.
"""All of tasks/ and test_tasks/ to Parquet. Takes no arguments; paths are relative; a missing directory is status 0."""

import json
from pathlib import Path

import pandas
from src.tbench_rllm.load_tasks import load


def main() -> None:
    for folder in ("tasks", "test_tasks"):
        if not Path(folder).exists():
            print(f"Error: {folder} directory not found")
            return
    Path("data").mkdir(exist_ok=True)
    told = {}
    for folder, name in (("tasks", "train"), ("test_tasks", "val")):
        rows = load(Path(folder))
        pandas.DataFrame(rows).to_parquet(f"data/{name}.parquet", index=False)
        told.update({row["task_name"]: row["task_path"] for row in rows})
    Path("data/tasks_info.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
