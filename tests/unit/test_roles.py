# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every role promises about its variables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
SHARED = (
    "cluster_user",
    "cluster_shared_dir",
    "cluster_shared_backend",
    "cluster_interface",
    "cluster_cidr",
    "cluster_proxy",
    "cluster_no_proxy",
    "cluster_ca_bundle",
    "cluster_bundle",
    "cluster_bundle_sha256",
)


def load(role: str, name: str):
    path = ROOT / "roles" / role / name
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def options(role: str) -> dict:
    merged: dict = {}
    for entry in load(role, "meta/argument_specs.yml")["argument_specs"].values():
        merged.update(entry.get("options") or {})
    return merged


def test_the_nine_roles_and_the_one_that_they_share():
    stages = [
        "docker",
        "nfs_server",
        "nfs_client",
        "python_env",
        "limits",
        "network_env",
        "firewall",
        "ray",
        "training",
    ]
    assert sorted([*stages, "packages"]) == ROLES


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role):
    defaults, specs = load(role, "defaults/main.yml") or {}, options(role)
    own = {name for name in specs if name not in SHARED}
    assert set(defaults) == own
    for name, value in defaults.items():
        templated = "{{" in str(value)
        # A templated default cannot be stated as data: the description says it.
        assert ("default" not in specs[name]) if templated else (specs[name].get("default") == value), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_role_s_name(role):
    assert all(name.startswith(f"{role}_") or name in SHARED for name in options(role))
    assert all(name.startswith(f"_{role}_") for name in load(role, "vars/main.yml") or {})


def test_shared_variables_say_the_same_in_every_role():
    seen: dict[str, set[str]] = {}
    for role in ROLES:
        for name, option in options(role).items():
            if name in SHARED:
                seen.setdefault(name, set()).add(
                    yaml.safe_dump({k: option.get(k) for k in ("type", "default", "choices")})
                )
    assert set(seen) == set(SHARED)
    assert {name: len(texts) for name, texts in seen.items()} == dict.fromkeys(seen, 1)


@pytest.mark.parametrize("role", ROLES)
def test_a_readme_of_one_screen(role):
    assert 5 < len((ROOT / "roles" / role / "README.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_the_firewall_closes_the_ports_that_ray_opens():
    closed = str(load("firewall", "defaults/main.yml")) + str(load("firewall", "vars/main.yml"))
    for name, default in load("ray", "defaults/main.yml").items():
        if name.endswith("_port"):
            assert name in closed and str(default) in closed, name
