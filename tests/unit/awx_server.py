# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX 24.6.1: its REST interface, as far as playbooks/awx.yml uses it, over HTTP on this machine.

It is no AWX. It runs no job, knows one user, and its answers carry only what awx.awx reads. What it refuses, AWX refuses for
the same reason: rules of surveys, credential types and their injectors, relations to what is not there, names given twice,
playbooks that a project has not got or not yet cloned, loops in workflows. In one thing it is stricter: AWX overlooks fields
that it does not know, which would hide a typing error; here they are refused.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jinja2
import yaml

TOKEN = "token-of-the-stand-in"
PAGE = 25
Item = dict[str, Any]


class _Data(yaml.SafeLoader):
    """Ansible's own tag means text that is no template, which is what YAML takes it for."""


_Data.add_constructor("!unsafe", _Data.construct_yaml_str)
_ROOT = Path(__file__).resolve().parents[2]
# What playbooks/awx.yml makes.
DATA = yaml.load((_ROOT / "playbooks/vars/awx.yml").read_text(encoding="utf-8"), _Data)


class Refused(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(body)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Field:
    """A writable field: its Python type, what it is when nobody sets it, and what it may be."""

    kind: type
    default: Any = None
    required: bool = False
    null: bool = False
    choices: tuple[Any, ...] = ()
    refers: str = ""


def text(**more: Any) -> Field:
    return Field(str, "", **more)


def number() -> Field:
    return Field(int, 0)


def flag() -> Field:
    return Field(bool, False)


def refers(kind: str, required: bool = False) -> Field:
    return Field(int, None, required=required, null=not required, refers=kind)


NAMED = {"name": Field(str, required=True), "description": text()}
ASKS = ("scm_branch", "diff_mode", "variables", "limit", "tags", "skip_tags", "job_type", "verbosity", "inventory")
NOTIFIES = tuple(f"notification_templates_{event}" for event in ("started", "success", "error"))

KINDS: dict[str, dict[str, Field]] = {
    "organizations": {**NAMED, "max_hosts": number(), "default_environment": refers("execution_environments")},
    "credential_types": {
        **NAMED,
        "kind": Field(str, required=True, choices=("cloud", "net")),
        "inputs": Field(dict, {}),
        "injectors": Field(dict, {}),
        "managed": flag(),
    },
    "credentials": {
        **NAMED,
        "organization": refers("organizations"),
        "credential_type": refers("credential_types", True),
        "inputs": Field(dict, {}),
    },
    "execution_environments": {
        **NAMED,
        "organization": refers("organizations"),
        "image": Field(str, required=True),
        "pull": text(choices=("", "always", "missing", "never")),
    },
    "notification_templates": {
        **NAMED,
        "organization": refers("organizations", True),
        "notification_type": Field(str, required=True, choices=("email", "slack", "webhook")),
        "notification_configuration": Field(dict, {}),
    },
    "projects": {
        **NAMED,
        "organization": refers("organizations"),
        "scm_type": text(choices=("", "git", "svn", "insights", "archive")),
        "scm_url": text(),
        "scm_branch": text(),
        "scm_update_on_launch": flag(),
        "scm_update_cache_timeout": number(),
        "credential": refers("credentials"),
        "timeout": number(),
        "allow_override": flag(),
    },
    "inventories": {
        **NAMED,
        "organization": refers("organizations", True),
        "kind": text(choices=("", "smart", "constructed")),
        "host_filter": Field(str, None, null=True),
        "variables": text(),
    },
    "inventory_sources": {
        **NAMED,
        "inventory": refers("inventories", True),
        "source": text(choices=("scm", "ec2", "controller")),
        "source_project": refers("projects"),
        "source_path": text(),
        "overwrite": flag(),
        "overwrite_vars": flag(),
        "update_on_launch": flag(),
        "update_cache_timeout": number(),
        "execution_environment": refers("execution_environments"),
    },
    "job_templates": {
        **NAMED,
        "job_type": Field(str, "run", choices=("run", "check")),
        "organization": refers("organizations"),
        "project": refers("projects"),
        "inventory": refers("inventories"),
        "execution_environment": refers("execution_environments"),
        "playbook": text(),
        "job_tags": text(),
        "limit": text(),
        "become_enabled": flag(),
        "survey_enabled": flag(),
        **{f"ask_{name}_on_launch": flag() for name in ASKS},
    },
    "workflow_job_templates": {**NAMED, "organization": refers("organizations"), "survey_enabled": flag()},
    "workflow_job_template_nodes": {
        "identifier": Field(str, required=True),
        "workflow_job_template": refers("workflow_job_templates", True),
        "unified_job_template": refers("unified_job_templates"),
        "type": text(choices=("workflow_job_template_node",)),
    },
    "workflow_approval_templates": {**NAMED, "timeout": number()},
    # Of these, only whether the organisation has any.
    "teams": {**NAMED, "organization": refers("organizations", True)},
}
# Several kinds share one table, and what a node of a workflow runs is any of them.
UNIFIED = ("projects", "inventory_sources", "job_templates", "workflow_job_templates", "workflow_approval_templates")
UNIQUE: dict[str, tuple[str, ...]] = {
    "credential_types": ("name", "kind"),
    "credentials": ("name", "organization", "credential_type"),
    "inventory_sources": ("name", "inventory"),
    "workflow_job_template_nodes": ("identifier", "workflow_job_template"),
    "workflow_approval_templates": ("id",),
    "organizations": ("name",),
    "execution_environments": ("name",),
}
LINKS: dict[str, dict[str, str]] = {
    "job_templates": {"credentials": "credentials", **dict.fromkeys(NOTIFIES, "notification_templates")},
    "workflow_job_templates": dict.fromkeys((*NOTIFIES, "notification_templates_approvals"), "notification_templates"),
    "workflow_job_template_nodes": {
        **dict.fromkeys(("success_nodes", "failure_nodes", "always_nodes"), "workflow_job_template_nodes"),
        "credentials": "credentials",
    },
    "inventories": {"instance_groups": "instance_groups"},
}
# What goes with a deleted object: of which kinds, and by which of their fields.
CASCADES = {
    "organizations": [
        (kind, "organization")
        for kind in (
            "inventories",
            "projects",
            "credentials",
            "notification_templates",
            "workflow_job_templates",
            "teams",
        )
    ],
    "inventories": [("inventory_sources", "inventory")],
    "workflow_job_templates": [("workflow_job_template_nodes", "workflow_job_template")],
}

_MACHINE = {
    "fields": [
        {"id": "username", "label": "Username", "type": "string"},
        {"id": "password", "label": "Password", "type": "string", "secret": True, "ask_at_runtime": True},
        {
            "id": "ssh_key_data",
            "label": "SSH Private Key",
            "type": "string",
            "format": "ssh_private_key",
            "secret": True,
        },
        {"id": "ssh_key_unlock", "label": "Private Key Passphrase", "type": "string", "secret": True},
        {"id": "become_method", "label": "Privilege Escalation Method", "type": "string"},
        {"id": "become_username", "label": "Privilege Escalation Username", "type": "string"},
        {"id": "become_password", "label": "Privilege Escalation Password", "type": "string", "secret": True},
    ]
}
_BLOCKED_ENVIRONMENT = {
    "VIRTUAL_ENV",
    "PATH",
    "PYTHONPATH",
    "JOB_ID",
    "INVENTORY_ID",
    "REST_API_TOKEN",
    "MAX_EVENT_RES",
}
_WEBHOOK: dict[str, tuple[type, Any]] = {
    "url": (str, None),
    "http_method": (str, "POST"),
    "disable_ssl_verification": (bool, False),
    "username": (str, ""),
    "password": (str, ""),
    "headers": (dict, None),
}


class Awx:
    """The objects, and what is done to them."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.tables: dict[str, dict[int, Item]] = {kind: {} for kind in [*KINDS, "instance_groups"]}
        self.links: dict[tuple[str, int, str], list[int]] = {}
        self.surveys: dict[int, Item] = {}
        self.cloned: set[int] = set()
        self._last = 0
        machine = {"name": "Machine", "kind": "ssh", "inputs": _MACHINE, "injectors": {}, "managed": True}
        self._store("credential_types", {"description": "", **machine})

    # Reading

    def named(self, kind: str) -> dict[str, Item]:
        return {item["name"]: item for item in self.tables[kind].values()}

    def linked(self, kind: str, item: Item, relation: str) -> list[Item]:
        other = LINKS[kind][relation]
        return [self.tables[other][number] for number in self.links.get((kind, item["id"], relation), [])]

    def get(self, kind: str, number: int) -> Item:
        tables = [self.tables[name] for name in UNIFIED] if kind == "unified_job_templates" else [self.tables[kind]]
        for table in tables:
            if number in table:
                return table[number]
        raise Refused(404, {"detail": "Not found."})

    def listed(self, kind: str, query: list[tuple[str, str]]) -> list[Item]:
        kinds = UNIFIED[:-1] if kind == "unified_job_templates" else (kind,)
        items = [(name, item) for name in kinds for item in self.tables[name].values()]
        either = [(key[4:], value) for key, value in query if key.startswith("or__")]
        both = [(key, value) for key, value in query if not key.startswith("or__")]
        for key, _value in [*either, *both]:
            known = {*(KINDS.get(kind) or {**NAMED, "organization": 0}), "id", "type", "credential_type__name"}
            if key not in known:
                raise Refused(400, {"detail": f"{kind} has no field named '{key}'"})

        def has(item: Item, key: str, value: str) -> bool:
            if key == "credential_type__name":
                return self.get("credential_types", item["credential_type"])["name"] == value
            return str(item.get(key)) == value

        return [
            item
            for _name, item in items
            if all(has(item, *pair) for pair in both) and (not either or any(has(item, *pair) for pair in either))
        ]

    def shown(self, kind: str, item: Item) -> Item:
        """An object as AWX shows it: with its addresses, and without its secrets."""
        kind = next((name for name in UNIFIED if item["id"] in self.tables[name]), kind)
        url = f"/api/v2/{kind}/{item['id']}/"
        related = {name: f"{url}{name}/" for name in LINKS.get(kind, {})}
        summary: Item = {}
        copy = {**item, "url": url, "type": _singular(kind), "related": related, "summary_fields": summary}
        if kind in ("job_templates", "workflow_job_templates"):
            related["survey_spec"] = f"{url}survey_spec/"
        if kind == "workflow_job_template_nodes" and item["unified_job_template"]:
            unified = self.get("unified_job_templates", item["unified_job_template"])
            related["unified_job_template"] = self.shown("", unified)["url"]
        if kind == "projects":
            copy["scm_revision"] = "0" * 40 if item["id"] in self.cloned else ""
            if item["id"] not in self.cloned:
                summary["current_update"] = {"id": item["id"], "status": "running"}
        if kind == "credentials":
            secret = {f["id"] for f in self._credential_fields(item) if f.get("secret")}
            copy["inputs"] = {k: "$encrypted$" if k in secret and v else v for k, v in item["inputs"].items()}
        if kind == "notification_templates" and item["notification_configuration"].get("password"):
            copy["notification_configuration"] = {**item["notification_configuration"], "password": "$encrypted$"}
        return copy

    def project_update(self, number: int) -> Item:
        """The clone is finished when somebody has asked how far it is."""
        self.get("projects", number)
        self.cloned.add(number)
        return {"id": number, "status": "successful", "failed": False, "finished": "2026-11-25T00:00:00Z"}

    def playbooks(self, project: Item) -> set[str]:
        """By AWX's rules: not below roles and tasks, nor in a directory of variables; with a line that begins a play."""
        if project["id"] not in self.cloned:
            return set()
        found = set()
        begins = re.compile(
            r"^\s*?-?\s*?(?:hosts|(ansible\.builtin\.)?include|(ansible\.builtin\.)?import_playbook):\s*?.*?$"
        )
        for directory, _directories, files in os.walk(self.checkout):
            inside = Path(directory).relative_to(self.checkout)
            if {"roles", "tasks", "group_vars", "host_vars"} & set(inside.parts) or any(
                p[0] == "." for p in inside.parts
            ):
                continue
            for name in files:
                path = Path(directory, name)
                if path.suffix in (".yml", ".yaml") and any(map(begins.match, path.read_text("utf-8").splitlines())):
                    found.add(str(inside / name))
        return found

    # Writing

    def create(self, kind: str, body: Item) -> Item:
        fields = KINDS[kind]
        missing = [name for name, field in fields.items() if field.required and name not in body]
        if missing:
            raise Refused(400, {name: ["This field is required."] for name in missing})
        item = {name: field.default for name, field in fields.items()}
        item.update(self._checked(kind, body))
        self._rules(kind, item, None)
        if kind in ("job_templates",) and item["project"]:
            item["organization"] = self.get("projects", item["project"])["organization"]
        return self._store(kind, item)

    def change(self, kind: str, number: int, body: Item) -> Item:
        old = self.get(kind, number)
        if old.get("managed"):
            raise Refused(403, {"detail": "Modifications not allowed for managed credential types"})
        new = {**old, **self._checked(kind, body)}
        self._rules(kind, new, old)
        old.update(new)
        return old

    def delete(self, kind: str, number: int) -> int:
        item = self.get(kind, number)
        if kind == "credential_types":
            if item["managed"]:
                raise Refused(403, {"detail": "Deletion not allowed for managed credential types"})
            if any(other["credential_type"] == number for other in self.tables["credentials"].values()):
                raise Refused(403, {"detail": "Credential types that are in use cannot be deleted"})
        for other, field in CASCADES.get(kind, []):
            for found in [n for n, held in self.tables[other].items() if held[field] == number]:
                self.delete(other, found)
        if (
            kind == "workflow_job_template_nodes"
            and item["unified_job_template"] in self.tables["workflow_approval_templates"]
        ):
            del self.tables["workflow_approval_templates"][item["unified_job_template"]]
        for name, fields in KINDS.items():
            for held in self.tables[name].values():
                for field, about in fields.items():
                    if (
                        about.refers in (kind, "unified_job_templates" if kind in UNIFIED else kind)
                        and held[field] == number
                    ):
                        held[field] = None
        self.links = {
            key: [n for n in numbers if (LINKS[key[0]][key[2]], n) != (kind, number)]
            for key, numbers in self.links.items()
            if key[:2] != (kind, number)
        }
        del self.tables[kind][number]
        # AWX deletes an inventory in the background; here it is gone at once.
        return 202 if kind == "inventories" else 204

    def link(self, kind: str, number: int, relation: str, body: Item) -> None:
        item, other = self.get(kind, number), LINKS[kind][relation]
        if not isinstance(body.get("id"), int):
            raise Refused(400, {"msg": '"id" field must be an integer.'})
        if body["id"] not in self.tables[other]:
            raise Refused(400, {"detail": f"Invalid pk {body['id']}"})
        numbers = self.links.setdefault((kind, number, relation), [])
        if body.get("disassociate"):
            numbers.remove(body["id"])
            return
        added = self.tables[other][body["id"]]
        if relation == "credentials" and kind == "job_templates":
            held = [one["credential_type"] for one in self.linked(kind, item, relation)]
            if added["credential_type"] in held:
                name = self.get("credential_types", added["credential_type"])["name"]
                raise Refused(400, {"error": f"Cannot assign multiple {name} credentials."})
        if other == "workflow_job_template_nodes":
            self._check_edge(item, added, relation)
        if body["id"] not in numbers:
            numbers.append(body["id"])

    def add_approval(self, node: int, body: Item) -> Item:
        approval = self.create("workflow_approval_templates", body)
        self.get("workflow_job_template_nodes", node)["unified_job_template"] = approval["id"]
        return approval

    def set_survey(self, number: int, spec: Item) -> None:
        check_survey(spec)
        self.surveys[number] = spec

    def _store(self, kind: str, item: Item) -> Item:
        self._last += 1
        item["id"] = self._last
        self.tables[kind][self._last] = item
        return item

    def _checked(self, kind: str, body: Item) -> Item:
        fields, errors = KINDS[kind], {}
        for name, value in body.items():
            field = fields.get(name)
            if field is None:
                errors[name] = ["Unknown field (AWX would overlook it)."]
            elif value is None:
                if not field.null:
                    errors[name] = ["This field may not be null."]
            elif not isinstance(value, field.kind) or (field.kind is int and isinstance(value, bool)):
                errors[name] = [f"Incorrect type: {type(value).__name__}."]
            elif field.required and value == "":
                errors[name] = ["This field may not be blank."]
            elif field.choices and value not in field.choices:
                errors[name] = [f'"{value}" is not a valid choice.']
            elif field.refers:
                try:
                    self.get(field.refers, value)
                except Refused:
                    errors[name] = [f'Invalid pk "{value}" - object does not exist.']
        if errors:
            raise Refused(400, errors)
        return {name: value for name, value in body.items() if name != "type"}

    def _rules(self, kind: str, new: Item, old: Item | None) -> None:
        names = UNIQUE.get(kind, ("name", "organization"))
        for item in self.tables[kind].values():
            if item is not old and all(item.get(name) == new.get(name, "") for name in names):
                raise Refused(400, {"__all__": [f"{_singular(kind)} with this {' and '.join(names)} already exists."]})
        rules: dict[str, Callable[[Item, Item | None], None]] = {
            "credential_types": check_credential_type,
            "credentials": self._check_credential,
            "notification_templates": _check_notification,
            "projects": self._check_project,
            "inventory_sources": self._check_source,
            "job_templates": self._check_job_template,
        }
        if kind in rules:
            rules[kind](new, old)

    def _credential_fields(self, item: Item) -> list[Item]:
        return self.get("credential_types", item["credential_type"])["inputs"].get("fields", [])

    def _check_credential(self, new: Item, old: Item | None) -> None:
        if not new["organization"]:
            raise Refused(400, {"detail": "Missing 'user', 'team', or 'organization'."})
        fields = {field["id"]: field for field in self._credential_fields(new)}
        for name, value in new["inputs"].items():
            if name not in fields:
                raise Refused(400, {"inputs": [f"Additional properties are not allowed ('{name}' was unexpected)"]})
            if fields[name].get("format") == "ssh_private_key" and "PRIVATE KEY-----" not in value:
                raise Refused(400, {"inputs": {name: ["Invalid certificate or key"]}})
            if value == "$encrypted$" and old is None:
                raise Refused(400, {"inputs": [f"$encrypted$ is a reserved keyword, and cannot be used for {name}."]})

    def _check_project(self, new: Item, old: Item | None) -> None:
        for name in ("scm_update_on_launch",):
            if not new["scm_type"] and new[name]:
                raise Refused(400, {name: ["Update options must be set to false for manual projects."]})
        if new["scm_type"] and not new["scm_url"]:
            raise Refused(400, {"scm_url": ["SCM URL is required."]})

    def _check_source(self, new: Item, old: Item | None) -> None:
        if new["source"] == "scm" and not new["source_project"]:
            raise Refused(400, {"source_project": ["Project required for scm type sources."]})
        if new["source"] != "scm" and (new["source_project"] or new["source_path"]):
            raise Refused(400, {"detail": "Cannot set source_project source_path if not SCM type."})

    def _check_job_template(self, new: Item, old: Item | None) -> None:
        if not new["project"]:
            raise Refused(400, {"project": ["This field is required."]})
        project = self.get("projects", new["project"])
        if not new["playbook"]:
            raise Refused(400, {"playbook": ["Must select playbook for project."]})
        if not project["allow_override"] and new["playbook"] not in self.playbooks(project):
            raise Refused(400, {"playbook": ["Playbook not found for project."]})
        if new["ask_scm_branch_on_launch"] and not project["allow_override"]:
            raise Refused(400, {"ask_scm_branch_on_launch": ["Project does not allow overriding branch."]})
        if not new["inventory"] and not new["ask_inventory_on_launch"]:
            raise Refused(400, {"inventory": ["You must either set a default value or ask to prompt on launch."]})

    def _check_edge(self, parent: Item, child: Item, relation: str) -> None:
        kind = "workflow_job_template_nodes"
        if parent["workflow_job_template"] != child["workflow_job_template"]:
            raise Refused(400, {"detail": "Nodes of two workflows."})
        if parent is child:
            raise Refused(400, {"Error": "Cycle detected."})
        for other in {"success_nodes", "failure_nodes", "always_nodes"} - {relation}:
            if child in self.linked(kind, parent, other):
                raise Refused(400, {"Error": "Relationship not allowed."})
        seen, waiting = set(), [child]
        while waiting:
            node = waiting.pop()
            if node is parent:
                raise Refused(400, {"Error": "Cycle detected."})
            if node["id"] not in seen:
                seen.add(node["id"])
                for name in ("success_nodes", "failure_nodes", "always_nodes"):
                    waiting += self.linked(kind, node, name)


_ANSWERS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "textarea": (str,),
    "password": (str,),
    "multiplechoice": (str,),
    "multiselect": (str, list),
    "integer": (int,),
    "float": (float, int),
}


def check_survey(spec: Item) -> None:
    """AWX's rules of surveys."""

    def refuse(message: str) -> None:
        raise Refused(400, {"error": message})

    for name, kind in (("name", str), ("description", str), ("spec", list)):
        if not isinstance(spec.get(name), kind):
            refuse(f"Field '{name}' is missing from survey spec, or of another type.")
    if not spec["spec"]:
        refuse("'spec' doesn't contain any items.")
    seen = set()
    for index, asked in enumerate(spec["spec"]):
        for name in ("type", "question_name", "variable", "required"):
            if not isinstance(asked.get(name), bool if name == "required" else str):
                refuse(f"'{name}' missing from survey question {index}, or of another type")
        if asked["variable"] in seen:
            refuse(f"'variable' '{asked['variable']}' duplicated in survey question {index}.")
        seen.add(asked["variable"])
        if asked["type"] not in _ANSWERS:
            refuse(f"'{asked['type']}' in survey question {index} is not one of the allowed question types.")
        default = asked.get("default", "")
        if default != "" and not isinstance(default, _ANSWERS[asked["type"]]):
            refuse(f"Default value {default} in survey question {index} expected to be {asked['type']}.")
        if any(asked.get(limit) is not None and not isinstance(asked[limit], int) for limit in ("min", "max")):
            refuse(f"The min or max limit in survey question {index} expected to be integer.")
        if asked["type"] in ("multiselect", "multiplechoice"):
            if "choices" not in asked:
                refuse(f"Survey question {index} of type {asked['type']} must specify choices.")
            defaults = default.splitlines() if isinstance(default, str) else default
            if asked["type"] == "multiplechoice" and len(defaults) > 1:
                refuse("Multiple Choice (Single Select) can only have one default value.")
            if any(one not in asked["choices"] for one in defaults):
                refuse("Default choice must be answered from the choices listed.")
        if isinstance(default, str) and default.startswith("$encrypted$"):
            refuse("$encrypted$ is a reserved keyword.")


def check_credential_type(new: Item, old: Item | None) -> None:
    """AWX's rules of inputs and injectors."""

    def refuse(field: str, message: str) -> None:
        raise Refused(400, {field: [message]})

    if set(new["inputs"]) - {"fields", "required"}:
        refuse("inputs", "Additional properties are not allowed")
    known = {
        "id",
        "label",
        "type",
        "format",
        "choices",
        "help_text",
        "multiline",
        "secret",
        "ask_at_runtime",
        "default",
    }
    ids = []
    for field in new["inputs"].get("fields", []):
        if set(field) - known or not {"id", "label"} <= set(field):
            refuse("inputs", f"Schema validation error in {field}")
        if not re.match(r"^[a-zA-Z_]+[a-zA-Z0-9_]*$", field["id"]) or field["id"] == "tower":
            refuse("inputs", f"{field['id']} is an invalid variable name")
        if field["id"] in ids:
            refuse("inputs", f"field IDs must be unique ({field['id']})")
        ids.append(field["id"])
        if field.setdefault("type", "string") not in ("string", "boolean"):
            refuse("inputs", f"'{field['type']}' is not one of ['string', 'boolean']")
        if field["type"] == "boolean" and {"choices", "multiline", "format", "secret"} & set(field):
            refuse("inputs", f"not allowed for boolean type ({field['id']})")
        if field.get("ask_at_runtime"):
            refuse("inputs", "'ask_at_runtime' is not supported for custom credentials.")
    if set(new["injectors"]) - {"file", "env", "extra_vars"}:
        refuse("injectors", "Additional properties are not allowed")
    for name, template in new["injectors"].get("env", {}).items():
        if not re.match(r"^[a-zA-Z_]+[a-zA-Z0-9_]*$", name) or not isinstance(template, str):
            refuse("injectors", f"Schema validation error ({name})")
        if name.startswith("ANSIBLE_") or name in _BLOCKED_ENVIRONMENT:
            refuse("injectors", f"Environment variable {name} is not allowed to be used in credentials.")
        try:
            jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template).render(
                dict.fromkeys(ids, "EXAMPLE")
            )
        except jinja2.TemplateError as error:
            refuse("injectors", f"{name} uses an undefined field ({error})")


def _check_notification(new: Item, old: Item | None) -> None:
    if new["notification_type"] != "webhook":
        return
    configuration = new["notification_configuration"]
    for name, (kind, default) in _WEBHOOK.items():
        if name not in configuration and default is None:
            raise Refused(400, [f"Missing required fields for Notification Configuration: ['{name}']."])
        if not isinstance(configuration.setdefault(name, default), kind):
            raise Refused(400, [f"Configuration field '{name}' incorrect type, expected {kind.__name__}."])
    if configuration["http_method"].lower() not in ("put", "post"):
        raise Refused(400, ["HTTP method must be either 'POST' or 'PUT'."])


def _singular(kind: str) -> str:
    return "inventory" if kind == "inventories" else kind[:-1]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: Any
    status: int


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A small answer would wait for the client's acknowledgement otherwise.
    disable_nagle_algorithm = True
    server: Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null") if length else None
        with self.server.lock:
            try:
                status, answer = self._act(body if isinstance(body, dict) else {})
            except Refused as refused:
                status, answer = refused.status, refused.body
            self.server.log.append(Request(self.command, self.path, body, status))
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-API-Product-Name", "AWX")
        self.send_header("X-API-Product-Version", "24.6.1")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def _act(self, body: Item) -> tuple[int, Any]:
        awx, method = self.server.awx, self.command
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, {"detail": "Authentication credentials were not provided."})
        url = urlsplit(self.path)
        kind, *rest = url.path.removeprefix("/api/v2/").strip("/").split("/")
        number = int(rest[0]) if rest and rest[0].isdigit() else 0
        if kind == "project_updates" and method == "GET":
            return 200, awx.project_update(number)
        if kind not in (*KINDS, "unified_job_templates"):
            raise Refused(404, {"detail": "Not found."})
        if not rest:
            # An approval is made with its node only, and belongs to nobody's list.
            if kind in ("workflow_approval_templates", "unified_job_templates") and method != "GET":
                raise Refused(405, {"detail": f'Method "{method}" not allowed.'})
            if method == "POST":
                return 201, awx.shown(kind, awx.create(kind, body))
            return 200, self._page(kind, parse_qsl(url.query))
        if len(rest) == 1:
            if method == "PATCH":
                return 200, awx.shown(kind, awx.change(kind, number, body))
            if method == "DELETE":
                return awx.delete(kind, number), None
            return 200, awx.shown(kind, awx.get(kind, number))
        awx.get(kind, number)
        relation = rest[1]
        if relation == "survey_spec" and kind in ("job_templates", "workflow_job_templates"):
            if method == "POST":
                awx.set_survey(number, body)
            elif method == "DELETE":
                awx.surveys.pop(number, None)
            return 200, awx.surveys.get(number, {})
        if relation == "create_approval_template" and kind == "workflow_job_template_nodes" and method == "POST":
            return 201, awx.shown("workflow_approval_templates", awx.add_approval(number, body))
        if relation not in LINKS.get(kind, {}):
            raise Refused(404, {"detail": "Not found."})
        if method == "POST":
            awx.link(kind, number, relation, body)
            return 204, None
        items = awx.linked(kind, awx.get(kind, number), relation)
        return 200, {"count": len(items), "next": None, "results": [{"id": item["id"]} for item in items]}

    def _page(self, kind: str, query: list[tuple[str, str]]) -> Item:
        awx = self.server.awx
        page = int(dict(query).get("page", 1))
        items = awx.listed(kind, [pair for pair in query if pair[0] != "page"])
        part = items[(page - 1) * PAGE : page * PAGE]
        following = f"/api/v2/{kind}/?page={page + 1}" if page * PAGE < len(items) else None
        return {"count": len(items), "next": following, "results": [awx.shown(kind, item) for item in part]}

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, awx: Awx) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.awx, self.lock = awx, threading.Lock()
        self.log: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def writes(self) -> list[Request]:
        return [request for request in self.log if request.method != "GET"]


@contextmanager
def serve(checkout: Path) -> Iterator[Server]:
    server = Server(Awx(checkout))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
