# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest


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
