# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of the shipped locks (tests/locks.py) says what is wrong with one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("tests_locks", Path(__file__).resolve().parents[1] / "locks.py")
locks = importlib.util.module_from_spec(_SPEC)
sys.modules["tests_locks"] = locks
_SPEC.loader.exec_module(locks)

TARGET = locks.Target("3.12.9", 35)
A, B, C = "a" * 64, "b" * 64, "c" * 64


def index(*files: tuple[str, str]) -> list[dict]:
    return [{"filename": name, "hashes": {"sha256": digest}} for name, digest in files]


FILES = index(
    ("thing-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", A),
    ("thing-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", B),
    ("thing-1.0.tar.gz", C),
    ("thing-2.0-py3-none-any.whl", "d" * 64),
)


def judged(hashes: str, version: str = "1.0", marker: str = "", built: frozenset[str] = frozenset()) -> str:
    words = " ".join(f"--hash=sha256:{digit * 64}" for digit in hashes)
    pins = locks.read_pins(f"# made\nthing=={version}{' ; ' + marker if marker else ''} \\\n    {words}\n")
    return "\n".join(locks.judge("x.txt", pins, {"thing": FILES}, TARGET, built))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hashes": "abc"}, ""),
        ({"hashes": "a"}, ""),
        ({"hashes": "abe"}, f"lists no file with the hash {'e' * 64}"),
        ({"hashes": "bc"}, "no file with a hash of the lock fits CPython 3.12.9, glibc 2.35"),
        ({"hashes": "c", "built": frozenset({"thing"})}, ""),
        ({"hashes": "a", "built": frozenset({"thing"})}, "no file with a hash of the lock fits"),
        ({"hashes": "ad"}, "has the hash of thing-2.0-py3-none-any.whl"),
        ({"hashes": "b", "marker": "python_full_version >= '3.13'"}, ""),
        ({"hashes": "d", "version": "2.0"}, ""),
    ],
)
def test_hashes_against_the_index(given, words):
    assert words in judged(**given) and bool(words) == bool(judged(**given))


@pytest.mark.parametrize(
    ("filename", "suits"),
    [
        ("x-1-py3-none-any.whl", True),
        ("x-1-py2.py3-none-any.whl", True),
        ("x-1-cp310-abi3-manylinux2014_x86_64.whl", True),
        ("x-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("x-1-cp312-cp312-manylinux_2_36_x86_64.whl", False),
        ("x-1-cp312-cp312-musllinux_1_2_x86_64.whl", False),
        ("x-1-cp312-cp312-manylinux_2_17_aarch64.whl", False),
        ("x-1-cp313-cp313t-manylinux_2_17_x86_64.whl", False),
        ("x-1.tar.gz", False),
    ],
)
def test_which_files_fit(filename, suits):
    assert locks.fits(filename, TARGET.tags()) is suits


def test_what_a_resolution_has_beyond_the_lock():
    pins = locks.read_pins(f"one==1.0 --hash=sha256:{A}\ntwo @ git+https://git.example/two@{'0' * 40}\n")
    resolved = "one==1.0\n    # via two\ntwo @ git+https://git.example/two@0000\n"
    assert locks.strays("x.txt", resolved, pins, TARGET) == []
    assert locks.strays("x.txt", f"{resolved}three==3.0  # via one\n", pins, TARGET) == [
        "x.txt: does not name what CPython 3.12.9, glibc 2.35 needs: three==3.0 # via one"
    ]


def test_every_lock_of_a_profile_is_checked():
    shipped = {
        str(path.relative_to(locks.ROOT)) for path in (locks.ROOT / "roles/python_env/files/locks").glob("*.txt")
    }
    assert shipped <= {lock.path for lock in locks.LOCKS}
