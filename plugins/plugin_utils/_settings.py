# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says of a host, by the roles' argument specs.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..module_utils._env_catalogue import Catalogue, load
from ..module_utils._plan import Settings

ROLES = Path(__file__).resolve().parents[2] / "roles"


def read_specs(roles: Path = ROLES) -> dict[str, dict[str, Any]]:
    """Every variable of every role, from the roles' argument specs."""
    specs: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        for entry_point in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            # What the entry point main says of a variable comes first, and holds.
            specs = {**(entry_point.get("options") or {}), **specs}
    return specs


def load_profiles(roles: Path = ROLES) -> dict[str, dict[str, Any]]:
    """What each profile of the role ``python_env`` sets, by the names of the variables; the lock with its path."""
    files = roles / "python_env" / "files"
    profiles = yaml.safe_load((files / "profiles.yml").read_text(encoding="utf-8"))
    for sets in profiles.values():
        sets["lock"] = str(files / "locks" / sets["lock"]) if sets["lock"] else ""
    return {
        profile: {f"python_env_{name}": value for name, value in sets.items()} for profile, sets in profiles.items()
    }


def read_settings(hostvars: Any, specs: dict[str, dict[str, Any]]) -> Settings:
    """A host's values of the known variables, its profile's with them; one whose expression fails is kept with its reason."""
    values, unusable = {}, {}
    for name in specs:
        try:
            if name in hostvars:
                values[name] = hostvars[name]
        except AnsibleError as error:
            unusable[name] = str(error).splitlines()[0]
    if "python_env_profile" in specs:
        profile = values.get("python_env_profile", specs["python_env_profile"].get("default"))
        for name, value in load_profiles().get(str(profile), {}).items():
            if name in specs and name not in unusable:
                values.setdefault(name, value)
    return Settings(values, unusable, sorted(set(map(str, hostvars)) - set(specs)))


def with_defaults(hostvars: Any, specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A host's values of the variables in ``specs`` in the types that these name, or their defaults; null is a default too.

    Raises AnsibleError for a value that is none. Preflight has told them all at once before.
    """
    found = read_settings(hostvars, specs)
    given = {name: value for name, value in found.values.items() if value is not None}
    # Words on the command line (-e NAME=VALUE) are texts, whatever the type.
    checked = ArgumentSpecValidator(specs).validate(given)
    problems = [*(f"{name}: {reason}" for name, reason in found.unusable.items()), *checked.error_messages]
    if problems:
        raise AnsibleError("; ".join(problems))
    return checked.validated_parameters


def load_catalogue() -> Catalogue:
    """What the collection knows of environment variables."""
    return load(ROLES / "network_env" / "files")


def load_presets() -> dict[str, dict[str, Any]]:
    """What each preset of the training job needs."""
    return yaml.safe_load((ROLES / "training" / "files" / "presets.yml").read_text(encoding="utf-8"))
