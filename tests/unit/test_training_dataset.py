# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the dataset over the stand-in repository with all its traps. Its Parquet files are JSON here: no pandas."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.action import training_dataset as action
from ansible_collections.metalray.cluster.plugins.module_utils import _training_dataset as dataset

pytestmark = pytest.mark.tools

STAND_IN = Path(__file__).resolve().parents[1] / "stand_in"
TASKS = {"count-lines", "find-file", "fix-permissions", "flaky-start", "sort-words", "with-files"}
_PANDAS = """
import json
class DataFrame:
    def __init__(self, rows): self.rows = rows
    def to_parquet(self, path, index): open(path, "w").write(json.dumps(self.rows))
"""
_PARQUET = """
import json
from types import SimpleNamespace
def read_schema(path): return SimpleNamespace(names=list(json.load(open(path))[0]))
def read_table(path, columns):
    values = [row[columns[0]] for row in json.load(open(path))]
    return SimpleNamespace(column=lambda number: SimpleNamespace(to_pylist=lambda: values))
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    source, venv = tmp_path / "source", tmp_path / "venv"
    shutil.copytree(STAND_IN / "terminal-bench-rl", source)
    (source / "pandas.py").write_text(_PANDAS)
    (source / "pyarrow").mkdir()
    (source / "pyarrow/__init__.py").touch()
    (source / "pyarrow/parquet.py").write_text(_PARQUET)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    shutil.copy(STAND_IN / "bin/tb", venv / "bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return dataset.Settings(source, venv, source / "dataset/latest_verified.csv", workers=4, seconds=30, timeout=60)


def rewrite(path: Path, change) -> None:
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    rows = change(rows)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def times(source: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in source.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_all_of_it_in_one_round_although_the_scripts_race_ask_and_lie(settings):
    told = dataset.one_round(settings)
    assert told.finished and told.changed and not told.unmade
    assert told.rows == {"data/train.parquet": 6, "data/val.parquet": 1}
    assert dataset.directories(settings.source / "tasks") == TASKS
    assert (settings.source / "tasks/with-files/data/words.txt").read_text() == "a\nb\n"
    assert "count-lines" in (settings.source / "tasks/count-lines/Dockerfile").read_text()


def test_the_second_time_is_one_look(settings, monkeypatch):
    dataset.one_round(settings)
    before = times(settings.source)
    monkeypatch.setattr(dataset, "run", lambda *_: pytest.fail("a script was run"))
    assert not dataset.one_round(settings).changed
    assert not dataset.one_round(settings, check_mode=True).changed
    assert times(settings.source) == before


def test_a_dry_run_says_how_much_is_left_and_makes_nothing(settings):
    before = times(settings.source)
    told = dataset.one_round(settings, check_mode=True)
    assert told.changed and "would make 6 of 6 tasks" in told.msg
    assert times(settings.source) == before and not (settings.source / "tasks").exists()


def test_in_short_rounds_it_goes_on_where_it_was(settings):
    short = dataset.Settings(**{**vars(settings), "seconds": 0, "workers": 1})
    counts = []
    while not (told := dataset.one_round(short)).finished:
        counts.append(told.done)
    assert counts == [1, 2, 3, 4, 5] and told.done == 6 and told.rows


@pytest.mark.parametrize("part", [*dataset.PARTS, "data/words.txt"])
def test_a_task_that_lacks_something_is_made_again(settings, part):
    dataset.one_round(settings)
    task = settings.source / "tasks/with-files"
    (task / part).unlink()
    told = dataset.one_round(settings)
    assert (told.made, told.removed, told.finished) == (1, 1, True)
    assert (task / part).read_text()


def test_a_task_of_an_older_row_is_made_again_and_the_others_are_not(settings):
    dataset.one_round(settings)
    rewrite(
        settings.csv, lambda rows: [{**row, "prompt": row["prompt"].replace("find-file", "find it")} for row in rows]
    )
    told = dataset.one_round(settings)
    assert (told.made, told.removed) == (1, 1)
    assert "find it" in (settings.source / "data/train.parquet").read_text()


def test_a_lost_or_torn_output_is_written_again(settings):
    dataset.one_round(settings)
    (settings.source / "data/val.parquet").write_text("[]")
    told = dataset.one_round(settings)
    assert told.changed and told.made == 0 and told.rows["data/val.parquet"] == 1


def test_what_no_attempt_makes_is_named_with_its_reason_and_the_rest_is_kept(settings):
    rewrite(settings.csv, lambda rows: [*rows, {**rows[0], "task_id": "broken-one"}])
    told = dataset.one_round(settings)
    assert told.finished and told.done == 6 and not told.rows
    message = dataset.failure(told.done, told.total, told.unmade, 3)
    assert "6 of 7 tasks are whole" in message and "broken-one has no task.yaml" in message
    assert "this one is never made" in message
    assert dataset.directories(settings.source / "tasks") == TASKS


def test_a_stranger_s_task_counts_and_a_broken_one_of_them_is_refused(settings):
    dataset.one_round(settings)
    shutil.copytree(settings.source / "tasks/find-file", settings.source / "tasks/my-own")
    assert dataset.one_round(settings).rows["data/train.parquet"] == 7
    (settings.source / "tasks/my-own/task.yaml").unlink()
    with pytest.raises(dataset.DatasetError, match=r"my-own has no task\.yaml, and no row"):
        dataset.one_round(settings)
    assert (settings.source / "tasks/my-own/Dockerfile").exists()


def test_parquet_files_that_lack_rows_or_columns_are_refused(settings):
    script = settings.source / "src/tbench_rllm/load_tasks.py"
    text = script.read_text()
    script.write_text(text.replace("path for path in folder.iterdir()", "path for path in list(folder.iterdir())[:2]"))
    with pytest.raises(dataset.DatasetError, match=r"train\.parquet has 2 rows for the 6 tasks"):
        dataset.one_round(settings)
    script.write_text(text.replace('"extra_info"', '"extra"'))
    with pytest.raises(dataset.DatasetError, match="lacks the columns extra_info"):
        dataset.one_round(settings)
    script.write_text("raise SystemExit(0)")
    with pytest.raises(dataset.DatasetError, match=r"made no data/train\.parquet"):
        dataset.one_round(settings)


def test_a_failing_parquet_step_says_its_error(settings):
    (settings.source / "test_tasks/hello-world/test_weights.json").write_text("no json")
    with pytest.raises(dataset.DatasetError, match="JSONDecodeError"):
        dataset.one_round(settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": " "}, r"row 1 \('count-lines'\) has no prompt"),
        ({"task_id": "../up"}, "which is none that a directory may have"),
        ({"task_id": "find-file"}, "which is twice"),
        ({"additional_files": '{"../../x": ""}'}, "outside of its task"),
    ],
)
def test_a_wrong_row_is_refused_before_anything_is_made(settings, change, says):
    rewrite(settings.csv, lambda rows: [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(dataset.DatasetError, match=says):
        dataset.one_round(settings)
    assert not (settings.source / "tasks").exists()


def test_without_tb_it_says_where_it_could_be_had(settings):
    (settings.venv / "bin/tb").unlink()
    if shutil.which("tb", path="/usr/local/bin:/usr/bin:/bin"):
        pytest.skip("this machine has a tb")
    with pytest.raises(dataset.DatasetError, match=r"3\.13"):
        dataset.one_round(settings)


def test_what_is_killed_in_the_middle_leaves_whole_tasks_only_and_the_next_run_finishes(settings, run_module):
    options = {"source": str(settings.source), "venv": str(settings.venv), "workers": 2}
    command = [sys.executable, "-m", "ansible_collections.metalray.cluster.plugins.modules.training_dataset"]
    root = Path(__file__).resolve().parents[2] / "collections"
    process = subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode())
    process.stdin.close()
    while process.poll() is None and not dataset.directories(settings.source / "tasks"):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows = dataset.read_rows(settings.csv)
    assert not dataset.survey(settings, rows, {}).broken
    told = run_module("training_dataset", **options)
    assert told["finished"] and told["done"] == 6 and told["rows"]["data/train.parquet"] == 6
    assert not run_module("training_dataset", **options)["changed"]


def test_the_module_fails_with_what_cannot_be_made(settings, run_module):
    rewrite(settings.csv, lambda rows: [{**rows[0], "task_id": "broken-one"}])
    told = run_module("training_dataset", source=str(settings.source), venv=str(settings.venv), attempts=1)
    assert told["failed"] and "0 of 1 tasks are whole" in told["msg"] and "--tags dataset" in told["msg"]


class TestRounds:
    def plugin(self, monkeypatch, answers, **options):
        plugin = action.ActionModule.__new__(action.ActionModule)
        plugin._task = type("Task", (), {"args": options, "check_mode": False, "async_val": 0, "environment": []})()
        asked = []

        def execute(module_name, module_args, task_vars):
            asked.append(module_args.get("follow"))
            return answers.pop(0)

        plugin._execute_module = execute
        monkeypatch.setattr(action.RoundsAction.__mro__[1], "run", lambda *_args, **_options: {})
        said = []
        monkeypatch.setattr(
            "ansible_collections.metalray.cluster.plugins.plugin_utils._rounds.Display.display",
            lambda _s, text: said.append(text),
        )
        plugin._reconnect = lambda: None
        return plugin, asked, said

    def test_the_rounds_say_how_far_they_are_and_remember_what_failed(self, monkeypatch):
        answers = [
            {"changed": True, "finished": False, "done": 2, "total": 5, "unmade": {"b": "has no task.yaml: x"}},
            {"unreachable": True, "msg": "gone"},
            {"changed": False, "finished": True, "done": 4, "total": 5},
        ]
        monkeypatch.setattr("time.sleep", lambda _seconds: None)
        plugin, asked, said = self.plugin(monkeypatch, answers)
        told = plugin.run(None, {"inventory_hostname": "gpu1"})
        assert asked == [None, {"skip": ["b"]}, {"skip": ["b"]}]
        assert said[0] == "[gpu1] dataset: 2 of 5 tasks, 1 failed" and "out of reach" in said[1]
        assert told["failed"] and told["changed"] and "b has no task.yaml: x" in told["msg"]
