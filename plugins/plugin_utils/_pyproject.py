# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a project that uv manages, as the lock of an environment. Runs on the controller.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible.module_utils.common.validation import check_type_list

from ..module_utils._plan import Settings

_SECONDS = 60
# uv says so, or tries to resolve anew, which it may not.
_OLDER = r"needs to be updated|network was disabled|No solution found"


class ProjectError(Exception):
    """A project that no environment can be made of; the text says why and how to mend it."""


def find_uv() -> str:
    """uv, from the path or from where Ansible is installed; empty where there is none."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if os.access(beside, os.X_OK) else "")


def export(pyproject: str, extras: Sequence[str] = (), groups: Sequence[str] = ()) -> str:
    """What a project's ``uv.lock`` pins, in the format of requirements files. Nothing is resolved, no network is used.

    Raises ProjectError where there is no such project, no uv, no lock, or one that is older than the project.
    """
    path = Path(pyproject).expanduser()
    if path.is_dir():
        path /= "pyproject.toml"
    project, said = path.parent, f"python_env_pyproject is '{pyproject}'"
    if path.name != "pyproject.toml" or not path.is_file():
        raise ProjectError(f"{said}, and there is no such pyproject.toml on the controller. Correct the path")
    if not (project / "uv.lock").is_file():
        raise ProjectError(f"{said}, and there is no uv.lock beside it. Make it: uv lock --project {project}")
    uv = find_uv()
    if not uv:
        raise ProjectError(
            f"{said}, and there is no uv on the controller, which reads its lock. Install it there (pip install uv), or name the "
            "lock that 'uv export --format requirements-txt --no-emit-project' makes elsewhere in python_env_lock"
        )
    command = [
        uv,
        "export",
        "--quiet",
        "--format",
        "requirements-txt",
        "--no-emit-project",
        "--no-header",
        "--no-annotate",
    ]
    command += ["--no-default-groups", "--no-python-downloads", "--project", str(project)]
    command += [part for extra in extras for part in ("--extra", extra)]
    command += [part for group in groups for part in ("--group", group)]
    done = _run([*command, "--locked", "--offline"], said)
    if done.returncode and re.search(_OLDER, done.stderr):
        raise ProjectError(
            f"{said}, and its uv.lock is older than it. Bring it up to date: uv lock --project {project}"
        )
    if done.returncode:
        # Whether it is older cannot be told here: uv asks the project's Python, which a controller need not have.
        done = _run([*command, "--frozen"], said)
    if done.returncode:
        words = " ".join(done.stderr.split()).removeprefix("error: ") or f"status {done.returncode}"
        raise ProjectError(
            f"{said}, and uv cannot export its lock: {words}. Correct python_env_extras and python_env_groups"
        )
    return done.stdout


def _run(command: Sequence[str], said: str) -> subprocess.CompletedProcess[str]:
    # An environment of another project that is active here is none of this one's.
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
    try:
        return subprocess.run(
            command, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ProjectError(f"{said}, and uv did not export its lock within {_SECONDS} s") from None
    except OSError as error:
        raise ProjectError(f"{said}, and uv on the controller does not start: {error}") from None


def problems_of(settings: Mapping[str, Settings]) -> list[str]:
    """What stands in the way of the hosts' projects, each with its hosts."""
    hosts: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for host, its in settings.items():
        project, extras, groups = (
            its.values.get(f"python_env_{what}") or [] for what in ("pyproject", "extras", "groups")
        )
        # Another type is refused with all variables.
        with contextlib.suppress(TypeError):
            if project:
                key = (str(project), tuple(check_type_list(extras)), tuple(check_type_list(groups)))
                hosts.setdefault(key, []).append(host)
    problems = []
    for project, names in hosts.items():
        try:
            export(*project)
        except ProjectError as error:
            problems.append(f"{', '.join(names)}: {error}")
    return problems
