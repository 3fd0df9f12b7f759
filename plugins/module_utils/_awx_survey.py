# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys of AWX from the roles' argument specs.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Option = Mapping[str, Any]

_TYPES = {"str": "text", "path": "text", "int": "integer", "float": "float"}
# Ansible's markup of documentation. An escaped bracket stays inside, and of O(name=value) all is kept.
_MARKUP = re.compile(r"\b(?:[BICMOVEP]|RV)\(((?:\\.|[^)\\])*)\)")
_LINK = re.compile(r"\b(?:L|R)\(([^,)]*),[^)]*\)|\bU\(([^)]*)\)")


class NoQuestion(ValueError):
    """This variable cannot be asked for in a survey."""


def plain(text: str) -> str:
    """A description without Ansible's markup."""
    text = _LINK.sub(lambda found: (found[1] or found[2]).strip(), text)
    return _MARKUP.sub(lambda found: re.sub(r"\\(.)", r"\1", found[1]), text)


def question(variable: str, option: Option) -> dict[str, Any]:
    """The question that asks for a variable.

    It has no default of AWX's and need not be answered. AWX hands every default and every answer on as an extra variable,
    which wins over the inventory; what nobody has answered must be left to the inventory, and then to the role.
    """
    kind = option.get("type", "str")
    choices = option.get("choices")
    asked: dict[str, Any]
    if kind == "bool":
        asked = {"type": "multiplechoice", "choices": ["true", "false"]}
    elif kind == "list" and choices:
        asked = {"type": "multiselect", "choices": _texts(variable, choices)}
    elif kind not in _TYPES:
        raise NoQuestion(f"{variable} is of type {kind}, which no survey of AWX can ask for: set it in the inventory")
    elif option.get("no_log"):
        asked = {"type": "password"}
    elif choices:
        asked = {"type": "multiplechoice", "choices": _texts(variable, choices)}
    else:
        asked = {"type": _TYPES[kind]}
    first, rest = _sentences(option.get("description") or variable)
    if first.split()[0] in (choices or ()):
        # It begins with what a choice does; the question is the variable then.
        first, rest = variable.replace("_", " ").capitalize(), f"{first}. {rest}".strip()
    return {
        "question_name": first,
        "question_description": " ".join(filter(None, [rest, _unanswered(variable, kind, option)])),
        "variable": variable,
        "required": False,
        **asked,
    }


def survey(name: str, variables: Iterable[str], specs: Mapping[str, Option]) -> dict[str, Any]:
    """A survey that asks for some variables. Without any there is none, which AWX writes as an empty one."""
    wanted = list(variables)
    unknown = [variable for variable in wanted if variable not in specs]
    if unknown:
        raise NoQuestion(f"no role has the variable {', '.join(unknown)}: see the roles' meta/argument_specs.yml")
    twice = sorted({variable for variable in wanted if wanted.count(variable) > 1})
    if twice:
        raise NoQuestion(f"{', '.join(twice)} is asked for twice in the survey of '{name}'")
    if not wanted:
        return {}
    return {
        "name": name,
        "description": "What stays empty is as the inventory says.",
        "spec": [question(variable, specs[variable]) for variable in wanted],
    }


def _texts(variable: str, choices: Iterable[Any]) -> list[str]:
    texts = list(choices)
    # An answer is a text; a number among the choices would never match it.
    if not all(isinstance(text, str) and text for text in texts):
        raise NoQuestion(f"{variable} has choices that are no texts, which no survey of AWX can ask for")
    return texts


def _sentences(description: str | Iterable[str]) -> tuple[str, str]:
    """The first sentence, which is the question, and the rest."""
    lines = [description] if isinstance(description, str) else list(description)
    text = " ".join(plain(line).strip() for line in lines)
    first, _dot, rest = text.partition(". ")
    return first.rstrip("."), rest


def _unanswered(variable: str, kind: str, option: Option) -> str:
    if option.get("default") is None or option["default"] == "":
        return f"[{variable}, {kind}]"
    default = option["default"]
    text = default if isinstance(default, str) else json.dumps(default)
    return f"[{variable}, {kind}, {text} where the inventory says nothing]"
