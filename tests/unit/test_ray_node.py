# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._ray_supervisor import fingerprint


@pytest.mark.parametrize("lacking", ["environment", "cluster.env"])
def test_without_what_a_start_depends_on_nothing_is_written(run_module, tmp_path, lacking):
    unit, depends = tmp_path / "metalray-worker.service", [tmp_path / "environment", tmp_path / "cluster.env"]
    for path in depends:
        if path.name != lacking:
            path.touch()
    result = run_module(
        "ray_node",
        unit=unit.name,
        files=[{"path": str(unit), "content": "[Service]\n"}],
        depends=[str(unit), *map(str, depends)],
    )
    assert result["failed"] and f"cannot run without {tmp_path / lacking}." in result["msg"]
    assert "--tags python_env,network_env" in result["msg"]
    assert not unit.exists()


@pytest.fixture
def start(run_module, tmp_path, monkeypatch):
    """The module over a systemctl whose first starts fail: what it returned, and how often a start was tried."""

    def start(failures: int, **options):
        tried = tmp_path / "tried"
        commands = {
            "systemctl": f"""
                case $1 in
                  is-active) echo inactive; exit 3 ;;
                  restart) echo >>{tried}; [ "$(wc -l <{tried})" -gt {failures} ] ;;
                esac""",
            # As systemd tells it for the unit, and what the unit's own processes wrote.
            "journalctl": """case "$*" in
                  *_SYSTEMD_UNIT=metalray-worker.service*)
                    printf '%s\\n' 'Traceback (most recent call last):' '  File "ray.py"' 'Exception: no head'
                    ;;
                  *) echo Killing process 17 with signal SIGKILL ;;
                esac""",
        }
        for name, text in commands.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        unit = tmp_path / "metalray-worker.service"
        files = [{"path": str(unit), "content": "[Service]\n"}]
        result = run_module("ray_node", unit=unit.name, files=files, depends=[str(unit)], **options)
        return result, len(tried.read_text().splitlines())

    return start


@pytest.mark.parametrize(("failures", "attempts"), [(0, 1), (1, 2)])
def test_a_start_is_tried_a_second_time(start, failures, attempts):
    result, tried = start(failures)
    assert result["started"] and not result.get("failed") and tried == attempts


def test_a_start_that_fails_again_is_told_with_its_last_words(start):
    result, tried = start(9)
    assert result["failed"] and tried == 2
    assert "did not start" in result["msg"] and "Exception: no head" in result["msg"]
    assert not any(word in result["msg"] for word in ("Killing", "Traceback", "ray.py"))
    assert start(9, attempts=1)[1] == 3


class TestRunningJobs:
    """A unit that runs, started with what ``state`` remembers."""

    @pytest.fixture
    def node(self, run_module, tmp_path, monkeypatch):
        orders = tmp_path / "orders"
        systemctl = tmp_path / "bin" / "systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(
            f'#!/bin/sh\necho "$1" >>{orders}\ncase $1 in is-active) echo active ;; is-enabled) echo enabled ;; esac\n'
        )
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        unit, other, state = (tmp_path / name for name in ("unit", "other", "state"))
        unit.write_text("old\n")
        state.write_text(fingerprint([str(unit)]))

        def node(content, **options):
            files = [{"path": str(unit), "content": content}, {"path": str(other), "content": content}]
            orders.write_text("")
            result = run_module(
                "ray_node", unit="u.service", files=files, depends=[str(unit)], state_path=str(state), **options
            )
            return result, unit.read_text(), "restart" in orders.read_text().splitlines()

        return node

    @pytest.mark.parametrize("check", [False, True])
    def test_a_restart_that_would_end_one_is_refused_before_anything_is_written(self, node, tmp_path, check):
        result, text, restarted = node("new\n", running_jobs=["smoke-1", "smoke-2"], check=check)
        assert result["failed"] and "smoke-1, smoke-2" in result["msg"] and "ray_restart_running_jobs" in result["msg"]
        assert text == "old\n" and not restarted and not (tmp_path / "other").exists()

    def test_it_is_refused_too_where_it_was_only_asked_for(self, node):
        result, _text, restarted = node("old\n", running_jobs=["smoke-1"], restart=True)
        assert result["failed"] and "a restart was asked for" in result["msg"] and not restarted

    def test_what_needs_no_restart_is_written_while_one_runs(self, node, tmp_path):
        result, _text, restarted = node("old\n", running_jobs=["smoke-1"])
        assert result["changed"] and not result["started"] and not restarted
        assert (tmp_path / "other").read_text() == "old\n"

    def test_without_one_it_is_restarted(self, node):
        result, text, restarted = node("new\n")
        assert result["started"] and text == "new\n" and restarted
