# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheelhouse, with the real uv, an index on this machine, and packages that are made here."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _detached as detached
from ansible_collections.metalray.cluster.plugins.module_utils import _fetch as fetching
from ansible_collections.metalray.cluster.plugins.module_utils import _lock as locks
from ansible_collections.metalray.cluster.plugins.module_utils import _python_env as env
from ansible_collections.metalray.cluster.plugins.module_utils import _wheelhouse as house
from ansible_collections.metalray.cluster.plugins.module_utils._versions import RECORD_FILE, read_record

pytestmark = pytest.mark.tools

UV = Path(sys.executable).with_name("uv")
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# A build backend that needs nothing: it leaves a trace of each build, and no two of its wheels are the same.
BACKEND = """
import os, time, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open({log!r}, "a") as log:
        log.write("{name}\\n")
    import helper
    file = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, file), "w") as archive:
        archive.writestr("{name}.py", "made = " + repr((helper.value, time.time_ns())))
        info = "{name}-{version}.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\nRequires-Dist: helper\\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "RECORD", "{name}.py,,\\n")
    return file
"""


class Site:
    """A node, an index that it reaches over HTTP, and a shared directory."""

    def __init__(self, path: Path, url: str, served: Path) -> None:
        self.path, self.url, self.served = path, url, served
        self.log = path / "builds"
        self.shared = path / "shared"
        self.shared.mkdir()
        self.root = path / "opt"
        home = self.root / "uv-1.0"
        (home / "bin").mkdir(parents=True)
        (home / "bin/uv").symlink_to(UV)
        (home / "bin/python").symlink_to(sys.executable)
        (home / RECORD_FILE).write_text("{}")
        uv = self.wheel("uv", "1.0")
        self.settings = house.Settings(
            lock_name="mine.txt",
            path=self.shared / "wheels",
            uv_version="1.0",
            uv_lock=f"uv==1.0 --hash=sha256:{sha256(uv)}\n",
            root=self.root,
            python=sys.executable,
            index_url=f"{url}/simple",
            timeout=100,
        )

    def put(self, name: str, file: str, data: bytes) -> Path:
        place = self.served / "simple" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(data)
        return place / file

    def wheel(self, name: str, version: str, *, tag: str = "py3-none-any", file: str = "", pad: int = 0) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            info = f"{name}-{version}.dist-info"
            archive.writestr(f"{name}.py", f"value = {version!r}\n#{'x' * pad}")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            tags = "".join(f"Tag: {python}-{tag.split('-', 1)[1]}\n" for python in tag.split("-")[0].split("."))
            archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n{tags}")
            archive.writestr(f"{info}/RECORD", f"{name}.py,,\n")
        return self.put(name, file or f"{name}-{version}-{tag}.whl", buffer.getvalue())

    def tree(self, place: Path, name: str, version: str) -> None:
        place.mkdir(parents=True)
        (place / "backend.py").write_text(BACKEND.format(name=name, version=version, log=str(self.log)))
        (place / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "{version}"\n'
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        (place / "PKG-INFO").write_text(f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n")

    def sdist(self, name: str, version: str) -> Path:
        self.tree(self.path / f"{name}-{version}", name, version)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.add(self.path / f"{name}-{version}", f"{name}-{version}")
        return self.put(name, f"{name}-{version}.tar.gz", buffer.getvalue())

    def lock(self, *files: Path) -> str:
        lines = []
        for file in files:
            name, version = re.fullmatch(r"(\w+)-([^-]+?)(?:\.tar\.gz|-.*)", file.name).groups()
            lines.append(f"{name}=={version} --hash=sha256:{sha256(file)}\n")
        return "".join(lines)

    def ensure(self, lock: str, check_mode: bool = False, **changes: object) -> house.Outcome:
        return house.ensure(replace(self.settings, lock=lock, **changes), check_mode)

    def asked(self) -> list[str]:
        done = list(Quiet.asked)
        Quiet.asked.clear()
        return done

    @property
    def builds(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """An index of files. ``cut`` ends the first answer for a file after so many bytes, ``swapped`` is served instead of it,
    ``account`` is asked for."""

    asked: ClassVar[list[str]] = []
    cut: ClassVar[dict[str, int]] = {}
    swapped: ClassVar[dict[str, bytes]] = {}
    account: ClassVar[list[str]] = []

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        file = Path(self.translate_path(self.path))
        if self.account and self.headers.get("Authorization") not in self.account:
            self.send_error(401)
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        if file.is_dir():
            links = "".join(f'<a href="{one.name}#sha256={sha256(one)}">{one.name}</a>' for one in file.iterdir())
            data = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        elif file.is_file():
            data = self.swapped.get(file.name) or file.read_bytes()
        else:
            self.send_error(404)
            return
        limit = self.cut.pop(file.name, len(data))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", "text/html" if file.is_dir() else "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:limit])
        self.asked[-1] += f" from {begin}" if begin else ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    served = tmp_path / "served"
    served.mkdir()
    for kept in (Quiet.asked, Quiet.cut, Quiet.swapped, Quiet.account):
        kept.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(fetching, "_PAUSE_SECONDS", 0.01)
    yield Site(tmp_path, f"http://127.0.0.1:{server.server_address[1]}", served)
    server.shutdown()
    server.server_close()


def test_fetched_once_and_then_nothing_is_asked(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"), site.wheel("helper", "2.0"))
    first = site.ensure(lock)
    place = Path(first.path)
    assert first.changed and sorted(first.fetched) == sorted(first.files)
    assert {entry["name"] for entry in first.files.values()} == {"one", "helper", "uv"}
    assert place.parent == site.shared / "wheels"
    for file, entry in json.loads((place / "manifest.json").read_text()).items():
        assert (sha256(place / file), entry["origin"]) == (entry["sha256"], "index")
        assert (place / file).stat().st_mode & 0o777 == 0o644
    # The lock of what is there is the way in for nodes, and uv is no package of it.
    assert [item.name for item in locks.parse_lock(first.lock, "")] == ["helper", "one"]
    site.asked()
    second = site.ensure(lock)
    assert (second.changed, second.lock, second.fetched) == (False, first.lock, [])
    assert site.asked() == []
    assert site.ensure("# made anew\n" + lock).changed is False


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _tampered(path: Path) -> None:
    """Same size, same times: as whoever may write there would do it."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _replaced(path: Path) -> None:
    path.with_name("aside").write_bytes(path.read_bytes()[::-1])
    os.replace(path.with_name("aside"), path)


@pytest.mark.parametrize("change", [Path.unlink, _cut_short, _tampered, _replaced])
def test_what_is_no_longer_as_it_was_is_fetched_again_and_nothing_else(site: Site, change) -> None:
    lock = site.lock(site.wheel("one", "1.0"), site.wheel("helper", "2.0"))
    first = site.ensure(lock)
    (file,) = (file for file in first.files if file.startswith("one-"))
    change(Path(first.path) / file)
    again = site.ensure(lock)
    assert (again.changed, again.fetched, again.lock) == (True, [file], first.lock)
    assert sha256(Path(first.path) / file) == first.files[file]["sha256"]
    assert site.ensure(lock).changed is False


def test_a_manifest_that_somebody_wrote_is_not_believed(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    first = site.ensure(lock)
    (file,) = (file for file in first.files if file.startswith("one-"))
    wheel = Path(first.path) / file
    _tampered(wheel)
    manifest = Path(first.path) / "manifest.json"
    text = json.loads(manifest.read_text())
    text[file]["sha256"] = sha256(wheel)
    manifest.write_text(json.dumps(text))
    assert site.ensure(lock).lock == first.lock
    assert sha256(wheel) == first.files[file]["sha256"]


def test_an_interrupted_fetch_goes_on_where_it_broke_off(site: Site) -> None:
    large = site.wheel("large", "1.0", pad=200_000)
    lock = site.lock(large)
    Quiet.cut[large.name] = 150_000
    outcome = site.ensure(lock)
    assert sha256(Path(outcome.path) / large.name) == sha256(large)
    assert [line.rpartition("/")[2] for line in site.asked() if "large-" in line] == [
        large.name,
        f"{large.name} from 150000",
    ]


def test_a_run_that_failed_leaves_what_it_had_and_a_changed_file_is_refused(site: Site) -> None:
    one, other = site.wheel("one", "1.0"), site.wheel("other", "1.0", pad=9000)
    lock = site.lock(one, other)
    Quiet.swapped[other.name] = other.read_bytes()[:-1] + b"x"
    with pytest.raises(locks.EnvError, match=r"hash differs(?s:.*)other-1\.0"):
        site.ensure(lock)
    place = next((site.shared / "wheels").iterdir())
    while one.name not in os.listdir(place):
        with pytest.raises(locks.EnvError):
            site.ensure(lock)
    assert other.name not in os.listdir(place)
    Quiet.swapped.clear()
    site.asked()
    assert other.name in site.ensure(lock).fetched
    assert not [line for line in site.asked() if one.name in line]


def test_a_new_lock_fetches_only_what_is_new(site: Site) -> None:
    one = site.wheel("one", "1.0")
    first = site.ensure(site.lock(one, site.wheel("helper", "1.0")))
    second = site.ensure(site.lock(one, site.wheel("helper", "2.0")))
    assert second.path != first.path
    assert second.fetched == ["helper-2.0-py3-none-any.whl"]
    third = site.ensure(site.lock(one, site.wheel("helper", "3.0")))
    # One is kept beside it, and what another made there is not touched.
    assert third.removed == [first.path] and not Path(first.path).exists() and Path(second.path).exists()


def test_an_index_with_an_account_gets_it_and_nobody_else_sees_it(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    Quiet.account.append("Basic " + base64.b64encode(b"me:s:cret").decode())
    outcome = site.ensure(lock, index_url=site.settings.index_url.replace("://", "://me:s%3Acret@"))
    assert len(outcome.fetched) == 2
    told = [path.read_text() for path in (Path(outcome.path) / "manifest.json", *site.root.glob("wheels/*.json"))]
    assert not [text for text in told if "cret" in text]
    with pytest.raises(locks.EnvError, match=r"the package index refused|not in the index") as caught:
        site.ensure(
            lock + site.lock(site.wheel("other", "1.0")), index_url=site.settings.index_url.replace("://", "://me:no@")
        )
    assert "me:no" not in str(caught.value)


def test_the_wheel_for_this_python_that_needs_the_oldest_glibc(site: Site) -> None:
    names = [f"one-1.0-{TAG}-{TAG}-manylinux_2_{minor}_x86_64.whl" for minor in (28, 17)]
    names += [f"one-1.0-{TAG}-abi3-manylinux_2_5_x86_64.whl", "one-1.0-py3-none-any.whl"]
    assert sorted(names, key=lambda file: house.preference(file, platform.python_version())) == [
        names[1], names[0], names[2], names[3]
    ]  # fmt: skip


def test_what_has_no_wheel_is_built_once_and_never_without_leave(site: Site) -> None:
    helper = site.wheel("helper", "2.0")
    lock = site.lock(site.sdist("slow", "1.5"), helper)
    with pytest.raises(locks.EnvError, match=r"slow 1\.5.*python_env_allow_builds"):
        site.ensure(lock)
    assert site.builds == []
    asked = site.ensure(lock, allow_builds=True, build=False)
    assert (asked.to_build, asked.lock, site.builds) == (["slow"], "", [])
    built = site.ensure(lock, allow_builds=True)
    assert (built.built, site.builds) == (["slow-1.5-py3-none-any.whl"], ["slow"])
    assert site.ensure(lock, allow_builds=True).changed is False
    # A package that it does not depend on changes: what was built is used again.
    other = site.ensure(lock + site.lock(site.wheel("other", "1.0")), allow_builds=True)
    assert (other.built, site.builds) == ([], ["slow"])
    assert built.files["slow-1.5-py3-none-any.whl"]["sha256"] in other.lock
    # One that it does depend on, and it is built for that one.
    newer = site.ensure(
        site.lock(site.served / "simple/slow/slow-1.5.tar.gz", site.wheel("helper", "3.0")), allow_builds=True
    )
    assert (newer.built, site.builds) == (["slow-1.5-py3-none-any.whl"], ["slow", "slow"])


def test_a_built_wheel_that_somebody_changed_is_built_again(site: Site) -> None:
    lock = site.lock(site.sdist("slow", "1.5"), site.wheel("helper", "2.0"))
    first = site.ensure(lock, allow_builds=True)
    _tampered(Path(first.path) / first.built[0])
    again = site.ensure(lock, allow_builds=True)
    assert again.built == first.built and site.builds == ["slow", "slow"]
    assert sha256(Path(again.path) / again.built[0]) in again.lock


def test_a_build_has_the_packages_of_the_lock_and_no_others(site: Site) -> None:
    site.wheel("helper", "2.0")
    with pytest.raises(locks.EnvError, match=r"not in the lock(?s:.*)No module named 'helper'"):
        site.ensure(site.lock(site.sdist("slow", "1.5")), allow_builds=True)


def test_a_commit_is_built_once_from_its_subdirectory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.tree(site.path / "repository/part/slow", "slow", "2.5")

    def git(*words: str) -> str:
        command = ["git", "-C", str(site.path / "repository"), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    # The lock names it as production does; git is told where it is.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{site.path}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://git.example/team/")
    line = f"slow @ git+https://git.example/team/repository@{commit}#subdirectory=part/slow\n"
    lock = line + site.lock(site.wheel("helper", "2.0"))
    built = site.ensure(lock, allow_builds=True)
    assert built.built == ["slow-2.5-py3-none-any.whl"]
    assert commit in built.files[built.built[0]]["source"]
    assert site.ensure(lock, allow_builds=True).changed is False
    assert site.builds == ["slow"]
    with pytest.raises(locks.EnvError, match=r"fetching slow at 0000.*has this commit"):
        site.ensure(lock.replace(commit, "0" * 40), allow_builds=True)


def test_a_given_wheel_stands_for_the_lock_s_entry_under_its_own_name(site: Site) -> None:
    """As release pages name them: more in the file's name than in the wheel, which uv refuses."""
    lock = site.lock(site.sdist("slow", "1.5"))
    wheel = site.wheel("slow", "1.5", file="slow-1.5+cu12torch2.7cxx11abiTRUE-py3-none-any.whl")
    elsewhere = site.path / wheel.name
    wheel.rename(elsewhere)
    given = f"{elsewhere}#sha256={sha256(elsewhere)}"
    outcome = site.ensure(lock, wheels=[given])
    assert outcome.files["slow-1.5-py3-none-any.whl"]["origin"] == "given"
    assert outcome.lock == f"slow==1.5 --hash=sha256:{sha256(elsewhere)}\n"
    assert site.builds == [] and site.ensure(lock, wheels=[given]).changed is False


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("/w/slow-1.5-py3-none-any.whl", "ADDRESS#sha256=HASH"),
        (f"/w/slow-1.6-py3-none-any.whl#sha256={'0' * 64}", "has slow 1.5"),
        (f"/w/other-1.5-py3-none-any.whl#sha256={'0' * 64}", "has no other"),
        (f"w/slow-1.5-py3-none-any.whl#sha256={'0' * 64}", "begins with '/'"),
        (f"/w/slow-1.5.tar.gz#sha256={'0' * 64}", "of a .whl"),
        (f"/nonexistent/slow-1.5-py3-none-any.whl#sha256={'0' * 64}", "No such file"),
    ],
)
def test_a_given_wheel_that_does_not_fit_is_named(site: Site, given: str, words: str) -> None:
    with pytest.raises(locks.EnvError, match=re.escape(words)):
        site.ensure(site.lock(site.sdist("slow", "1.5")), wheels=[given])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": Path("/nonexistent/shared/wheels")}, "--tags nfs"),
        ({"offline": True}, "python_env_find_links"),
        ({"index_url": "http://127.0.0.1:9/simple"}, "cannot be reached"),
        ({"user": "no-such-account"}, "cluster_user" if os.geteuid() == 0 else ""),
    ],
)
def test_bad_input_is_named(
    site: Site, changes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    lock = site.lock(site.wheel("one", "1.0"))
    if words:
        with pytest.raises(locks.EnvError, match=words):
            site.ensure(lock, **changes)


def test_room_is_looked_for_before_anything_is_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "free_bytes", lambda path: 10)
    monkeypatch.setattr(house, "_size_of_file", lambda address: 5_000)
    lock = site.lock(site.wheel("one", "1.0"))
    with pytest.raises(locks.EnvError, match=r"are free on the disk of .*wheels; 2 packages .* need"):
        site.ensure(lock)


def test_check_mode_says_what_would_come_and_writes_nothing(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"), site.wheel("helper", "2.0"))
    would = site.ensure(lock, check_mode=True)
    assert would.changed and would.fetched == ["helper 2.0", "one 1.0"]
    assert would.diff is not None and would.diff["after"] == "helper 2.0\none 1.0\n"
    assert os.listdir(site.shared) == [] and site.asked() == []
    does = site.ensure(lock)
    assert does.path == would.path
    assert site.ensure(lock, check_mode=True).changed is False


def test_jobs_are_as_many_as_memory_and_processors_bear() -> None:
    assert [house.jobs(64, size * 2**30) for size in (4, 20, 512, 2048)] == [1, 2, 56, 64]


def test_a_build_is_told_the_gpus_unless_the_user_says_otherwise(site: Site) -> None:
    settings = replace(site.settings, cuda_architectures=["9.0", "10.0"])
    told = house.build_environment(settings, {"PATH": "/bin"}, site.path)
    assert (told["TORCH_CUDA_ARCH_LIST"], told["FLASH_ATTN_CUDA_ARCHS"]) == ("9.0;10.0", "90;100")
    told = house.build_environment(
        settings, {"PATH": "/bin", "FLASH_ATTN_CUDA_ARCHS": "80", "MAX_JOBS": "3"}, site.path
    )
    assert (told["FLASH_ATTN_CUDA_ARCHS"], told["MAX_JOBS"]) == ("80", "3")


# --- nodes that install from it ------------------------------------------------------------------------------------


def install(site: Site, name: str, lock: str, outcome: house.Outcome, **changes: object) -> tuple[Path, env.Outcome]:
    root = site.path / name
    home = root / "uv-1.0"
    if not home.exists():
        (home / "bin").mkdir(parents=True)
        (home / "bin/uv").symlink_to(UV)
        (home / RECORD_FILE).write_text("{}")
    settings = env.Settings(
        lock=lock, lock_name="mine.txt", wheelhouse=outcome.path, wheels=outcome.lock, uv_version="1.0", root=root,
        venv=root / "venv", python=sys.executable, compile=False, index_url="http://127.0.0.1:9/simple",
    )  # fmt: skip
    return root / "venv", env.ensure(replace(settings, **changes))


def made(venv: Path) -> str:
    return subprocess.run(
        [venv / "bin/python", "-c", "import slow; print(slow.made)"], check=True, capture_output=True, text=True
    ).stdout


def test_every_node_has_the_very_build_and_another_build_is_another_environment(site: Site) -> None:
    lock = site.lock(site.sdist("slow", "1.5"), site.wheel("helper", "2.0"))
    first = site.ensure(lock, allow_builds=True)
    site.asked()
    nodes = [install(site, name, lock, first) for name in ("a", "b")]
    assert len({made(venv) for venv, _outcome in nodes}) == 1
    assert site.builds == ["slow"] and site.asked() == []
    (_venv, before), _other = nodes
    record = read_record(Path(before.target))
    assert record["wheels"] and install(site, "a", lock, first)[1].changed is False
    # Built anew, and so another: the same lock, and yet no equal environment.
    for path in (Path(first.path) / first.built[0], site.root / "wheels" / f"{Path(first.path).name}.json"):
        path.unlink()
    second = site.ensure(lock, allow_builds=True)
    _venv, after = install(site, "a", lock, second)
    assert after.built and after.hash == before.hash and after.target != before.target
    assert read_record(Path(after.target))["wheels"] != record["wheels"]


def test_with_wheels_of_the_index_an_environment_is_the_same_with_and_without_a_wheelhouse(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    _venv, without = install(
        site, "a", lock, site.ensure(lock), wheelhouse="", wheels="", index_url=site.settings.index_url
    )
    assert install(site, "a", lock, site.ensure(lock))[1].changed is False
    assert read_record(Path(without.target))["wheels"] == ""


def test_a_node_does_not_install_what_was_changed_on_the_way(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    outcome = site.ensure(lock)
    wheel = Path(outcome.path) / "one-1.0-py3-none-any.whl"
    wheel.write_bytes(site.wheel("one", "1.0", pad=3).read_bytes())
    with pytest.raises(locks.EnvError, match="hash differs"):
        install(site, "a", lock, outcome)


def test_a_node_without_the_shared_directory_says_so(site: Site) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    outcome = replace(site.ensure(lock), path="/nonexistent/wheels/x")
    with pytest.raises(locks.EnvError, match="--tags nfs"):
        install(site, "a", lock, outcome)


def test_a_commit_needs_a_wheelhouse(site: Site) -> None:
    lock = f"slow @ git+https://git.example/team/slow@{'a' * 40}\n"
    with pytest.raises(locks.EnvError, match=r"slow by a commit.*python_env_wheelhouse is empty"):
        env.ensure(
            env.Settings(lock=lock, lock_name="x", root=site.path / "a", venv=site.path / "a/venv"), check_mode=True
        )


# --- in the background ---------------------------------------------------------------------------------------------


def test_work_in_the_background_is_found_again_and_its_result_given_once(tmp_path: Path) -> None:
    place, gate = tmp_path / "runs", tmp_path / "gate"
    os.mkfifo(gate)

    def work(show) -> dict[str, object]:
        show("half way")
        return {"read": gate.read_text()}

    name = detached.start(place, "this", work)
    while detached.follow(place, name, 0).get("progress") != "half way":
        time.sleep(0.01)
    found = [detached.running(place, about) for about in ("this", "that")]
    gate.write_text("done")
    assert found == [name, ""]
    assert detached.follow(place, name, 60) == {"read": "done", "finished": True}
    assert os.listdir(place) == []


def test_work_that_was_killed_is_told_as_such(tmp_path: Path) -> None:
    def work(show) -> dict[str, object]:
        os.kill(os.getpid(), 9)
        return {}

    name = detached.start(tmp_path, "this", work)
    assert "was killed" in detached.follow(tmp_path, name, 60)["msg"]


def test_the_module_returns_at_once_where_nothing_is_to_be_done_and_follows_otherwise(site: Site, run_module) -> None:
    lock = site.lock(site.wheel("one", "1.0"))
    options = {
        **{
            name: str(getattr(site.settings, name))
            for name in ("path", "root", "python", "uv_version", "uv_lock", "index_url")
        },
        **{"lock": lock, "lock_name": "mine.txt"},
    }
    said = run_module("wheelhouse", **options, wait=60)
    assert said["finished"] and said["changed"] and said["lock"].startswith("one==1.0 ")
    assert run_module("wheelhouse", **options, wait=60)["changed"] is False
    assert run_module("wheelhouse", **options, follow="0" * 32, wait=1)["failed"]
