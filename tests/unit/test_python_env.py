# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ansible_collections.metalray.cluster.plugins.module_utils import _lock as locks
from ansible_collections.metalray.cluster.plugins.module_utils import _python_env as env
from ansible_collections.metalray.cluster.plugins.module_utils import _pythons as interpreters
from ansible_collections.metalray.cluster.plugins.module_utils import _uv as tools
from ansible_collections.metalray.cluster.plugins.module_utils._ray_supervisor import fingerprint

pytestmark = pytest.mark.tools

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "python_env"
LOCKS = [ROLE / "files/locks/smoke.txt", *sorted((ROOT / "inventories/sandbox").glob("*.txt"))]
PYTHON = platform.python_version()
HASH = "--hash=sha256:" + "0" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lock_of(**packages: str) -> str:
    return "".join(f"{name}=={version} \\\n    {HASH}\n" for name, version in packages.items())


# --- the lock ----------------------------------------------------------------------------------------------------


def test_a_lock_is_read_as_uv_writes_it() -> None:
    text = (
        "# a comment\n"
        f"Typing_Extensions==4.16.0 ; python_full_version < '3.11' \\\n    {HASH} \\\n    {HASH}\n"
        "    # via torch\n"
        f"torch==2.13.0+cpu {HASH}\n"
        f"ray[default]==2.60.0 \\\r\n    {HASH}\n"
        f"flash-attn @ https://example.com/flash_attn-2.8.3+cu12-cp312-cp312-linux_x86_64.whl {HASH}\n"
        f"Verl @ git+https://git.example/team/verl.git@{COMMIT}#subdirectory=packages/verl ; sys_platform == 'linux'\n"
        f"rllm[gpu] @ git+ssh://git@git.example/team/rllm@{COMMIT}\n"
    )
    found = locks.parse_lock(text, "x.txt")
    assert [(item.name, item.version, item.marker) for item in found] == [
        ("typing-extensions", "4.16.0", "python_full_version < '3.11'"),
        ("torch", "2.13.0+cpu", ""),
        ("ray", "2.60.0", ""),
        ("flash-attn", "2.8.3+cu12", ""),
        ("verl", "git.0123456789ab", "sys_platform == 'linux'"),
        ("rllm", "git.0123456789ab", ""),
    ]
    assert [(item.url, item.commit, item.subdirectory) for item in found[-2:]] == [
        ("https://git.example/team/verl.git", COMMIT, "packages/verl"),
        ("ssh://git@git.example/team/rllm", COMMIT, ""),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "names no package"),
        ("# nothing\n", "names no package"),
        ("six==1.17.0\n", "six==1.17.0"),
        (f"six>=1.17.0 {HASH}\n", "six>=1.17.0"),
        (f"six==1.* {HASH}\n", "six==1.*"),
        (f"six {HASH}\n", "six"),
        (f"-e . {HASH}\n", "option '-e'"),
        ("verl @ git+https://git.example/team/verl@main\n", "needs the whole commit"),
        (f"verl @ git+https://git.example/team/verl@{'a' * 12}\n", "needs the whole commit"),
        (f"verl @ git+http://git.example/team/verl@{'a' * 40}\n", "needs the whole commit"),
        (f"--index-url https://example.com/simple\nsix==1.17.0 {HASH}\n", "option '--index-url'"),
    ],
)
def test_a_lock_that_pins_less_is_refused(text: str, word: str) -> None:
    with pytest.raises(env.EnvError) as caught:
        locks.parse_lock(text, "mine.txt")
    assert word in str(caught.value)
    assert "mine.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("marker", "python", "holds"),
    [
        ("", "3.11.2", True),
        ("python_full_version < '3.11'", "3.10.13", True),
        ("python_full_version < '3.11'", "3.11.2", False),
        ("python_full_version >= '3.9'", "3.10.1", True),
        ("python_full_version == '3.11.*'", "3.11.2", True),
        ("python_full_version == '3.11.*'", "3.12.0", False),
        ("python_full_version != '3.11.*'", "3.12.0", True),
        ("python_full_version <= '3.11'", "3.11.0", True),
        ("sys_platform == 'win32'", "3.11.2", False),
        ("sys_platform == 'linux' and python_version >= '3.10'", "3.13.0", True),
        ("(platform_machine == 'alpha' or platform_machine == 'vax') and sys_platform == 'linux'", "3.11.2", False),
        ("platform_python_implementation != 'PyPy'", "3.11.2", True),
        ("'linux' in sys_platform", "3.11.2", True),
        ("sys_platform not in 'win32 darwin'", "3.11.2", True),
        # What is not understood is shown rather than hidden.
        ("python_version ~= '3.10'", "3.9.0", True),
        ("extra == 'gpu'", "3.11.2", True),
        ("__import__('os').system('false')", "3.11.2", True),
    ],
)
def test_markers(marker: str, python: str, holds: bool) -> None:
    assert locks.marker_holds(marker, locks.marker_environment(python)) is holds


def test_the_hash_depends_on_versions_only() -> None:
    one = locks.parse_lock(lock_of(six="1.17.0", ray="2.60.0"), "x")
    other = locks.parse_lock("# made today\n" + lock_of(ray="2.60.0", six="1.17.0"), "y")
    assert locks.environment_hash(one, "3.11.2", "0.13.9", ()) == locks.environment_hash(other, "3.11.2", "0.13.9", ())
    changed = {
        locks.environment_hash(one, "3.11.2", "0.13.9", ()),
        locks.environment_hash(one, "3.11.3", "0.13.9", ()),
        locks.environment_hash(one, "3.11.2", "0.14.0", ()),
        locks.environment_hash(locks.parse_lock(lock_of(six="1.16.0", ray="2.60.0"), "x"), "3.11.2", "0.13.9", ()),
        locks.environment_hash(one, "3.11.2", "0.13.9", ["/mnt/shared/src/x"]),
        locks.environment_hash(one, "3.11.2", "0.13.9", ["/mnt/shared/src/x", "/mnt/shared/src/y"]),
    }
    assert len(changed) == 6


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_shipped_locks_are_complete(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert "/tmp" not in text
    packages = locks.lock_packages(locks.parse_lock(text, path.name), "3.11.2")
    assert tuple(map(int, packages["ray"].split("."))) >= (2, 54)
    assert "colorama" not in packages


def test_shipped_locks_agree() -> None:
    seen: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in locks.lock_packages(
            locks.parse_lock(path.read_text("utf-8"), path.name), "3.11.2"
        ).items():
            seen.setdefault(name, set()).add(version.partition("+")[0])
    assert len(LOCKS) == 3
    assert {name: versions for name, versions in seen.items() if len(versions) > 1} == {}


def test_the_default_uv_has_hashes() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    (pin,) = locks.parse_lock((ROLE / "files/uv.txt").read_text(encoding="utf-8"), "uv.txt")
    assert (pin.name, pin.version) == ("uv", str(defaults["python_env_uv_version"]))


# --- what tools say ----------------------------------------------------------------------------------------------


# Cause, and words of uv 0.13 and pip 23 that were seen with it.
SEEN = [
    ("hash differs", "error: Failed to download `six==1.17.0`\n  cause: Hash mismatch for `six==1.17.0`"),
    ("hash differs", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have"),
    (
        "not in the index",
        "error: No solution found\n  cause: Because there is no version of six==1.99.0 and you require",
    ),
    ("not in the index", "Because six was not found in the provided package locations and you require six==1.17.0"),
    ("not in the index", "ERROR: No matching distribution found for uv==0.13.9"),
    ("cannot be reached", "error: Request failed after 3 retries\n  cause: Failed to fetch: https://127.0.0.1/"),
    ("cannot be reached", "  cause: tcp connect error\n  cause: Connection refused (os error 111)"),
    ("cannot be reached", "  cause: failed to lookup address information: Name or service not known"),
    (
        "certificate",
        "error: Failed to fetch: https://mirror.example/simple/six/\n  cause: client error (Connect)\n"
        "  cause: invalid peer certificate: UnknownIssuer",
    ),
    (
        "certificate",
        "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: "
        "CERTIFICATE_VERIFY_FAILED] certificate verify failed'))'\nERROR: No matching distribution found for uv==0.13",
    ),
    ("directory of packages", "error: Failed to read `--find-links` directory: /nonexistent\n  cause: No such file"),
    ("this node's Python", "Because torch==2.13.0+cpu has no wheels with a matching Python ABI tag (e.g., `cp313`)"),
    (
        "no wheel",
        "Because docopt==0.6.2 has no usable wheels and you require docopt==0.6.2\n\nhint: Wheels are required for "
        "`docopt` because building from source is disabled for all packages (i.e., with `--no-build`)",
    ),
    ("disk is full", "error: Failed to download `numpy==2.4.6`\n  cause: failed to write: No space left on device"),
    ("not consistent", "Found 4 incompatibilities\nThe package `requests` requires `idna>=2.5,<4`, but"),
    (
        "virtual environments",
        "The virtual environment was not created successfully because ensurepip is not available.",
    ),
    ("it failed", "thread 'main' panicked"),
]


@pytest.mark.parametrize(("cause", "output"), SEEN)
def test_causes(cause: str, output: str) -> None:
    found, mend = tools.explain(output, Path("/opt/metalray"))
    assert cause in found
    assert mend
    assert "{" not in mend


@pytest.mark.parametrize(
    ("cause", "output"),
    [
        ("knows no such version", "error: No download found for request: cpython-3.12.99-linux-x86_64-gnu"),
        ("disk is full", "error: Failed to install cpython-3.12.16\n  cause: No space left on device (os error 28)"),
        ("certificate", "  cause: client error (Connect)\n  cause: invalid peer certificate: UnknownIssuer"),
        ("hash differs", "error: Failed to install x\n  cause: Hash mismatch for `cpython-3.11.7-linux-x86_64-gnu`"),
        ("leads away", "  cause: Network connectivity is disabled, but the requested data wasn't found in the cache"),
        ("cannot be fetched", "error: Failed to install x\n  cause: dns error\n  cause: Name or service not known"),
        ("it failed", "error: Python installation is missing a `_sysconfigdata_` file"),
        ("cannot be fetched", "  cause: failed to query metadata of file `/mnt/x.tar.gz`: No such file or directory"),
    ],
)
def test_causes_where_python_is_fetched(cause: str, output: str) -> None:
    found, mend = tools.explain(output, Path("/opt/metalray"), interpreters._PYTHON_CAUSES)
    assert cause in found
    assert mend
    assert "{" not in mend
    assert "index" not in found + mend


def test_accounts_are_not_shown() -> None:
    assert tools.tail("Failed to fetch: https://me:secret@mirror.example/simple\n") == (
        "  Failed to fetch: https://***@mirror.example/simple"
    )


def test_tools_get_addresses_by_environment(tmp_path: Path) -> None:
    settings = tools.Tools(
        root=tmp_path, index_url="https://a/simple", extra_index_urls=["https://b", "https://c"],
        find_links=["/w"], ca_bundle="/ca.pem", offline=True,
    )  # fmt: skip
    values = tools.tool_environment(settings, {"PATH": "/bin", "VIRTUAL_ENV": "/x", "HTTPS_PROXY": "http://p"})
    assert "VIRTUAL_ENV" not in values
    assert values["HTTPS_PROXY"] == "http://p"
    assert values["UV_DEFAULT_INDEX"] == values["PIP_INDEX_URL"] == "https://a/simple"
    assert values["UV_INDEX"] == "https://b https://c"
    assert values["SSL_CERT_FILE"] == values["PIP_CERT"] == "/ca.pem"
    assert values["UV_OFFLINE"] == values["PIP_NO_INDEX"] == "1"


# --- building, with a stand-in for uv that makes what uv makes -----------------------------------------------------

FAKE_UV = """#!{python}
import base64, hashlib, json, os, pathlib, re, sys, time
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([arguments, dict(os.environ)]) + "\\n")
behaviour = os.environ.get("FAKE_UV", "")
if arguments[0] == "venv":
    target = pathlib.Path(arguments[-1])
    python = arguments[arguments.index("--python") + 1]
    (target / "bin").mkdir(parents=True)
    (target / "bin/python").symlink_to(python)
    (target / "lib/python3.{minor}/site-packages").mkdir(parents=True)
    (target / "pyvenv.cfg").write_text("home = " + os.path.dirname(os.path.realpath(python)) + "\\n")
elif arguments[:2] == ["pip", "sync"]:
    target = pathlib.Path(arguments[arguments.index("--python") + 1]).parents[1]
    place = next(target.glob("lib/*/site-packages"))
    for name, version in re.findall(r"^([a-z-]+)==(\\S+)", pathlib.Path(arguments[-1]).read_text(), re.M):
        info = place / (name.replace("-", "_") + "-" + version + ".dist-info")
        info.mkdir()
        text = ("version = " + repr(version) + "\\n").encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        cached = pathlib.Path(os.environ["UV_CACHE_DIR"], name + "-" + version)
        if not cached.exists():
            cached.write_bytes(text)
        os.link(cached, place / (name + ".py"))
        (info / "RECORD").write_text(name + ".py,sha256=" + digest + "," + str(len(text)) + "\\n")
        if behaviour == "half":
            print("error: client error (Connect)\\n  cause: tcp connect error")
            sys.exit(2)
        if behaviour == "hang":
            print("Downloading torch", flush=True)
            time.sleep(60)
elif arguments[:2] == ["pip", "check"] and behaviour == "inconsistent":
    print("Found 1 incompatibility")
    sys.exit(1)
"""


class Node:
    """A root directory with a uv that is installed already."""

    def __init__(self, path: Path) -> None:
        self.log = path / "log"
        self.root = path / "opt"
        home = self.root / "uv-1.0"
        (home / "bin").mkdir(parents=True)
        uv = home / "bin" / "uv"
        uv.write_text(FAKE_UV.format(python=sys.executable, log=str(self.log), minor=sys.version_info[1]))
        uv.chmod(0o755)
        (home / env.RECORD_FILE).write_text("{}")
        self.settings = env.Settings(
            lock=lock_of(ray="2.60.0", six="1.17.0"),
            lock_name="smoke.txt",
            uv_version="1.0",
            uv_lock="",
            root=self.root,
            venv=self.root / "venv",
            python=sys.executable,
        )

    def ensure(self, check_mode: bool = False, **changes: object) -> env.Outcome:
        return env.ensure(replace(self.settings, **changes), check_mode)

    @property
    def calls(self) -> list[list[str]]:
        if not self.log.exists():
            return []
        return [json.loads(line)[0] for line in self.log.read_text().splitlines()]

    @property
    def environments(self) -> list[str]:
        return sorted(path.name for path in (self.root / "venvs").iterdir())

    @property
    def place(self) -> Path:
        found = env.site_packages(self.settings.venv)
        assert found is not None
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.delenv("FAKE_UV", raising=False)
    return Node(tmp_path)


def test_first_build_and_then_nothing(node: Node) -> None:
    first = node.ensure(imports=["json", "six"])
    assert (first.changed, first.built) == (True, True)
    assert first.packages == {"ray": "2.60.0", "six": "1.17.0"}
    assert os.readlink(node.settings.venv) == first.target == str(node.root / "venvs" / first.hash[:12])
    assert first.diff is not None
    assert first.diff["before"] == ""
    assert first.diff["after"] == f"python {PYTHON}\nray 2.60.0\nsix 1.17.0\n"
    done = len(node.calls)
    second = node.ensure(imports=["json", "six"])
    assert (second.changed, second.drift, second.diff) == (False, [], None)
    assert (second.target, second.packages) == (first.target, first.packages)
    assert len(node.calls) == done == 3


def test_ray_has_a_reason_to_restart_with_another_environment_and_only_then(node: Node) -> None:
    """Its unit depends on where the link leads (``ray_venv`` in ``_ray_depends`` of the role ray)."""

    def started_with() -> str:
        return fingerprint([str(node.settings.venv)])

    node.ensure()
    first = started_with()
    node.ensure()
    # The same lock in other words is the same environment.
    node.ensure(lock="# made again\n" + lock_of(six="1.17.0", ray="2.60.0"))
    assert started_with() == first
    node.ensure(lock=lock_of(ray="2.61.0"))
    assert started_with() != first
    # Back to what is still there: a switch without a build.
    assert not node.ensure().built
    assert started_with() == first


def test_a_build_takes_locked_wheels_only(node: Node) -> None:
    node.ensure(find_links=["/w1", "/w2"], torch_backend="cu130", index_url="https://me:secret@mirror.example/simple")
    sync = node.calls[1]
    assert "--require-hashes" in sync
    assert "--no-build" in sync
    assert [sync[at + 1] for at, word in enumerate(sync) if word == "--find-links"] == ["/w1", "/w2"]
    assert sync[sync.index("--torch-backend") + 1] == "cu130"
    assert not any("secret" in word for call in node.calls for word in call)


def test_check_mode_on_a_fresh_node_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "opt"
    settings = env.Settings(
        lock=lock_of(six="1.17.0"), uv_version="1.0", root=root, venv=root / "venv", python=sys.executable
    )
    would = env.ensure(settings, check_mode=True)
    assert (would.changed, would.built, would.packages) == (True, True, {"six": "1.17.0"})
    assert would.diff is not None
    assert would.diff["after"] == f"python {PYTHON}\nsix 1.17.0\n"
    absent = env.ensure(replace(settings, python="/usr/bin/python3.99"), check_mode=True)
    assert absent.changed
    assert not root.exists()


def test_check_mode_tells_what_the_run_does(node: Node) -> None:
    node.ensure()
    changed = lock_of(ray="2.61.0", six="1.17.0")
    would = node.ensure(check_mode=True, lock=changed)
    assert node.environments == [node.ensure(check_mode=True).hash[:12]]
    does = node.ensure(lock=changed)
    assert (would.diff, would.target, would.hash) == (does.diff, does.target, does.hash)


@pytest.mark.parametrize(("behaviour", "word"), [("half", "cannot be reached"), ("inconsistent", "not consistent")])
def test_a_failed_build_leaves_all_as_it_was(
    node: Node, monkeypatch: pytest.MonkeyPatch, behaviour: str, word: str
) -> None:
    before = node.ensure()
    monkeypatch.setenv("FAKE_UV", behaviour)
    with pytest.raises(env.EnvError) as caught:
        node.ensure(lock=lock_of(ray="2.61.0"))
    assert word in str(caught.value)
    assert "smoke.txt" in str(caught.value)
    assert os.readlink(node.settings.venv) == before.target
    assert node.environments == [Path(before.target).name]
    monkeypatch.delenv("FAKE_UV")
    assert node.ensure(lock=lock_of(ray="2.61.0")).packages == {"ray": "2.61.0"}


def test_a_failed_import_is_not_switched_to(node: Node) -> None:
    with pytest.raises(env.EnvError, match="importing no_such_thing"):
        node.ensure(imports=["no_such_thing"])
    assert not node.settings.venv.exists()
    assert node.environments == []


def test_a_hanging_build_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV", "hang")
    start = time.monotonic()
    with pytest.raises(env.EnvError, match=r"not done within 4 seconds (?s:.*)Downloading torch"):
        node.ensure(timeout=4)
    assert time.monotonic() - start < 20
    assert node.environments == []


def test_the_rest_of_an_interrupted_build_is_replaced(node: Node) -> None:
    would = node.ensure(check_mode=True)
    rest = Path(would.target)
    (rest / "bin").mkdir(parents=True)
    (rest / "bin" / "junk").write_text("")
    other = node.root / "venvs" / "0123456789ab"
    other.mkdir()
    does = node.ensure()
    assert does.target == str(rest)
    assert not (rest / "bin" / "junk").exists()
    assert does.removed == [str(other)]


def _add(place: Path) -> None:
    (place / "extra_thing-1.0.dist-info").mkdir()


def _remove(place: Path) -> None:
    shutil.rmtree(place / "six-1.17.0.dist-info")


def _upgrade(place: Path) -> None:
    (place / "six-1.17.0.dist-info").rename(place / "six-1.18.0.dist-info")


def _reinstall(place: Path) -> None:
    (place / "six-1.17.0.dist-info" / "RECORD").write_text("six.py,sha256=other,1\n")


def _edit(place: Path) -> None:
    (place / "six.py").write_text("version = '1.17.1'\n")


def _edit_by_renaming(place: Path) -> None:
    (place / "new").write_text("version = '1.17.0'\nprint()\n")
    (place / "new").rename(place / "six.py")


def _stray(place: Path) -> None:
    (place / "sitecustomize.py").write_text("")


def _lose_module(place: Path) -> None:
    (place / "six.py").unlink()


def _open_up(place: Path) -> None:
    place.chmod(0o777)


def _lose_python(place: Path) -> None:
    (place.parents[2] / "bin" / "python").unlink()


def _replace_python(place: Path, text: str = "echo 3.98.12") -> None:
    _lose_python(place)
    python = place.parents[2] / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{text}\n")
    python.chmod(0o755)


def _break_python(place: Path) -> None:
    _replace_python(place, "exit 1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_add, ["extra-thing 1.0 was added"]),
        (_remove, ["six 1.17.0 was removed"]),
        (_upgrade, ["six 1.17.0 became 1.18.0"]),
        (_reinstall, ["six 1.17.0 was installed again from elsewhere"]),
        (_edit, ["six 1.17.0 was edited: six.py"]),
        (_edit_by_renaming, ["six 1.17.0 was edited: six.py"]),
        (_stray, ["sitecustomize.py was added"]),
        (_lose_module, ["six.py was removed"]),
        (_open_up, ["can be written by others"]),
        (_lose_python, ["its Python or its packages are gone"]),
        (_replace_python, [f"its Python {PYTHON} became 3.98.12"]),
        (_break_python, ["its Python does not run"]),
    ],
)
def test_drift_is_named_and_mended_beside(node: Node, change, words: list[str]) -> None:
    before = node.ensure()
    change(node.place)
    would = node.ensure(check_mode=True)
    assert would.changed
    does = node.ensure()
    assert len(does.drift) == len(words)
    assert all(word in found for word, found in zip(words, does.drift))
    assert does.drift[0] in does.msg
    # Ray may still run from the changed one: it keeps its place, and the link's target tells that there is a new one.
    assert does.target == before.target + "-2"
    assert does.hash == before.hash
    assert Path(before.target).is_dir()
    assert does.packages == before.packages
    # Also where the edit went through to the cache.
    assert (node.place / "six.py").read_text() == "version = '1.17.0'\n"
    assert node.ensure().changed is False


def test_sources_are_found_after_the_packages_and_name_the_environment(
    real: Node, wheels: dict[str, object], tmp_path: Path
):
    sources = [tmp_path / "src" / "trainer", tmp_path / "src" / "trainer" / "external"]
    for source, module in zip(sources, ("thing", "helper")):
        source.mkdir(parents=True)
        (source / f"{module}.py").write_text("")
    plain = real.ensure(**wheels)
    # Another environment: what leads to the sources is part of it.
    built = real.ensure(source_paths=list(map(str, sources)), imports=["thing"], **wheels)
    assert built.built and built.hash != plain.hash
    code = "import helper, sys, thing; print(helper.__file__, thing.__file__)"
    done = subprocess.run(
        [Path(built.target, "bin/python"), "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    helper, thing = done.stdout.split()
    assert (helper, "site-packages" in thing) == (str(sources[1] / "helper.py"), True)
    assert not real.ensure(source_paths=list(map(str, sources)), imports=["thing"], **wheels).changed
    # The proof runs as root and does not import from them.
    with pytest.raises(locks.EnvError, match="python_env_imports"):
        real.ensure(source_paths=[str(sources[1])], imports=["helper"], **wheels)


def test_sources_changed_by_hand_are_drift(node: Node) -> None:
    before = node.ensure(source_paths=["/mnt/shared/src/trainer"])
    leads = node.place / "metalray-sources.pth"
    assert leads.read_text() == "/mnt/shared/src/trainer\n"
    leads.write_text("/home/eve\n")
    does = node.ensure(source_paths=["/mnt/shared/src/trainer"])
    assert does.drift == ["metalray-sources.pth was edited"] and does.target == before.target + "-2"
    with pytest.raises(locks.EnvError, match="python_env_source_paths leads to 'trainer'"):
        node.ensure(source_paths=["trainer"])


def test_caches_of_python_are_no_drift(node: Node) -> None:
    node.ensure()
    (node.place / "__pycache__").mkdir()
    assert node.ensure().changed is False


def test_a_build_is_on_the_disk_before_it_counts_as_done(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut at any moment leaves either no record, or all of the environment."""
    seen = []
    sync = env.sync_file_system

    def watched(path: str) -> None:
        sync(path)
        place = Path(path)
        if place.parent == node.root / "venvs":
            seen.append(
                ((place / "requirements.txt").exists(), (place / env.RECORD_FILE).exists(), node.settings.venv.exists())
            )

    monkeypatch.setattr(env, "sync_file_system", watched)
    node.ensure()
    assert seen == [(True, False, False)]
    assert (node.settings.venv / env.RECORD_FILE).exists()


def test_what_a_power_cut_may_have_emptied_is_fetched_again(node: Node) -> None:
    first = node.ensure()
    cached = node.root / "cache/archive-v0/six.py"
    fetched = node.root / "python/cpython-3.99.1/bin/python3.99"
    used = node.root / "python/cpython-3.98.1/bin/python3.98"
    link = node.root / "python/cpython-3.98"

    def interrupt(boot: str) -> None:
        for path in (cached, fetched, used):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if not link.is_symlink():
            link.symlink_to(used.parents[1])
        (node.root / ".unsynced").write_text(boot + "\n")

    record = Path(first.target) / env.RECORD_FILE
    record.write_text(json.dumps({**json.loads(record.read_text()), "interpreter": str(link / "bin/python3.98")}))
    # Killed without a power cut: what the kernel holds is whole.
    interrupt(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    node.ensure(lock=lock_of(six="1.16.0"), keep=3)
    assert cached.exists() and fetched.exists() and not (node.root / ".unsynced").exists()
    interrupt("another boot")
    assert interpreters.find_python(replace(node.settings, python="3.99")) is None
    node.ensure(lock=lock_of(six="1.15.0"), keep=3)
    assert not cached.exists() and not fetched.exists() and not (node.root / ".unsynced").exists()
    # An environment that is there is made of it.
    assert used.exists() and link.exists()


def test_a_failed_build_leaves_no_doubt(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV", "half")
    with pytest.raises(env.EnvError):
        node.ensure()
    assert not (node.root / ".unsynced").exists()


def test_switching_back_builds_nothing(node: Node) -> None:
    first = node.ensure()
    node.ensure(lock=lock_of(ray="2.61.0"))
    calls = len(node.calls)
    back = node.ensure()
    assert (back.changed, back.built, back.target) == (True, False, first.target)
    assert len(node.calls) == calls


def test_rolling_back_and_coming_back_builds_nothing(node: Node) -> None:
    first = node.ensure()
    other = lock_of(ray="2.61.0")
    second = node.ensure(lock=other)
    calls = len(node.calls)
    would = node.ensure(lock=other, rollback=True, check_mode=True)
    assert (would.changed, would.target, os.readlink(node.settings.venv)) == (True, first.target, second.target)
    back = node.ensure(lock=other, rollback=True)
    assert (back.changed, back.built, back.target, back.packages) == (True, False, first.target, first.packages)
    assert (back.diff, back.hash) == (would.diff, first.hash)
    # Not to and fro: the one that is not the lock's is in use.
    assert node.ensure(lock=other, rollback=True).changed is False
    assert os.readlink(node.settings.venv) == first.target
    forth = node.ensure(lock=other)
    assert (forth.changed, forth.built, forth.target) == (True, False, second.target)
    assert len(node.calls) == calls


def test_nothing_to_go_back_to_is_said_and_nothing_is_switched(node: Node) -> None:
    only = node.ensure()
    _upgrade(node.place)
    again = node.ensure()
    assert again.target != only.target
    for check_mode in (True, False):
        with pytest.raises(env.EnvError, match=r"python_env_rollback is set.*keeps no environment of another lock"):
            node.ensure(rollback=True, check_mode=check_mode)
    assert os.readlink(node.settings.venv) == again.target
    changed = node.ensure(lock=lock_of(ray="2.61.0"))
    _upgrade_in = Path(again.target) / "lib"
    _upgrade(next(_upgrade_in.glob("*/site-packages")))
    with pytest.raises(env.EnvError, match="as it was built"):
        node.ensure(lock=lock_of(ray="2.61.0"), rollback=True)
    assert os.readlink(node.settings.venv) == changed.target


def test_the_environments_longest_unused_are_removed(node: Node) -> None:
    targets = [node.ensure(lock=lock_of(ray=f"2.{minor}.0"), keep=2).target for minor in (1, 2, 3)]
    for age, target in zip((30, 20, 10), targets):
        os.utime(Path(target) / env.RECORD_FILE, (time.time() - age, time.time() - age))
    last = node.ensure(lock=lock_of(ray="2.4.0"), keep=1)
    assert sorted(last.removed) == sorted(targets[:2])
    assert node.environments == sorted(Path(path).name for path in (targets[2], last.target))
    only = node.ensure(lock=lock_of(ray="2.5.0"), keep=0)
    assert node.environments == [Path(only.target).name]


def test_an_environment_made_by_other_means_is_not_touched(node: Node) -> None:
    (node.settings.venv / "bin").mkdir(parents=True)
    with pytest.raises(env.EnvError, match="is not a link"):
        node.ensure()
    assert (node.settings.venv / "bin").is_dir()


def test_a_dangling_link_is_replaced(node: Node) -> None:
    node.settings.venv.symlink_to(node.root / "venvs" / "gone")
    assert node.ensure().built


def test_a_root_that_others_write_is_closed(node: Node) -> None:
    node.root.chmod(0o777)
    node.ensure()
    assert node.root.stat().st_mode & 0o777 == 0o755


def test_nobody_else_holds_the_locks_of_uv(node: Node) -> None:
    """One that may be read may be held, and the next build would wait for it."""
    left = node.root / "cache" / ".lock"
    left.parent.mkdir()
    left.touch()
    left.chmod(0o666)
    node.ensure()
    locks = [left, node.root / "python" / ".lock"]
    assert [path.stat().st_mode & 0o777 for path in locks] == [0o600, 0o600]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"offline": True}, "python_env_find_links"),
        ({"ca_bundle": "/nonexistent.pem"}, "python_env_ca_bundle is '/nonexistent.pem'"),
        ({"python": "python3"}, "python_env_python is 'python3'"),
        ({"python": "/nonexistent/python"}, "python_env_python is '/nonexistent/python'"),
        ({"python": "3.99", "offline": True, "find_links": ["/w"]}, "python_env_offline forbids"),
        ({"min_free_bytes": 2**62}, "python_env_min_free_bytes"),
        ({"uv_version": "9.9", "uv_lock": f"uv==1.0 {HASH}"}, "python_env_uv_lock has no hashes"),
        ({"imports": ["os; print(1)"]}, "python_env_imports"),
        ({"python": "/bin/ls"}, "does not run as Python"),
    ],
)
def test_bad_input_is_named(node: Node, changes: dict[str, object], word: str) -> None:
    with pytest.raises(env.EnvError) as caught:
        node.ensure(**changes)
    assert word in str(caught.value)
    assert not node.settings.venv.exists()


def test_one_build_at_a_time(node: Node) -> None:
    with (node.root / ".building").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(env.EnvError, match="another run has been building"):
            node.ensure(timeout=1)
    assert node.ensure(timeout=30).built


def fake_python(place: Path, version: str) -> Path:
    python = place / "bin" / f"python{version.rpartition('.')[0]}"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    return python


def test_a_version_of_python_is_looked_for(node: Node) -> None:
    python = fake_python(node.root / "python" / "cpython-x", "3.98.12")
    for wanted in ("3.98", "3.98.12"):
        assert interpreters.find_python(replace(node.settings, python=wanted)) == (python, "3.98.12")
    for wanted in ("3.98.1", "3.9", "3.98.13"):
        found = interpreters.find_python(replace(node.settings, python=wanted))
        assert found is None or found[0] != python


def test_what_uv_fetched_is_found_where_it_is(node: Node) -> None:
    """Not by the link of its minor version, which leads elsewhere after the next fetch; the newest first."""
    home = node.root / "python"
    ninth = fake_python(home / "cpython-3.98.9-linux-x86_64-gnu", "3.98.9")
    twelfth = fake_python(home / "cpython-3.98.12-linux-x86_64-gnu", "3.98.12")
    link = home / "cpython-3.98-linux-x86_64-gnu"
    link.symlink_to(ninth.parents[1])

    def find(wanted: str) -> tuple[Path, str] | None:
        return interpreters.find_python(replace(node.settings, python=wanted))

    assert find("3.98") == (twelfth, "3.98.12")
    assert find("3.98.9") == (ninth, "3.98.9")
    assert find(str(link / "bin" / "python3.98")) == (ninth, "3.98.9")
    # The rest of a power cut is passed over.
    twelfth.write_text("")
    assert find("3.98") == (ninth, "3.98.9")


# --- with the real uv --------------------------------------------------------------------------------------------

KEY = f"{platform.machine()}-gnu"


@pytest.fixture
def real(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    uv = node.root / "uv-1.0" / "bin" / "uv"
    uv.unlink()
    uv.symlink_to(Path(sys.executable).with_name("uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return node


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, object]:
    """A lock of one wheel, and the options that install it from its directory."""
    place = tmp_path / "wheels"
    place.mkdir()
    wheel = place / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "thing.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"lock": f"thing==1.0 --hash=sha256:{digest}\n", "find_links": [str(place)], "offline": True}


def test_an_environment_keeps_the_python_that_it_was_built_with(real: Node, wheels: dict[str, object]) -> None:
    minor = PYTHON.rpartition(".")[0]
    home = real.root / "python" / f"cpython-{PYTHON}-linux-{KEY}"
    python = home / "bin" / f"python{minor}"
    python.parent.mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), python)
    (home / "lib").symlink_to(Path(sys.base_prefix, "lib"))
    link = real.root / "python" / f"cpython-{minor}-linux-{KEY}"
    link.symlink_to(home)
    built = real.ensure(python=str(link / "bin" / f"python{minor}"), **wheels)
    # As the next fetch of this minor version does.
    link.unlink()
    link.symlink_to(real.root / "python" / "elsewhere")
    environment = Path(built.target)
    assert os.readlink(environment / "bin" / "python") == str(python)
    assert f"home = {python.parent}\n" in (environment / "pyvenv.cfg").read_text()
    assert json.loads((environment / env.RECORD_FILE).read_text())["interpreter"] == str(python)
    assert real.ensure(python=str(python), **wheels).changed is False


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A list like uv's own, of 3.98.12 on this node, a 3.98.13 that nobody serves, and a 3.98.14 that is not there."""
    fake_python(tmp_path / "packed", "3.98.12")
    library = tmp_path / "packed" / "lib" / "python3.98"
    library.mkdir(parents=True)
    # uv corrects paths in it.
    configuration = "# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"
    (library / f"_sysconfigdata__linux_{platform.machine()}-linux-gnu.py").write_text(configuration)
    archive = tmp_path / "cpython.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "packed", "python")
    entries = {}
    for patch, url in (
        (12, f"file://{archive}"),
        (13, "https://127.0.0.1:9/x.tar.gz"),
        (14, "file:///nonexistent.tar.gz"),
    ):
        entries[f"cpython-3.98.{patch}-linux-{KEY}"] = {
            **{"name": "cpython", "major": 3, "minor": 98, "patch": patch, "prerelease": "", "variant": None},
            **{"os": "linux", "arch": {"family": platform.machine(), "variant": None}, "libc": "gnu", "build": None},
            **{"url": url, "sha256": None},
        }
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(entries))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", f"file://{listed}")
    return str(listed)


def fetch(node: Node, version: str, **changes: object) -> tuple[Path, str]:
    settings = replace(node.settings, python=version, **changes)
    with tools.building(settings) as runner:
        return interpreters.install_python(settings, runner, tools.ensure_uv(settings, runner))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("scheme", ["file://", ""])
def test_python_comes_from_files_offline_too(real: Node, pythons: str, monkeypatch, scheme: str, offline: bool) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", f"{scheme}{pythons}")
    python = real.root / "python" / f"cpython-3.98.12-linux-{KEY}" / "bin" / "python3.98"
    assert fetch(real, "3.98.12", offline=offline) == (python, "3.98.12")
    open_to_all = [path for path in real.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert open_to_all == []


@pytest.mark.parametrize(
    ("version", "offline", "words"),
    [
        (
            "3.98.99",
            False,
            ("uv knows no such version", "No download found for request: cpython-3.98.99", "uv-*/bin/uv"),
        ),
        ("3.98.13", False, ("UV_PYTHON_INSTALL_MIRROR", "set python_env_python to its path", "Connection refused")),
        ("3.98.14", False, ("UV_PYTHON_INSTALL_MIRROR", "/nonexistent.tar.gz")),
        ("3.98.13", True, ("python_env_offline is set", "https://127.0.0.1:9/x.tar.gz")),
    ],
)
def test_a_failed_fetch_of_python_names_its_own_mend(real: Node, pythons: str, version, offline, words) -> None:
    with pytest.raises(env.EnvError) as caught:
        fetch(real, version, offline=offline)
    text = str(caught.value)
    assert text.startswith(f"fetching Python {version}: ")
    assert [word for word in words if word not in text] == []
    assert "index" not in text


@pytest.fixture
def archive(pythons: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Python 3.98.12, packed as it is published; uv's own list leads nowhere."""
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", "file:///nonexistent.json")
    packed = tmp_path / "cpython.tar.gz"
    return f"{packed}#sha256={hashlib.sha256(packed.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("offline", [False, True])
def test_python_comes_from_an_archive(real: Node, archive: str, offline: bool) -> None:
    python = real.root / "python" / f"cpython-3.98.12-linux-{KEY}" / "bin" / "python3.98"
    assert fetch(real, "3.98.12", python_archive=archive, offline=offline) == (python, "3.98.12")


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        ("3.98.12", lambda text: text[:-64] + "0" * 64, "its hash differs"),
        ("3.98.12", lambda text: text[:-72], "ADDRESS#sha256=HASH"),
        ("3.98.12", lambda text: "/nonexistent/x.tar.gz" + text[-72:], "the archive cannot be read"),
        ("3.98", lambda text: text, "name the full version"),
        ("3.98.11", lambda text: text, "holds another Python than 3.98.11"),
    ],
)
def test_an_archive_that_does_not_fit_is_named(real: Node, archive: str, version: str, change, words: str) -> None:
    with pytest.raises(env.EnvError, match=words):
        fetch(real, version, python_archive=change(archive))
    assert not list((real.root / "python").glob("cpython-*/bin"))


# --- the role, on nodes that are directories of this machine -------------------------------------------------------


def roll_back(tmp_path: Path, nodes: dict[str, Node], *arguments: str) -> subprocess.CompletedProcess[str]:
    plan = {"user": "x", "shared_dir": str(tmp_path / "shared"), "head": "a", "builder": "a", "addresses": []}
    lock = tmp_path / "lock.txt"
    lock.write_text(lock_of(ray="2.61.0"))
    uv = tmp_path / "uv.txt"
    uv.write_text("")
    common = {
        **{"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False},
        **{"python_env_profile": "custom", "python_env_lock": str(lock), "python_env_uv_lock": str(uv)},
        **{"python_env_uv_version": "1.0", "python_env_python": sys.executable, "python_env_packages": []},
        "python_env_imports": [],
    }
    hosts = {
        name: {"python_env_root": str(node.root), "python_env_venv": str(node.settings.venv)}
        for name, node in nodes.items()
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    tasks = [
        {"ansible.builtin.set_fact": {"cluster_plan": plan, "cacheable": True}},
        {"ansible.builtin.include_role": {"name": "metalray.cluster.python_env"}},
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip


def test_all_nodes_go_back_together_or_none_does(tmp_path: Path) -> None:
    nodes = {}
    for name in "abc":
        (tmp_path / name).mkdir()
        nodes[name] = Node(tmp_path / name)
    old = {name: node.ensure().target for name, node in nodes.items() if name != "c"}
    new = {name: node.ensure(lock=lock_of(ray="2.61.0")).target for name, node in nodes.items()}

    def leads() -> dict[str, str]:
        return {name: os.readlink(node.settings.venv) for name, node in nodes.items()}

    rollback = ["-e", '{"python_env_rollback": true}']
    refused = roll_back(tmp_path, nodes, *rollback)
    assert refused.returncode != 0 and "keeps no environment of another lock" in refused.stdout, refused.stdout
    assert leads() == new
    # One that is there, but is another than the rest keep.
    nodes["c"].ensure(lock=lock_of(ray="2.5.0"))
    nodes["c"].ensure(lock=lock_of(ray="2.61.0"))
    refused = roll_back(tmp_path, nodes, *rollback)
    assert refused.returncode != 0 and "the nodes keep different environments" in refused.stdout, refused.stdout
    assert leads() == new
    del nodes["c"], new["c"]
    done = roll_back(tmp_path, nodes, *rollback)
    assert done.returncode == 0 and leads() == old, done.stdout + done.stderr
    assert len(re.findall(r"changed=1 ", done.stdout)) == 2, done.stdout
    again = roll_back(tmp_path, nodes, *rollback)
    assert again.returncode == 0 and len(re.findall(r"changed=0 ", again.stdout)) == 2, again.stdout
    forth = roll_back(tmp_path, nodes, "-e", "python_env_wheelhouse=")
    assert forth.returncode == 0 and leads() == new, forth.stdout + forth.stderr
