# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two files that hold a node's environment, and the user's own variables on top of what was decided.

Internal to metalray.cluster: not a public interface.

Values that differ from node to node go where the launcher cannot spread them: NCCL's own to /etc/nccl.conf, since Ray,
vLLM and others copy the driver's ``NCCL_*`` to every worker and the environment wins over the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._env_files import is_secret

BEGIN = "# BEGIN metalray.cluster"
END = "# END metalray.cluster"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EnvError(Exception):
    """A value cannot be rendered; the text names it."""


def as_text(name: Any, value: Any) -> str:
    """The value as it is written. Raises EnvError for what is not a name, is no text or number of one line, or looks like a
    secret: both files are world-readable."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise EnvError(f"'{name}' is not a name of an environment variable (letters, digits and '_')")
    if isinstance(value, bool):
        raise EnvError(
            f"the value of {name} is the truth value {str(value).lower()}, and every program has its own word for it. Write "
            f'"{int(value)}", or the word in quotes'
        )
    if not isinstance(value, (str, int, float)):
        raise EnvError(f"the value of {name} is {value!r}; a text or a number is allowed. Put it in quotes")
    text = str(value)
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        raise EnvError(f"the value of {name} spans lines or holds control characters; one line of text is allowed")
    if is_secret(name):
        raise EnvError(
            f"{name} looks like a secret, and cluster.env is world-readable. Put it into /etc/metalray/secrets.env"
        )
    return text


def split(variables: Mapping[str, str], nccl_reads: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, str]]:
    """What belongs to the process environment, and what to NCCL's file."""
    process = {name: value for name, value in variables.items() if not nccl_reads(name)}
    return process, {name: value for name, value in variables.items() if name not in process}


def with_extra(variables: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, str]:
    """The user's own variables on top; null takes one away. Raises EnvError as ``as_text`` does."""
    kept = {name: value for name, value in variables.items() if name not in extra}
    return {**kept, **{name: as_text(name, value) for name, value in extra.items() if value is not None}}


def absent_ports(setting: str, ports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ports of an exact NCCL_IB_HCA (``=device:port,...``) that are not active on the node; ``ports`` as in ``node_facts``."""
    if not setting.startswith("="):
        return []
    active = {name for port in ports if port["active"] for name in (port["device"], f"{port['device']}:{port['port']}")}
    return [name for name in setting[1:].split(",") if ":".join(name.split(":")[:2]) not in active]


def _quoted(value: str) -> str:
    """A value as both systemd's EnvironmentFile= and a POSIX shell read it."""
    if re.fullmatch(r"[A-Za-z0-9_.,:/@%+=-]*", value):
        return value
    escaped = re.sub(r'([\\"$`])', r"\\\1", value)
    return f'"{escaped}"'


def render_environment(process: Mapping[str, str]) -> str:
    """/etc/metalray/cluster.env: systemd's EnvironmentFile= syntax, which a shell can source too."""
    lines = [f"{name}={_quoted(value)}" for name, value in process.items()]
    return "\n".join(["# Written by metalray.cluster: change network_env_extra in the inventory instead.", *lines, ""])


def render_nccl(nccl: Mapping[str, str], existing: str) -> str:
    """/etc/nccl.conf with our block first, since NCCL keeps the first value it reads, and everybody else's lines after it.

    NCCL takes each line literally: no quotes, no blanks around '=', comments in column 0 only. Without a setting there is no
    block.
    """
    others = re.sub(rf"{BEGIN}\n.*?{END}\n?", "", existing, flags=re.DOTALL)
    if not nccl:
        return others
    lines = [f"{name}={value}" for name, value in nccl.items()]
    return "\n".join([BEGIN, *lines, END, ""]) + others
