# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/awx.yml against the stand-in of awx_server.py: made, made again, taken away.

Left out where the collection awx.awx is missing, as from ansible 14 on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from awx_server import DATA, TOKEN, Awx, Request, Server, serve

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"WANDB_API_KEY": "hunter2-wandb", "HF_TOKEN": "hunter2-hf", "HF_USERNAME": "somebody"}
GIVEN = {
    "awx_project_url": "https://git.example.com/research/cluster.git",
    "awx_inventory_path": "inventories/example_2x8_h100/hosts.yml",
    "awx_image": "images.example.com/metalray-ee@sha256:0",
    "awx_notification_url": "https://hooks.example.com/hunter2-hook",
}
# Of the templates and of the workflow a part, which takes every way through the tasks: with a survey and without, with the tokens
# and without, before the approval and after. test_awx_survey.py looks at all of the data.
STAGES = ["ray", "approval", "summary"]
PART = {
    "awx_job_templates": [template for template in DATA["awx_job_templates"] if template["id"] in STAGES],
    "awx_workflow": {
        **DATA["awx_workflow"],
        "nodes": [node for node in DATA["awx_workflow"]["nodes"] if node["node"] in STAGES],
    },
}


@dataclass(frozen=True)
class Run:
    status: int
    text: str
    changed: int
    requests: list[Request]

    @property
    def writes(self) -> list[Request]:
        return [request for request in self.requests if request.method != "GET"]


def awx(server: Server, *arguments: str, **given: str) -> Run:
    server.log.clear()
    variables = ["-e", json.dumps(PART), *(f"-e{name}={value}" for name, value in {**GIVEN, **given}.items())]
    environment = {"CONTROLLER_HOST": server.url, "CONTROLLER_OAUTH_TOKEN": TOKEN, "ANSIBLE_NOCOLOR": "1", **SECRETS}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "playbooks/awx.yml", *variables, *arguments],
        cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    changed = re.search(r"changed=(\d+)", done.stdout)
    return Run(done.returncode, done.stdout + done.stderr, int(changed[1]) if changed else -1, list(server.log))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(ROOT) as running:
        yield running


@pytest.fixture(scope="module")
def dry(server) -> Run:
    return awx(server, "--check")


@pytest.fixture(scope="module")
def made(server, dry) -> Run:
    run = awx(server, "-vvv", "--diff")
    assert run.status == 0, run.text[-4000:]
    return run


@pytest.fixture(scope="module")
def again(server, made) -> Run:
    return awx(server)


def test_what_is_missing_is_said_before_anything_is_made(server):
    run = awx(server, awx_project_url="", awx_image="")
    assert run.status != 0 and run.requests == []
    assert "Nothing was changed: awx_project_url, awx_image must be given" in " ".join(run.text.split())


def test_a_dry_run_on_an_empty_awx_tells_the_first_of_it_and_writes_nothing(dry):
    assert dry.status == 0, dry.text[-4000:]
    assert dry.writes == [] and dry.changed > 0
    assert "A run would make or update 2 job templates" in " ".join(dry.text.split())


def test_everything_is_there_and_awx_has_refused_nothing(server, made):
    assert [request for request in made.requests if request.status >= 400] == []
    objects = server.awx
    assert set(objects.named("projects")) == set(objects.named("inventories")) == {"Ray cluster"}
    project = objects.named("projects")["Ray cluster"]
    assert project["scm_url"] == GIVEN["awx_project_url"] and project["scm_update_on_launch"]
    source = objects.named("inventory_sources")["Ray cluster"]
    assert (source["source"], source["source_project"]) == ("scm", project["id"])
    assert (ROOT / source["source_path"]).is_file() and source["update_on_launch"]
    assert objects.named("execution_environments")["Ray cluster"]["image"] == GIVEN["awx_image"]
    templates = objects.named("job_templates")
    assert len(templates) == 2
    for template in templates.values():
        assert template["execution_environment"] and template["inventory"] == source["inventory"]
        # The roles become root where they must, and nowhere else.
        assert template["become_enabled"] is False
        survey = objects.surveys.get(template["id"], {})
        assert template["survey_enabled"] == bool(survey)


def test_a_template_asks_for_what_its_stage_takes(server, made):
    template = server.awx.named("job_templates")["Ray cluster 09: Ray"]
    assert template["job_tags"] == "ray" and template["playbook"] == "site.yml"
    asked = {question["variable"]: question for question in server.awx.surveys[template["id"]]["spec"]}
    assert asked["ray_wait_timeout"]["type"] == "integer"
    assert "[ray_wait_timeout, int" in asked["ray_wait_timeout"]["question_description"]


def test_only_what_writes_the_keys_gets_them(server, made):
    for name, template in server.awx.named("job_templates").items():
        types = {
            server.awx.get("credential_types", credential["credential_type"])["name"]
            for credential in server.awx.linked("job_templates", template, "credentials")
        }
        tokens = {"Weights & Biases", "Anthropic", "Hugging Face"}
        assert types == ({"Machine", *tokens} if name.endswith(": Ray") else {"Machine"}), name


def nodes_in_order(objects: Awx) -> list[dict]:
    nodes = list(objects.tables["workflow_job_template_nodes"].values())
    kind = "workflow_job_template_nodes"
    followers = {node["id"]: objects.linked(kind, node, "success_nodes") for node in nodes}
    # A failure that something follows would count as dealt with.
    assert not any(objects.linked(kind, node, other) for node in nodes for other in ("failure_nodes", "always_nodes"))
    led_to = {follower["id"] for found in followers.values() for follower in found}
    (node,) = [node for node in nodes if node["id"] not in led_to]
    order = [node]
    while followers[node["id"]]:
        (node,) = followers[node["id"]]
        order.append(node)
    return order


def test_the_workflow_runs_the_stages_and_waits_before_training(server, made):
    order = nodes_in_order(server.awx)
    assert [node["identifier"] for node in order] == STAGES
    for node in order:
        runs = server.awx.get("unified_job_templates", node["unified_job_template"])
        if node["identifier"] == "approval":
            assert (runs["name"], runs["timeout"]) == ("Ray cluster: train?", 86400)
        else:
            assert runs["job_tags"] == node["identifier"]
    workflow = server.awx.named("workflow_job_templates")["Ray cluster: build, approve, train"]
    for event in ("started", "success", "error", "approvals"):
        told = server.awx.linked("workflow_job_templates", workflow, f"notification_templates_{event}")
        assert [hook["notification_configuration"]["url"] for hook in told] == [GIVEN["awx_notification_url"]]


def test_secrets_reach_awx_and_nobody_else(server, dry, made, again):
    credentials = server.awx.named("credentials")
    assert credentials["Ray cluster Weights & Biases"]["inputs"] == {"api_key": "hunter2-wandb"}
    assert credentials["Ray cluster Hugging Face"]["inputs"] == {"token": "hunter2-hf", "username": "somebody"}
    # Without a value it is made all the same, for somebody to fill in.
    assert credentials["Ray cluster Anthropic"]["inputs"] == {}
    for run in (dry, made, again):
        assert "hunter2" not in run.text and TOKEN not in run.text


def test_a_second_run_changes_nothing_and_sends_nothing(again):
    assert again.status == 0, again.text[-4000:]
    assert again.changed == 0 and again.writes == []


def test_a_dry_run_then_sees_what_a_run_would_change(server, again):
    run = awx(server, "--check", awx_approval_timeout="60", awx_project_branch="main")
    assert run.status == 0, run.text[-4000:]
    assert run.writes == [] and run.changed == 2


def test_what_was_made_goes_and_what_others_use_stays(server, again):
    objects = server.awx
    (organisation,) = objects.tables["organizations"].values()
    hugging_face = objects.named("credential_types")["Hugging Face"]["id"]
    other = {
        "name": "Of another team",
        "organization": organisation["id"],
        "credential_type": hugging_face,
        "inputs": {},
    }
    kept = objects.create("credentials", other)
    gone = awx(server, awx_state="absent")
    assert gone.status == 0, gone.text[-4000:]
    kinds = [request.path.split("/")[3] for request in gone.writes]
    assert {request.method for request in gone.writes} == {"DELETE"}
    assert list(dict.fromkeys(kinds)) == [
        *("workflow_job_templates", "job_templates", "inventories", "projects", "execution_environments"),
        *("credentials", "notification_templates", "credential_types"),
    ]
    left = {kind: set(objects.named(kind)) for kind in objects.tables if kind != "workflow_job_template_nodes"}
    assert {kind: names for kind, names in left.items() if names} == {
        "organizations": {"Ray clusters"},
        "credentials": {"Of another team"},
        "credential_types": {"Machine", "Hugging Face"},
    }
    assert objects.tables["workflow_job_template_nodes"] == {}

    objects.delete("credentials", kept["id"])
    rest = awx(server, "-e", '{"awx_job_templates": [], "awx_credentials": []}', awx_state="absent")
    assert rest.status == 0, rest.text[-4000:]
    assert [request.path.split("/")[3] for request in rest.writes] == ["credential_types", "organizations"]
