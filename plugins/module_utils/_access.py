# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a site reaches the world: proxies, the certificates to trust, mirrors; the same for uv, pip, git and apt.

The environment of a process is seen by every account of its node, on Ansible's command line too. A proxy's address, which
may hold an account, is therefore handed over in options of modules and in files that root alone reads.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROXIES = ("http_proxy", "https_proxy")
# uv; pip, twice; curl; git. apt has its own, below.
_CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_HERE = ("localhost", "127.0.0.1", "::1")
#: The package ca-certificates makes it, and the roles install that.
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def masked(text: str) -> str:
    """A text without the accounts of its addresses."""
    return re.sub(r"(\w+://)[^/@\s'\"]+@", r"\1***@", text)


def account(address: str) -> str:
    """The account in an address, as it is written there; empty where there is none."""
    found = re.match(r"\w+://([^/\s]+)@", address)
    return found.group(1) if found else ""


def without_account(address: str) -> str:
    return re.sub(r"^(\w+://)[^/\s]+@", r"\1", address)


def environment(
    own: Mapping[str, Any],
    proxy: str = "",
    no_proxy: Iterable[str] = (),
    ca_bundle: str = "",
    direct: Iterable[str] = (),
) -> dict[str, str]:
    """Environment variables of uv, pip and git. What ``own`` names goes before the shared settings, whatever its case.

    ``direct`` are the nodes' addresses, which no proxy is asked for.
    """
    shared: dict[str, str] = {}
    if proxy:
        shared.update(dict.fromkeys(PROXIES, proxy))
    given = {name.lower(): str(value) for name, value in own.items()}
    if proxy or any(given.get(name) for name in PROXIES):
        shared["no_proxy"] = ",".join(dict.fromkeys([*_HERE, *direct, *no_proxy]))
    if ca_bundle:
        shared.update(dict.fromkeys(_CERTIFICATES, ca_bundle))
    return {
        **{name: value for name, value in shared.items() if name.lower() not in given},
        **{name: str(value) for name, value in own.items()},
    }


def _proxy(values: Mapping[str, str], name: str) -> str:
    return values.get(name) or values.get(name.upper()) or ""


def apply_environment(module: Any) -> None:
    """Put a module's option ``environment`` into its own environment, and keep the accounts in it out of what it says."""
    values = {name: str(value) for name, value in module.params["environment"].items()}
    hide_accounts(module, values.values())
    os.environ.update(values)


def hide_accounts(module: Any, addresses: Iterable[str]) -> None:
    """Let Ansible mask the accounts of addresses in everything that a module returns, its own options too."""
    module.no_log_values.update(filter(None, map(account, addresses)))


def trusted_hosts(addresses: Iterable[str]) -> dict[str, str]:
    """What lets pip use mirrors without TLS, as uv does: each package is held against its hash in the lock."""
    hosts = [urlsplit(address).hostname or "" for address in addresses if address.startswith("http:")]
    return {"PIP_TRUSTED_HOST": " ".join(dict.fromkeys(hosts))} if hosts else {}


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def apt_configuration(values: Mapping[str, str], sources: str = "") -> str:
    """apt.conf(5) for ``APT_CONFIG``; empty where apt needs none. ``sources`` is the only list of sources that it may use."""
    lines = []
    for name in PROXIES:
        proxy = _proxy(values, name)
        if proxy:
            lines.append(f"Acquire::{name.partition('_')[0]}::Proxy {_quoted(proxy)};")
    bundle = values.get("SSL_CERT_FILE", "")
    if bundle and bundle != SYSTEM_BUNDLE:
        lines.append(f"Acquire::https::CAInfo {_quoted(bundle)};")
    if sources:
        lines += [
            f"Dir::Etc::SourceList {_quoted(sources)};",
            'Dir::Etc::SourceParts "/dev/null";',
            # Lists of their own: those of the node's sources stay as they are.
            f"Dir::State::Lists {_quoted(str(Path(sources).with_name('lists')))};",
            'Acquire::Languages "none";',
        ]
    return "".join(f"{line}\n" for line in lines)


def without_addresses(values: Mapping[str, str]) -> dict[str, str]:
    """The environment without the proxies' addresses, for a tool that has them in its configuration."""
    return {name: value for name, value in values.items() if name.lower() not in PROXIES}


def git_configuration(values: Mapping[str, str], url: str, replaced: Mapping[str, str] | None = None) -> str:
    """A git-config(1) for ``GIT_CONFIG_GLOBAL``; empty where git needs none.

    ``replaced`` tells which repositories are taken from elsewhere: their address to where they are.
    """
    proxy = _proxy(values, "https_proxy" if url.startswith("https:") else "http_proxy")
    bundle = values.get("GIT_SSL_CAINFO", "")
    lines = []
    if proxy or bundle:
        lines.append("[http]")
        lines += [f"\tproxy = {_quoted(proxy)}"] if proxy else []
        lines += [f"\tsslCAInfo = {_quoted(bundle)}"] if bundle else []
    for address, place in (replaced or {}).items():
        lines += [f"[url {_quoted(place)}]", f"\tinsteadOf = {_quoted(address)}"]
    if replaced:
        # Submodules too come from directories then, which git refuses by itself.
        lines += ['[protocol "file"]', "\tallow = always", "[safe]", "\tdirectory = *"]
    if not lines:
        return ""
    # The account's own settings count as well, such as a helper for passwords.
    return "\n".join(["[include]", "\tpath = ~/.config/git/config", "\tpath = ~/.gitconfig", *lines, ""])


# --- the check of what the inventory says ------------------------------------------------------------------------


def address_problem(address: str, schemes: Sequence[str], example: str) -> str:
    """Why an address is none that the tools take; empty where it is one."""
    parts = urlsplit(address)
    try:
        usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if usable and not re.search(r"\s", address):
        return ""
    # Without a scheme the text does not tell where an account in it begins.
    shown = re.sub(r"[^/@\s]+@", "***@", address)
    return f"is '{shown}'. Allowed is an address with its scheme, such as {example}"


def _proxy_settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("cluster_proxy", str(values.get("cluster_proxy") or ""))]
    for name in sorted(values):
        if name.endswith("_environment") and isinstance(values[name], Mapping):
            found += [(f"{key} in {name}", str(value)) for key, value in values[name].items() if key.lower() in PROXIES]
    return [(name, value) for name, value in found if value]


def check_access(host: str, values: Mapping[str, Any], certificates: Mapping[str, int | None]) -> list[str]:
    """Problems of the variables that tell how a host reaches the world.

    ``certificates`` are, by path, how many certificates the files on the host hold; None where there is no such file.
    """
    problems = []
    for name, value in _proxy_settings(values):
        wrong = address_problem(value, ("http", "https"), "http://proxy.example.com:3128")
        if wrong:
            problems.append(f"{host}: {name} {wrong}")
    for entry in values.get("cluster_no_proxy") or []:
        if re.search(r"[\s,/*]|://", str(entry)) and not re.fullmatch(r"[\d.:a-f]+/\d+", str(entry)):
            problems.append(
                f"{host}: cluster_no_proxy holds '{masked(str(entry))}'. Allowed are a host's name, a domain such as "
                ".example.com, an address and a network such as 10.0.0.0/8, each an entry of its own"
            )
    indexes = [("python_env_index_url", values.get("python_env_index_url"))]
    indexes += [("python_env_extra_index_urls", value) for value in values.get("python_env_extra_index_urls") or []]
    for name, value in indexes:
        wrong = (
            address_problem(str(value), ("http", "https", "file"), "https://mirror.example.com/simple") if value else ""
        )
        if wrong and not str(value).startswith("file:///"):
            problems.append(f"{host}: {name} {wrong}")
    for name in ("cluster_ca_bundle", "python_env_ca_bundle"):
        path = values.get(name)
        if not path or path == SYSTEM_BUNDLE:
            continue
        if certificates.get(path) is None:
            problems.append(
                f"{host}: {name} is '{path}', and there is no such file on this node. Copy the certificates there (ansible "
                f"cluster -b -m ansible.builtin.copy -a 'src=site.pem dest={path}'), or correct the path"
            )
        elif not certificates[path]:
            problems.append(
                f"{host}: {name} is '{path}', and there is no certificate in that file. It needs them in PEM, from "
                "'-----BEGIN CERTIFICATE-----' on"
            )
    return problems


def count_certificates(path: str) -> int | None:
    """How many certificates a file holds; None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").count("-----BEGIN CERTIFICATE-----")
    except OSError:
        return None
