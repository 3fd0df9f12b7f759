# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Docker engine a node has, which packages and apt repository the wanted one needs.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ._docker import DockerError
from ._openpgp import KeyFormatError, fingerprints, normalised

KEY_FILE = "/etc/apt/keyrings/docker.asc"
SOURCES_FILE = "/etc/apt/sources.list.d/docker.sources"
HEADER = "# Written by metalray.cluster, changes are overwritten."

ENGINE = {"docker": "docker-ce", "distro": "docker.io"}

# Whoever holds one of these may be running containers with it: removed only on request.
_ENGINES = {
    "docker": ("docker.io", "containerd", "moby-engine", "moby-containerd"),
    "distro": ("docker-ce", "containerd.io", "moby-engine", "moby-containerd"),
}
# These cannot stay beside the wanted engine, and nothing that runs depends on them.
_COMPANIONS = {
    "docker": (
        "docker-buildx",
        "docker-cli",
        "docker-compose",
        "docker-compose-v2",
        "docker-doc",
        "moby-buildx",
        "moby-cli",
        "moby-compose",
        "moby-runc",
        "podman-docker",
        "runc",
    ),
    "distro": (
        "docker-buildx-plugin",
        "docker-ce-cli",
        "docker-ce-rootless-extras",
        "docker-compose-plugin",
        "docker-model-plugin",
        "docker-scan-plugin",
        "moby-buildx",
        "moby-cli",
        "moby-compose",
        "moby-runc",
        "podman-docker",
    ),
}
_ARCHIVE_KEYRING = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}


@dataclass(frozen=True)
class Release:
    """The distribution of a node."""

    id: str
    codename: str
    version: str


def parse_os_release(text: str) -> Release:
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            values[name] = value.strip("\"'")
    release = Release(values.get("ID", ""), values.get("VERSION_CODENAME", ""), values.get("VERSION_ID", ""))
    if release.id not in _ARCHIVE_KEYRING or not release.codename:
        raise DockerError(
            f"this node runs {values.get('PRETTY_NAME') or release.id or 'an unknown system'}; "
            "the engine can be installed on Debian and Ubuntu"
        )
    return release


def default_packages(source: str, release: Release, confined: bool = False) -> list[str]:
    """The engine with its client, build and compose plugins, as far as the source has them.

    ``confined``: the kernel uses AppArmor. Without its parser the engine starts, and then starts no container. The engine's
    package only recommends it, and many images are set up to install nothing that is only recommended.
    """
    parser = ["apparmor"] if confined else []
    if source == "docker":
        return ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin", *parser]
    if release.id == "ubuntu":
        return ["docker.io", "docker-buildx", "docker-compose-v2", *parser]
    if release.version.isdigit() and int(release.version) < 13:
        # Debian 12 has neither plugin, and its client is in docker.io.
        return ["docker.io", *parser]
    return ["docker.io", "docker-cli", "docker-buildx", "docker-compose", *parser]


def is_confined(root: str = "/") -> bool:
    """Whether the kernel uses AppArmor."""
    try:
        with open(os.path.join(root, "sys/module/apparmor/parameters/enabled"), encoding="ascii") as handle:
            return handle.read().strip() == "Y"
    except OSError:
        return False


def split_spec(spec: str) -> tuple[str, str]:
    """Name and version pattern of ``name`` or ``name=version``, as apt takes them."""
    name, _equals, version = spec.partition("=")
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
        raise DockerError(f"packages holds '{spec}'; allowed is a package name, or name=version")
    return name, version


def parse_installed(dpkg_query: str) -> dict[str, str]:
    """Versions of installed packages from lines of ``status name version``."""
    rows = (line.split() for line in dpkg_query.splitlines())
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "installed"}


def interesting_packages(specs: Iterable[str]) -> list[str]:
    names = {split_spec(spec)[0] for spec in specs}
    for source, engine in ENGINE.items():
        names.update((engine, *_ENGINES[source], *_COMPANIONS[source]))
    return sorted(names)


def missing_packages(specs: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Those of ``specs`` that apt would have to install or bring to another version."""
    missing = []
    for spec in specs:
        name, version = split_spec(spec)
        if name not in installed or (version and not fnmatchcase(installed[name], version)):
            missing.append(spec)
    return missing


def conflicts(source: str, installed: Mapping[str, str]) -> list[str]:
    """Installed packages that must go before the engine of ``source`` can come."""
    if ENGINE[source] in installed:
        return []
    return [name for name in (*_ENGINES[source], *_COMPANIONS[source]) if name in installed]


def check_engine(
    source: str, installed: Mapping[str, str], replace: bool, others: Sequence[str] = (), containers: int = 0
) -> None:
    """Refuse to install an engine over one that may be at work. ``others`` are engines that no package owns."""
    if ENGINE[source] in installed:
        return
    if others:
        raise DockerError(
            f"this node has an engine that apt does not know: {', '.join(others)}. Two engines cannot share one "
            f"socket: remove it (its images and containers stay behind), then run again to install {ENGINE[source]}"
        )
    found = [f"{name} {installed[name]}" for name in _ENGINES[source] if name in installed]
    if not found or replace:
        return
    working = f", with {containers} container(s) running" if containers else ""
    keep = [other for other, engine in ENGINE.items() if other != source and engine in installed]
    raise DockerError(
        f"docker_source is {source}, but this node has {' and '.join(found)}{working}. "
        "Replacing it stops its containers. "
        + (f"Set docker_source: {keep[0]} to keep it, or " if keep else "To accept that, ")
        + f"set docker_replace_engine: true to have it removed and {ENGINE[source]} installed"
    )


def expand_url(url: str, release: Release) -> str:
    """``{id}`` and ``{codename}`` stand for the node's distribution, so that one setting serves a mixed cluster."""
    return url.replace("{id}", release.id).replace("{codename}", release.codename).rstrip("/")


def archive_keyring(release: Release) -> str:
    return _ARCHIVE_KEYRING[release.id]


def render_sources(source: str, url: str, release: Release, architecture: str, signed_by: str) -> str:
    components = "stable" if source == "docker" else "main universe" if release.id == "ubuntu" else "main"
    lines = {
        "Types": "deb",
        "URIs": url,
        "Suites": release.codename,
        "Components": components,
        "Architectures": architecture,
        "Signed-By": signed_by,
    }
    return "\n".join([HEADER, *(f"{key}: {value}" for key, value in lines.items()), ""])


def check_key(data: bytes, wanted: str, origin: str) -> None:
    """Refuse a key file that holds anything but the pinned key: apt would trust every key in it."""
    pinned = normalised(wanted)
    try:
        found = fingerprints(data)
    except KeyFormatError as error:
        raise DockerError(f"{origin} is not the key of the repository: {error}. Nothing was installed") from None
    if found != [pinned]:
        raise DockerError(
            f"the key at {origin} has the fingerprint {' and '.join(found)}, but docker_repository_key_fingerprint is "
            f"{pinned}. Nothing was installed. If the repository really changed its key, take the new fingerprint from "
            "its owner, not from this message"
        )


def is_pinned_key(data: bytes, wanted: str) -> bool:
    try:
        return fingerprints(data) == [normalised(wanted)]
    except KeyFormatError:
        return False


def _uris(text: str, deb822: bool) -> list[list[str]]:
    """The URIs of every active entry of a sources file."""
    if not deb822:
        lines = (re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split() for line in text.splitlines())
        return [[words[1].rstrip("/")] for words in lines if len(words) > 2 and words[0] in ("deb", "deb-src")]
    found = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        if re.search(r"(?mi)^Enabled:\s*(no|false|0|off)\s*$", stanza):
            continue
        field = re.search(r"(?mi)^URIs:((?:.*)(?:\n[ \t]+.*)*)", stanza)
        if field:
            found.append([uri.rstrip("/") for uri in field.group(1).split()])
    return found


def doubles(files: Mapping[str, str], url: str) -> list[str]:
    """Files of ``files`` (path to text) that name the repository ``url`` and nothing else: older forms of the same.

    apt refuses two entries of one repository with different keys. Raises where such a file holds more than that.
    """
    found = []
    for path, text in files.items():
        if path == SOURCES_FILE:
            continue
        entries = _uris(text, deb822=path.endswith(".sources"))
        if not any(url in entry for entry in entries):
            continue
        if any(entry != [url] for entry in entries):
            raise DockerError(
                f"{path} names {url} beside other repositories. apt refuses a repository that is listed twice with "
                "different keys: take that entry out, then run again"
            )
        found.append(path)
    return found
