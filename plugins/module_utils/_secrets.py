# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of secrets that systemd gives to Ray's processes, and nobody else sees.

Internal to metalray.cluster: not a public interface. No message and no result here carries a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HEADER = "# Written by metalray.cluster. Environment of the Ray services; systemd reads it.\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Such a name would break the service itself: what this file says counts more than the unit.
_TAKEN = re.compile(r"(?:RAY|LD|METALRAY)_\w*|PATH|HOME|USER|SHELL|PYTHON(?:PATH|HOME)")
# Between double quotes systemd, like a shell, takes these after a backslash as they are.
_ESCAPED = re.compile(r'(["\\`$])')
_LINE = re.compile(r'\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(?:"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|(.*?))\s*')


def check(secrets: Any) -> list[str]:
    """What is wrong with ``training_secrets``, one clause each; names only."""
    if not isinstance(secrets, Mapping):
        return ["must be a mapping of names to values, such as {WANDB_API_KEY: ...} (its content is not shown)"]
    problems = []
    for name, value in secrets.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problems.append(f"has a name that is none of an environment variable ({len(str(name))} characters)")
        elif _TAKEN.fullmatch(name):
            problems.append(f"names {name}, which Ray's service needs for itself; choose another name")
        elif isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            problems.append(f"has {name} with a value that is no text. Put it in quotes (the value is not shown)")
        elif any(ord(sign) < 32 or ord(sign) == 127 for sign in str(value or "")):
            problems.append(f"has {name} with a line break or another control character in it (the value is not shown)")
    return problems


def parse(text: str) -> dict[str, str]:
    """Names and values of such a file, also of one that was written by hand."""
    values = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found:
            name, double, single, plain = found.groups()
            values[name] = re.sub(r"\\(.)", r"\1", double) if double is not None else single or plain or ""
    return values


def _escape(value: str) -> str:
    return _ESCAPED.sub(lambda found: "\\" + found[1], value)


def merge(text: str, secrets: Mapping[str, Any]) -> str:
    """The file's new text.

    No secrets at all, and the file stays. One without a value keeps the value that the node has: whoever runs the playbook
    from a shell without the key must not take it away from a job that needs it.
    """
    if not secrets:
        return text
    have = parse(text)
    wanted = {name: str(value) if value not in (None, "") else have.get(name, "") for name, value in secrets.items()}
    lines = [f'{name}="{_escape(value)}"\n' for name, value in sorted(wanted.items()) if value]
    return HEADER + "".join(lines) if lines or text else ""
