# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys from the argument specs, and what playbooks/vars/awx.yml names: that all of it exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.metalray.cluster.plugins.module_utils._awx_survey import NoQuestion, plain, question, survey
from ansible_collections.metalray.cluster.plugins.plugin_utils._settings import read_specs
from awx_server import DATA, Awx, check_credential_type, check_survey

ROOT = Path(__file__).resolve().parents[2]
SPECS = read_specs(ROOT / "roles")


SURVEYS = {
    **{template["id"]: template["survey"] for template in DATA["awx_job_templates"] if "survey" in template},
    "workflow": DATA["awx_workflow"]["survey"],
}


@pytest.mark.parametrize("variable", SPECS)
def test_every_variable_is_a_question_that_awx_takes_or_is_refused_by_name(variable):
    option = SPECS[variable]
    if option["type"] in ("dict", "raw") or (option["type"] == "list" and not option.get("choices")):
        with pytest.raises(NoQuestion, match=f"^{variable} is of type {option['type']}"):
            question(variable, option)
        return
    asked = question(variable, option)
    check_survey({"name": "one", "description": "", "spec": [asked]})
    # A default or a duty to answer would win over the inventory.
    assert "default" not in asked and asked["required"] is False
    assert asked["question_name"] and f"[{variable}, {option['type']}" in asked["question_description"]
    assert "(" not in re.sub(r"\([^()]*\)", "", asked["question_name"])
    if option.get("choices"):
        assert asked["choices"] == option["choices"]
    if option.get("default") not in (None, "", True, False):
        assert f"{option['default']} where the inventory" in asked["question_description"]


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ({"type": "bool"}, {"type": "multiplechoice", "choices": ["true", "false"]}),
        ({"type": "int"}, {"type": "integer"}),
        ({"type": "float"}, {"type": "float"}),
        ({"type": "path"}, {"type": "text"}),
        ({"type": "str"}, {"type": "text"}),
        ({}, {"type": "text"}),
        ({"type": "str", "no_log": True}, {"type": "password"}),
        ({"type": "str", "choices": ["a", "b"]}, {"type": "multiplechoice", "choices": ["a", "b"]}),
        ({"type": "list", "elements": "str", "choices": ["a"]}, {"type": "multiselect", "choices": ["a"]}),
    ],
    ids=str,
)
def test_types(option: dict[str, Any], wanted: dict[str, Any]):
    asked = question("some_name", {"description": "What for.", **option})
    assert {key: asked[key] for key in wanted} == wanted
    assert ("choices" in asked) == ("choices" in wanted)


@pytest.mark.parametrize("option", [{"type": "int", "choices": [1, 2]}, {"type": "dict"}, {"type": "list"}], ids=str)
def test_what_no_answer_could_match_is_refused(option):
    with pytest.raises(NoQuestion, match="some_name"):
        question("some_name", option)


def test_the_question_is_the_first_sentence_and_its_markup_is_gone():
    asked = question(
        "some_name",
        {
            "type": "int",
            "default": 3,
            "description": ["Seconds for C(apt\\(8\\)). Or V(0).", "See L(here,https://x.example/)."],
        },
    )
    assert asked["question_name"] == "Seconds for apt(8)"
    assert asked["question_description"] == "Or 0. See here. [some_name, int, 3 where the inventory says nothing]"
    assert plain("O(a=b), RV(c), U(https://x.example/), not NFS(4)") == "a=b, c, https://x.example/, not NFS(4)"


def test_a_description_that_begins_with_a_choice_is_no_question():
    asked = question("firewall_state", {"type": "str", "choices": ["on", "off"], "description": "V(off) opens."})
    assert asked["question_name"] == "Firewall state" and asked["question_description"].startswith("off opens. [")


@pytest.mark.parametrize(
    ("variables", "says"), [(["nfs_sever_threads"], "no role has"), (["ray_port", "ray_port"], "twice")]
)
def test_a_survey_that_cannot_be_asked_is_refused(variables, says):
    with pytest.raises(NoQuestion, match=says):
        survey("Some", variables, SPECS)


@pytest.mark.parametrize("name", SURVEYS)
def test_the_surveys_keep_to_awx_s_rules(name):
    check_survey(survey(name, SURVEYS[name], SPECS))


@pytest.mark.parametrize(
    "variable", sorted({v for asked in SURVEYS.values() for v in asked if SPECS[v]["type"] == "bool"})
)
def test_an_answer_of_false_is_not_taken_for_a_text(variable):
    """It arrives as the word: modules and the controller's plugins make a boolean of it, a condition must do so itself."""
    for path in [
        *ROOT.glob("roles/*/tasks/*.yml"),
        *ROOT.glob("roles/*/templates/*"),
        *ROOT.glob("playbooks/**/*.yml"),
    ]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(rf"\b{variable}\b", line) and re.search(r"\b(when|if|that|not|and|or)\b", line):
                assert re.search(rf"\b{variable} \| bool\b", line), f"{path}: {line}"


def plays(path: Path) -> Iterator[dict[str, Any]]:
    for play in yaml.safe_load(path.read_text(encoding="utf-8")):
        imported = play.get("ansible.builtin.import_playbook")
        yield from plays(path.parent / imported) if imported else [play]


def test_every_playbook_tag_and_node_that_is_named_exists():
    tags = {tag for play in plays(ROOT / "playbooks/site.yml") for tag in play["tags"]} - {"always"}
    awx = Awx(ROOT)
    awx.cloned.add(0)
    playbooks = awx.playbooks({"id": 0})
    ids = [template["id"] for template in DATA["awx_job_templates"]]
    assert len(set(ids)) == len(ids)
    for template in DATA["awx_job_templates"]:
        assert template["playbook"] in playbooks
        assert template.get("tags", "ray") in tags
        assert set(template.get("prompt", [])) <= {"limit", "tags", "job_type", "diff_mode"}
    # A role's name is a tag too; every stage has its own template. The stage ray writes the secrets too.
    stages = [template["tags"] for template in DATA["awx_job_templates"] if "tags" in template]
    assert set(stages) == tags - {"nfs_server", "nfs_client"}
    nodes = DATA["awx_workflow"]["nodes"]
    assert {node["node"] for node in nodes if "approval" not in node} == set(stages) - {"secrets"}
    order = [node["node"] for node in nodes]
    assert len(set(order)) == len(order)
    assert order.index("versions") < order.index("approval") < order.index("dataset") < order.index("training")


def test_the_credential_types_give_the_environment_what_the_jobs_read():
    wanted = {"WANDB_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "HF_USERNAME"}
    given = set()
    for made in DATA["awx_credential_types"]:
        check_credential_type({"kind": "cloud", **made}, None)
        given |= set(made["injectors"]["env"])
    assert given == wanted
    types = {"Machine", *(made["name"] for made in DATA["awx_credential_types"])}
    for credential in DATA["awx_credentials"]:
        assert credential["type"] in types
