# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environments that the collection ships, and one that is made of the user's own project."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ansible_collections.metalray.cluster.plugins.module_utils._plan import Settings
from ansible_collections.metalray.cluster.plugins.plugin_utils import _pyproject
from ansible_collections.metalray.cluster.plugins.plugin_utils._settings import load_profiles, read_settings, read_specs

ROLE = Path(__file__).resolve().parents[2] / "roles" / "python_env"
SPECS = read_specs()


def said(**variables: object) -> dict[str, object]:
    return dict(read_settings(variables, SPECS).values)


# --- profiles ----------------------------------------------------------------------------------------------------


def test_every_profile_sets_the_same_variables_of_the_role():
    profiles = load_profiles()
    assert sorted(profiles) == sorted(SPECS["python_env_profile"]["choices"])
    names = {
        name
        for name, value in yaml.safe_load((ROLE / "defaults/main.yml").read_text()).items()
        if "_profile." in str(value)
    }
    assert {profile: set(sets) for profile, sets in profiles.items()} == dict.fromkeys(profiles, names)


def test_the_default_profile_is_the_built_in_job_s():
    values = said()
    assert values["python_env_lock"] == str(ROLE / "files/locks/smoke.txt")
    assert (values["python_env_python"], values["python_env_source_url"]) == ("/usr/bin/python3", "")


def test_each_variable_of_a_profile_can_be_set_by_itself():
    values = said(python_env_profile="terminal_bench_rl", python_env_python="/opt/python/bin/python3.12")
    assert values["python_env_python"] == "/opt/python/bin/python3.12"
    assert values["python_env_lock"].endswith("/terminal_bench_rl.txt")
    assert values["python_env_source_version"] == "d25baf0d6eb4738a4fed12cad20a7f535348f133"
    assert values["python_env_allow_builds"] is True and values["python_env_min_free_bytes"] == 20 * 2**30


def test_custom_has_no_lock_and_an_unknown_profile_nothing():
    assert said(python_env_profile="custom")["python_env_lock"] == ""
    assert "python_env_lock" not in said(python_env_profile="smoky")


def test_the_stack_of_the_guide():
    text = (ROLE / "files/locks/terminal_bench_rl.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    assert (pins["vllm"], pins["torch"], pins["transformers"], pins["flash-attn"]) == (
        "0.9.1",
        "2.7.0",
        "4.51.3",
        "2.8.3",
    )

    def release(name: str) -> tuple[int, ...]:
        return tuple(map(int, pins[name].split(".")))

    assert release("ray") >= (2, 54)
    assert release("numpy") < (2, 3)
    assert release("tensordict") <= (0, 6, 2)
    # pkg_resources, which verl imports, went later; vertexai.generative_models, which rLLM imports, with 2.
    assert release("setuptools") < (80,)
    assert release("google-cloud-aiplatform") < (2,)
    assert {"wheel", "packaging", "psutil", "ninja", "hatchling"} <= set(pins)
    assert re.findall(r"^.* @ .*$", text, re.MULTILINE) == [
        "terminal-bench @ git+https://github.com/Danau5tin/terminal-bench-py311.git@83673c6850e82ae699a2a9abd6f6a709af10bfd6"
    ]


# --- projects ----------------------------------------------------------------------------------------------------

PROJECT = """\
[project]
name = "mine"
version = "1.0"
requires-python = ">=3.10"
dependencies = ["one"]
optional-dependencies = { fast = ["two"] }

[dependency-groups]
dev = ["three"]

[[tool.uv.index]]
url = "{index}"
default = true
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with its lock, made from an index of three packages that is gone by then."""
    for name in ("one", "two", "three"):
        place = tmp_path / "index" / name
        place.mkdir(parents=True)
        wheel = place / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(
                f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (place / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "index")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}"
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "pyproject.toml").write_text(PROJECT.replace("{index}", index))
        command = [_pyproject.find_uv(), "lock", "--quiet", "--project", mine, "--cache-dir", tmp_path / "cache"]
        subprocess.run(command, check=True, timeout=60)
        server.shutdown()
    return mine


def pinned(text: str) -> list[str]:
    return re.findall(r"^([a-z]+)==1\.0 \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)


def test_a_project_s_lock_is_exported_with_hashes_and_without_the_project(project):
    for path in (project, project / "pyproject.toml"):
        text = _pyproject.export(str(path))
        assert pinned(text) == ["one"] and "mine" not in text and "-e" not in text
    assert sorted(pinned(_pyproject.export(str(project), ["fast"], ["dev"]))) == ["one", "three", "two"]


def test_a_lock_older_than_its_project_is_refused(project):
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('["one"]', '["one", "two"]'))
    before = (project / "uv.lock").read_bytes()
    with pytest.raises(_pyproject.ProjectError, match=rf"is older than it.*uv lock --project {project}"):
        _pyproject.export(str(project))
    assert (project / "uv.lock").read_bytes() == before


def test_a_lock_for_a_python_that_the_controller_lacks_is_exported_all_the_same(project):
    (project / ".python-version").write_text("3.99\n")
    assert pinned(_pyproject.export(str(project))) == ["one"]


@pytest.mark.parametrize(
    ("breaks", "extras", "words"),
    [
        (lambda project: (project / "uv.lock").unlink(), [], "no uv.lock beside it. Make it: uv lock --project"),
        (lambda project: (project / "pyproject.toml").unlink(), [], "no such pyproject.toml"),
        (lambda project: None, ["slow"], "Correct python_env_extras"),
        (lambda project: (project / "pyproject.toml").write_text("[project\n"), [], "uv cannot export its lock"),
    ],
)
def test_what_is_wrong_with_a_project(project, breaks, extras, words):
    breaks(project)
    with pytest.raises(_pyproject.ProjectError) as caught:
        _pyproject.export(str(project), extras)
    assert words in str(caught.value) and f"python_env_pyproject is '{project}'" in str(caught.value)


def test_a_controller_without_uv(project, monkeypatch):
    monkeypatch.setattr(_pyproject, "find_uv", lambda: "")
    with pytest.raises(_pyproject.ProjectError, match=r"no uv on the controller.*pip install uv"):
        _pyproject.export(str(project))


def test_preflight_asks_once_for_all_hosts_of_a_project(project):
    (project / "uv.lock").unlink()
    settings = {host: Settings({"python_env_pyproject": str(project)}) for host in ("n1", "n2")}
    settings["n3"] = Settings({})
    problems = _pyproject.problems_of(settings)
    assert len(problems) == 1 and problems[0].startswith("n1, n2: python_env_pyproject is")
