# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dataset of terminal-bench-rl: its tasks made one by one until all are whole, then the Parquet files.

Internal to metalray.cluster: not a public interface.

The repository's own scripts do the work. Their exit status tells nothing (it is 0 after failures), a task that was begun is
never mended by them, and tasks that are made at the same time in one directory trip over each other. So each task is made in
a directory of its own, judged by its files, and moved among the others as a whole. Whatever is interrupted, the next run goes
on from what is there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ._files import sync_directory, sync_file_system

CONVERTER = "dataset/convert_dataset_to_tasks.py"
PARQUET = "dataset/tasks_to_parquet_converter.py"
RECORD = "data/.metalray-dataset.json"
OUTPUTS = {"data/train.parquet": "tasks", "data/val.parquet": "test_tasks"}
INFO = "data/tasks_info.json"
COLUMNS = {"prompt", "task_name", "task_path", "instruction", "data_source", "metadata", "extra_info"}
# What the trainer reads of each task, whichever row it was made from.
PARTS = ("task.yaml", "docker-compose.yaml", "Dockerfile", "tests/test_outputs.py", "test_weights.json")
_WORK = ".cache/metalray"  # in the source, on the file system of the tasks, and ignored by its git
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NEEDED = ("task_id", "prompt", "dockerfile", "test_functions", "test_weights")
# The converter calls 'uv run tb'. uv would bring the environment to the repository's own lock, whose numpy and transformers
# vllm does not work with, or make a second one on the share. 'tb' of the environment is all that is meant.
_UV = '#!/bin/sh\n[ "$1" = run ] && shift && exec "$@"\necho "only uv run is wanted here" >&2\nexit 2\n'
_LOOK = """
import json, sys
import pyarrow.parquet as parquet
told = {}
for path in sys.argv[1:]:
    names = parquet.read_schema(path).names
    tasks = parquet.read_table(path, columns=["task_name"]).column(0).to_pylist() if "task_name" in names else []
    told[path] = {"columns": names, "tasks": tasks}
print(json.dumps(told))
"""


class DatasetError(Exception):
    """The dataset cannot be made; the text says why, and how to mend it."""


@dataclass(frozen=True)
class Settings:
    """``seconds`` is how long a round begins new tasks, ``timeout`` how long one task or the Parquet files may take."""

    source: Path
    venv: Path
    csv: Path
    workers: int = 4
    attempts: int = 3
    seconds: float = 10
    timeout: float = 300


@dataclass
class State:
    """What is on the disk: ``whole`` tasks of rows, ``broken`` ones with what they lack, ``others`` that no row names."""

    whole: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Round:
    """What one round did. ``unmade`` are the tasks that no attempt made whole, with the last reason."""

    finished: bool
    changed: bool
    done: int
    total: int
    made: int = 0
    removed: int = 0
    unmade: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    msg: str = ""


# --- What is wanted, and what is there -------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows by the id of their task, read as the converter reads them."""
    try:
        with path.open(encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except FileNotFoundError:
        raise DatasetError(
            f"there is no {path}. Run --tags python_env first, or correct training_dataset_csv"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 1):
        empty = [name for name in _NEEDED if not str(row.get(name) or "").strip()]
        task = row.get("task_id") or ""
        if empty:
            raise DatasetError(f"{path}: row {number} ('{task}') has no {', '.join(empty)}. Complete it or take it out")
        if not _ID.fullmatch(task) or task in found:
            why = "twice" if task in found else "none that a directory may have"
            raise DatasetError(f"{path}: row {number} has the id '{task}', which is {why}. Correct it")
        for name in extra_files(row):
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise DatasetError(
                    f"{path}: row {number} ('{task}') has a file '{name}' outside of its task. Correct it"
                )
        found[task] = row
    if not found:
        raise DatasetError(f"{path} has no rows")
    return found


def extra_files(row: Mapping[str, str]) -> list[str]:
    try:
        files = json.loads(row.get("additional_files") or "{}")
    except ValueError:
        return []
    return list(files) if isinstance(files, dict) else []


def defect(task: Path, extra: Iterable[str] = ()) -> str:
    """What a whole task has and this one lacks; empty for a whole one."""
    for name in (*PARTS, *extra):
        path = task / name
        if not path.is_file():
            return f"has no {name}"
        if name in PARTS and not path.stat().st_size:
            return f"has an empty {name}"
    try:
        weights = json.loads((task / "test_weights.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "has a test_weights.json that is no JSON"
    return "" if isinstance(weights, dict) and weights else "has a test_weights.json without weights"


def directories(path: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return {entry.name for entry in os.scandir(path) if entry.is_dir()}
    return set()


def survey(settings: Settings, rows: Mapping[str, Mapping[str, str]], record: Mapping[str, Any]) -> State:
    """Every directory of ``tasks`` judged by its files. One that was made from another text of its row is broken too."""
    state, tasks = State(), settings.source / "tasks"
    made_from = record.get("rows") or {}
    for name in directories(tasks):
        if name not in rows:
            lack = defect(tasks / name)
            if lack:
                raise DatasetError(
                    f"{tasks / name} {lack}, and no row of {settings.csv.name} makes it anew. The trainer reads every "
                    "directory there: complete it or move it away"
                )
            state.others.add(name)
            continue
        lack = defect(tasks / name, extra_files(rows[name]))
        if not lack and made_from.get(name, row_hash(rows[name])) != row_hash(rows[name]):
            lack = "was made from an older row"
        if lack:
            state.broken[name] = lack
        else:
            state.whole.add(name)
    return state


def row_hash(row: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
        for chunk in iter(lambda: handle.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hash(*roots: Path) -> str:
    """Of the names and the content of all files below."""
    digest = hashlib.sha256()
    for root in roots:
        for directory, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                path = Path(directory, name)
                digest.update(
                    f"{path.relative_to(root.parent)}\0{file_hash(path)}\0".encode("utf-8", "surrogateescape")
                )
    return digest.hexdigest()


def commit(source: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def inputs(settings: Settings) -> dict[str, str]:
    """What the Parquet files depend on."""
    return {
        "csv": file_hash(settings.csv),
        "commit": commit(settings.source),
        "tasks": tree_hash(settings.source / "tasks", settings.source / "test_tasks"),
    }


def read_record(source: Path) -> dict[str, Any]:
    try:
        record = json.loads((source / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(source: Path, record: Mapping[str, Any]) -> None:
    path = source / RECORD
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(record, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, path)
    sync_directory(str(path.parent))


def is_finished(settings: Settings, record: Mapping[str, Any]) -> bool:
    outputs = record.get("outputs") or {}
    return (
        set(outputs) == {*OUTPUTS, INFO}
        and all(file_hash(settings.source / name) == digest for name, digest in outputs.items())
        and record.get("inputs") == inputs(settings)
    )


# --- Doing it ----------------------------------------------------------------------------------------------------------


def environment(settings: Settings) -> dict[str, str]:
    """For the repository's scripts: the environment's programs first, nothing synchronised, fetched or asked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "UV_", "ANSIBLE_"))}
    return {
        **kept,
        "PATH": f"{settings.source / _WORK}/bin:{settings.venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": str(settings.venv),
        "UV_PROJECT_ENVIRONMENT": str(settings.venv),
        "UV_NO_SYNC": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": str(settings.source),
        "PYTHONUTF8": "1",
    }


def run(settings: Settings, command: list[str]) -> str:
    """The last words of a script of the repository, whatever its status: both of them lie. Killed with its children in time."""
    with subprocess.Popen(
        command,
        cwd=settings.source,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _none = process.communicate(timeout=settings.timeout)
        except subprocess.TimeoutExpired:
            said = f"it had not ended after {settings.timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return said


def last_words(said: str) -> str:
    """The line that tells most: the last with an error in it, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"(?:Error|Exception|❌)", line) and "Failed:" not in line]
    line = (told or lines or ["it printed nothing"])[-1]
    # The command in the middle is long; what became of it stands at the end.
    return line if len(line) <= 300 else f"{line[:80]} ... {line[-200:]}"


def prepare(settings: Settings) -> None:
    """What the scripts need before the first task: no question asked, no uv in the way."""
    if not shutil.which("tb", path=environment(settings)["PATH"]):
        raise DatasetError(
            f"there is no tb, which makes the tasks, in {settings.venv}/bin or /usr/local/bin: the environment lacks the package "
            "terminal-bench (PyPI's needs Python 3.13, the repository's own fork of it 3.12). Build it with the profile "
            "terminal_bench_rl (--tags python_env), or link a tb from elsewhere to /usr/local/bin"
        )
    for script in (CONVERTER, PARQUET):
        if not (settings.source / script).is_file():
            raise DatasetError(
                f"there is no {settings.source / script}. Run --tags python_env, which clones the source"
            )
    answered = Path.home() / ".cache" / "terminal-bench" / "wizard.json"
    try:
        said = json.loads(answered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    if not isinstance(said, dict) or not said.get("skip_terminal_bench_overview"):
        answered.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**(said if isinstance(said, dict) else {}), "skip_terminal_bench_overview": True})
        answered.write_text(text, encoding="utf-8")
    uv = settings.source / _WORK / "bin" / "uv"
    uv.parent.mkdir(parents=True, exist_ok=True)
    if not uv.exists() or uv.read_text(encoding="utf-8") != _UV:
        uv.write_text(_UV, encoding="utf-8")
    uv.chmod(0o755)
    (settings.source / "tasks").mkdir(exist_ok=True)


@contextlib.contextmanager
def alone(settings: Settings) -> Generator[None, None, None]:
    """One preparation at a time, also where a second controller starts one."""
    work = settings.source / _WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w", encoding="ascii") as handle:
        until = time.monotonic() + settings.timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DatasetError(
                        f"another run has prepared this dataset for {settings.timeout:.0f} s. Wait for it, or see what holds "
                        f"{work / 'lock'} (fuser)"
                    ) from None
                time.sleep(0.2)
        yield


def make_task(settings: Settings, name: str, row: Mapping[str, str], one_by_one: Lock) -> str:
    """Make one task and move it to the others; why not, or nothing.

    The converter gives tb 30 seconds, which a busy machine does not keep for many at once: a second attempt has it for itself.
    """
    stage, target = settings.source / _WORK / "tasks" / name, settings.source / "tasks" / name
    why = _attempt(settings, name, row, stage)
    for _again in range(settings.attempts - 1):
        if why:
            with one_by_one:
                why = _attempt(settings, name, row, stage)
    if not why:
        # On the disk as a whole, under its name only then.
        sync_file_system(str(stage))
        os.rename(stage / "made" / name, target)
    shutil.rmtree(stage, ignore_errors=True)
    return why


def _attempt(settings: Settings, name: str, row: Mapping[str, str], stage: Path) -> str:
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    with (stage / "row.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(row))
        writer.writeheader()
        writer.writerow(row)
    python = str(settings.venv / "bin" / "python")
    options = ["--csv-path", str(stage / "row.csv"), "--output-dir", str(stage / "made"), "--workers", "1"]
    said = run(settings, [python, CONVERTER, *options])
    lack = defect(stage / "made" / name, extra_files(row))
    return f"{lack}: {last_words(said)}" if lack else ""


def make_tasks(
    settings: Settings, rows: Mapping[str, Mapping[str, str]], names: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Make tasks for as long as a round lasts; those made, and those that no attempt made with the reason."""
    made: list[str] = []
    failed: dict[str, str] = {}
    until = time.monotonic() + settings.seconds
    running: dict[Future[str], str] = {}
    left = list(reversed(names))
    one_by_one = Lock()
    with ThreadPoolExecutor(settings.workers) as pool:
        while running or (left and (not made or time.monotonic() < until)):
            while left and len(running) < settings.workers and (not made or time.monotonic() < until):
                name = left.pop()
                running[pool.submit(make_task, settings, name, rows[name], one_by_one)] = name
            ended, _rest = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                name, why = running.pop(future), future.result()
                if why:
                    failed[name] = why
                else:
                    made.append(name)
            if len(failed) >= settings.workers and not made:
                break  # What fails for so many fails for all.
    return made, failed


def make_parquet(settings: Settings, state: State) -> dict[str, int]:
    """The Parquet files, judged by their rows and columns; the rows of each."""
    for name in (*OUTPUTS, INFO):
        with contextlib.suppress(FileNotFoundError):
            (settings.source / name).unlink()
    python = str(settings.venv / "bin" / "python")
    said = run(settings, [python, PARQUET])
    for name in (*OUTPUTS, INFO):
        if not (settings.source / name).is_file():
            raise DatasetError(f"{PARQUET} made no {name}: {last_words(said)}")
    looked = run(settings, [python, "-c", _LOOK, *OUTPUTS])
    try:
        told = json.loads(looked)
    except ValueError:
        raise DatasetError(f"the Parquet files cannot be read: {last_words(looked)}") from None
    rows = {}
    for name, folder in OUTPUTS.items():
        wanted = state.whole | state.others if folder == "tasks" else directories(settings.source / folder)
        lacking = sorted(COLUMNS - set(told[name]["columns"]))
        if lacking:
            raise DatasetError(
                f"{name} lacks the columns {', '.join(lacking)}: the source and this collection do not fit"
            )
        if sorted(told[name]["tasks"]) != sorted(wanted) or not wanted:
            raise DatasetError(
                f"{name} has {len(told[name]['tasks'])} rows for the {len(wanted)} tasks in {folder}: {last_words(said)}"
            )
        rows[name] = len(wanted)
    return rows


def one_round(settings: Settings, skip: Iterable[str] = (), check_mode: bool = False) -> Round:
    """Go on for a round: tasks first, the Parquet files once all are whole. ``skip`` are those that failed in this run."""
    rows = read_rows(settings.csv)
    record = read_record(settings.source)
    state = survey(settings, rows, record)
    total, skip = len(rows), set(skip)
    if len(state.whole) == total and is_finished(settings, record):
        return Round(True, False, total, total, rows=record.get("counts") or {})
    missing = sorted(set(rows) - state.whole)
    if check_mode:
        tasks = f"make {len(missing)} of {total} tasks and " if missing else ""
        return Round(True, True, len(state.whole), total, msg=f"would {tasks}write {', '.join(OUTPUTS)}")
    prepare(settings)
    with alone(settings):
        for name in state.broken:
            # Out of the way in one step: an interrupted removal must not leave half a task.
            grave = settings.source / _WORK / f"removed-{name}"
            shutil.rmtree(grave, ignore_errors=True)
            os.rename(settings.source / "tasks" / name, grave)
            shutil.rmtree(grave)
        made, failed = make_tasks(settings, rows, [name for name in missing if name not in skip])
        if made:
            known = {**(record.get("rows") or {}), **{name: row_hash(rows[name]) for name in made}}
            record = {**record, "rows": {name: known[name] for name in known if name in rows}}
            write_record(settings.source, record)
        done = total - len(missing) + len(made)
        changed = bool(made or state.broken)
        left = set(missing) - set(made) - set(failed) - skip
        all_failed_alike = len(failed) >= settings.workers and not made
        if left and not all_failed_alike:
            return Round(False, changed, done, total, len(made), len(state.broken), failed)
        if failed or skip:
            return Round(True, changed, done, total, len(made), len(state.broken), failed)
        state.whole |= set(made)
        counts = make_parquet(settings, state)
        outputs = {name: file_hash(settings.source / name) for name in (*OUTPUTS, INFO)}
        hashes = {name: row_hash(row) for name, row in rows.items()}
        sync_file_system(str(settings.source))
        write_record(
            settings.source,
            {"inputs": inputs(settings), "outputs": outputs, "counts": counts, "rows": hashes},
        )
    return Round(True, True, total, total, len(made), len(state.broken), rows=counts)


def failure(done: int, total: int, failed: Mapping[str, str], attempts: int) -> str:
    """One message for all tasks that could not be made."""
    shown = [f"{name} {why}" for name, why in sorted(failed.items())]
    listed = "\n".join(f"  - {line}" for line in shown[:10])
    more = f"\n  and {len(shown) - 10} more" if len(shown) > 10 else ""
    return (
        f"{done} of {total} tasks are whole; of {len(failed)} no attempt of {attempts} was (training_dataset_attempts):\n"
        f"{listed}{more}\nMend what they say and run --tags dataset again: it goes on from what is there"
    )
