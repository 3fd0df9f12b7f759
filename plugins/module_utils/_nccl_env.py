# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of one node, decided and rendered.

Internal to metalray.cluster: not a public interface.

Values that differ from node to node go where the launcher cannot spread them: NCCL's own to /etc/nccl.conf, since Ray,
vLLM and others copy the driver's ``NCCL_*`` to every worker and the environment wins over the file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

BEGIN = "# BEGIN metalray.cluster"
END = "# END metalray.cluster"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)


class EnvError(Exception):
    """A value cannot be rendered; the text names it."""


def decide(interface: str, address: str) -> tuple[dict[str, str], dict[str, str]]:
    """The process environment and NCCL's own settings for a node whose cluster traffic leaves by ``interface``.

    Gloo takes exact names. NCCL takes prefixes (``eth1`` would also match ``eth10``) unless the list starts with ``=``.
    """
    process = {"GLOO_SOCKET_IFNAME": interface, "VLLM_HOST_IP": address}
    family = "AF_INET6" if ipaddress.ip_address(address).version == 6 else "AF_INET"
    nccl = {"NCCL_SOCKET_IFNAME": f"={interface}", "NCCL_SOCKET_FAMILY": family}
    return process, nccl


def with_extra(
    process: Mapping[str, str], nccl: Mapping[str, str], extra: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The user's own variables on top: ``NCCL_*`` to NCCL's file, everything else to the process environment.

    Raises EnvError for what is not a name, spans lines, or looks like a secret: both files are world-readable.
    """
    merged_process, merged_nccl = dict(process), dict(nccl)
    for name, value in extra.items():
        if not _NAME.fullmatch(name):
            raise EnvError(f"'{name}' is not a name of an environment variable (letters, digits and '_')")
        if "\n" in value:
            raise EnvError(f"the value of {name} spans lines; one line is allowed")
        if _SECRET.search(name):
            raise EnvError(
                f"{name} looks like a secret, and cluster.env is world-readable. Put it into /etc/metalray/secrets.env"
            )
        (merged_nccl if name.startswith("NCCL_") else merged_process)[name] = value
    return merged_process, merged_nccl


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

    NCCL takes each line literally: no quotes, no blanks around '=', comments in column 0 only.
    """
    others = re.sub(rf"{BEGIN}\n.*?{END}\n?", "", existing, flags=re.DOTALL)
    lines = [f"{name}={value}" for name, value in nccl.items()]
    return "\n".join([BEGIN, *lines, END, ""]) + others
