# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Not in every lock: ansible has awx.awx up to release 13.
_NEEDS = {"test_awx.py": "ansible_collections.awx.awx", "test_execution_environment.py": "ansible_builder"}


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


collect_ignore = [name for name, package in _NEEDS.items() if not _there(package)]


def pytest_report_header() -> list[str]:
    return [f"left out, {_NEEDS[name]} is not installed: {name}" for name in collect_ignore]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped counts as failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("no_skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips does not allow: {report.longrepr}"
    return report


@pytest.fixture
def run_module():
    """Run a module of the collection as Ansible would: a process of its own that reads its options and prints JSON."""

    def run(name: str, *, check: bool = False, diff: bool = True, **options: Any) -> dict[str, Any]:
        arguments = {"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check, "_ansible_diff": diff}}
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.metalray.cluster.plugins.modules.{name}"],
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            cwd=ROOT / "collections",
            check=False,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    return run
