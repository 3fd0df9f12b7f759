# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventories that users copy: what preflight would say of them before it has seen a node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._plan import (
    Settings,
    check_groups,
    check_variables,
    suggest_names,
)
from ansible_collections.metalray.cluster.plugins.plugin_utils._settings import read_specs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "nodes"), [("example_2x8_h100", 2), ("example_4x8_h100", 4), ("sandbox", 3)])
def test_an_inventory_makes_a_cluster_and_every_variable_is_known(name, nodes):
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", ROOT / "inventories" / name, "--list"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    groups = {group: listed.get(group, {}).get("hosts", []) for group in ("head", "workers")}
    groups["cluster"] = [*groups["head"], *groups["workers"]]
    assert check_groups(groups) == [] and len(groups["cluster"]) == nodes

    specs = read_specs(ROOT / "roles")
    for host in groups["cluster"]:
        variables = listed["_meta"]["hostvars"][host]
        # Expressions are for a run to evaluate; here only what is written down.
        plain = {key: value for key, value in variables.items() if key in specs and "{{" not in str(value)}
        assert check_variables(host, Settings(plain), specs) == []
        assert suggest_names(Settings({}, {}, sorted(set(variables) - set(specs))), specs) == []
