# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

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
