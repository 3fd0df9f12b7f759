# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real virtual environments for tests: made by Python, filled by uv from small wheels, with no network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

UV = Path(sys.executable).parent / "uv"
GIT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{
        f"GIT_{who}_{what}": f"{who.lower()}@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    },
}

# A build backend of its own, so that an editable installation needs nothing from an index.
_BACKEND = """
import os, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    wheel = "{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        archive.writestr("__editable__.{module}-1.0.pth", os.getcwd() + "\\n")
        archive.writestr("{module}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {module}\\nVersion: 1.0\\n")
        archive.writestr("{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("{module}-1.0.dist-info/RECORD", "")
    return wheel
"""


def wheel(directory: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> Path:
    """A wheel of a module with some text in it, a second file and a program."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{name}/part.py": "one = 1\n",
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in content.items()
    }
    lines = [f"{path},sha256={digests[path]},{len(text.encode())}" for path, text in content.items()]
    target = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return target


def make(path: Path, python: str = sys.executable) -> Path:
    """An environment without anything in it."""
    subprocess.run([python, "-m", "venv", "--without-pip", path], check=True, capture_output=True)
    return path


def install(environment: Path, *what: Path | str) -> None:
    """Install wheels, or with ``-e`` a source, over what is there."""
    options = ["--offline", "--no-index", "--no-deps", "--no-cache", "--reinstall", "--link-mode", "copy"]
    subprocess.run(
        [UV, "pip", "install", "--quiet", *options, "--python", environment / "bin" / "python", *what],
        check=True,
        capture_output=True,
        env={**os.environ, "UV_NO_CONFIG": "1"},
    )


def copy(environment: Path, target: Path) -> Path:
    """The same environment on another node, with the times of its files."""
    shutil.copytree(environment, target, symlinks=True)
    return target


def git(place: Path, *words: str) -> str:
    command = ["git", "-C", str(place), "-c", "protocol.file.allow=always", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=GIT).stdout.strip()


def repository(place: Path, module: str = "trainer") -> str:
    """A source that can be installed as editable, in a repository with one commit, which is returned."""
    place.mkdir(parents=True)
    project = f'[project]\nname = "{module}"\nversion = "1.0"\n'
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (place / "pyproject.toml").write_text(project + system)
    (place / "backend.py").write_text(_BACKEND.format(module=module))
    (place / f"{module}.py").write_text("steps = 1\n")
    git(place, "init", "--quiet", "--initial-branch", "main")
    return commit(place)


def commit(place: Path, message: str = "one") -> str:
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(place, "rev-parse", "HEAD")
