# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the secrets' file: what is in it, what systemd reads from it, and that no value is anywhere else."""

from __future__ import annotations

import getpass
import json

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._ray import mask, secret_values
from ansible_collections.metalray.cluster.plugins.module_utils._secrets import check, merge, parse

CANARY = 'c4nary "with" $igns \\ and `more`'


def test_what_is_written_is_read_back():
    secrets = {"WANDB_API_KEY": CANARY, "HF_TOKEN": "hf_x#y'z", "PIN": 20}
    assert parse(merge("", secrets)) == {**secrets, "PIN": "20"}


@pytest.mark.parametrize("line", ["A=b c", "A='b c'", 'A="b c"', "  A=b c  "])
def test_a_file_by_hand_is_read_as_systemd_does(line):
    assert parse(f"# by hand\n\n{line}\n") == {"A": "b c"}


def test_one_without_a_value_stays_one_not_named_goes_and_none_at_all_leaves_the_file():
    text = merge("", {"A": "aaaa", "B": "bbbb", "C": "cccc"})
    assert parse(merge(text, {"A": "", "B": None, "D": "dddd"})) == {"A": "aaaa", "B": "bbbb", "D": "dddd"}
    assert merge(text, {}) == text
    assert merge("", {}) == "" == merge("", {"A": ""})


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        (CANARY, "must be a mapping"),
        ({"A-B": CANARY}, "none of an environment variable"),
        ({"RAY_ADDRESS": CANARY}, "RAY_ADDRESS, which Ray's service needs"),
        ({"PATH": CANARY}, "PATH, which Ray's service needs"),
        ({"A": [CANARY]}, "A with a value that is no text"),
        ({"A": f"{CANARY}\n"}, "A with a line break"),
    ],
)
def test_what_cannot_be_is_refused_without_its_value(secrets, says):
    (problem,) = check(secrets)
    assert says in problem and "c4nary" not in problem


def test_a_value_in_a_job_s_line_is_masked_however_it_was_quoted():
    secrets = secret_values([merge("", {"WANDB_API_KEY": CANARY})])
    assert mask(f"WANDB_API_KEY={CANARY}.", secrets) == "WANDB_API_KEY=********."


def test_the_module_tells_names_alone_and_writes_for_the_owner_alone(run_module, tmp_path):
    path = tmp_path / "etc/secrets.env"
    options = {"path": str(path), "owner": getpass.getuser(), "secrets": {"WANDB_API_KEY": CANARY}}
    for check_mode in (True, False):
        told = run_module("node_secrets", check=check_mode, **options)
        assert told["changed"] and told["names"] == ["WANDB_API_KEY"] and told["paths"] == [str(path)]
        assert "c4nary" not in json.dumps(told)
        assert path.exists() is not check_mode
    assert path.stat().st_mode & 0o777 == 0o600
    assert not run_module("node_secrets", **options)["changed"]
    path.chmod(0o644)
    assert run_module("node_secrets", **{**options, "secrets": {}})["changed"]
    assert path.stat().st_mode & 0o777 == 0o600 and parse(path.read_text())["WANDB_API_KEY"] == CANARY


def test_without_secrets_there_is_no_file(run_module, tmp_path):
    told = run_module("node_secrets", path=str(tmp_path / "secrets.env"), owner=getpass.getuser(), secrets={})
    assert not told["changed"] and told["names"] == [] and not list(tmp_path.iterdir())
