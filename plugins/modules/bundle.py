#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Build one archive from which a site without internet is made
version_added: 0.1.0
description:
  - Fetches packages of the distribution with all that they depend on, and a git repository with its submodules, adds a
    directory of wheels, and packs them with a manifest of their hashes.
  - It runs on a host that reaches the world and runs the same release of the distribution as the nodes. apt works on
    directories of its own there, below O(path), and needs no root.
  - apt checks the packages by the signatures of their repositories, git by the commit.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: none
    description: It changes nothing but O(path).
  diff_mode:
    support: none
    description: The archive is described by its manifest.
  idempotent:
    support: full
    description:
      - What is below O(path) is used again. A second run reports no change where the same packages and commits were to be had.
options:
  path:
    description: Directory to work in and for the archive. It belongs to the account that runs the module.
    type: path
    required: true
  packages:
    description: What the roles install.
    type: list
    elements: dict
    default: []
    suboptions:
      names:
        description: Packages of the distribution.
        type: list
        elements: str
        required: true
      recommends:
        description: Fetch what they recommend too.
        type: bool
        default: false
      optional:
        description: Leave out those that apt does not know.
        type: bool
        default: false
  docker:
    description: The options O(metalray.cluster.docker_repository#module:source) to
      O(metalray.cluster.docker_repository#module:packages) of M(metalray.cluster.docker_repository).
    type: dict
    default: {}
  wheels:
    description: Directory with wheels.
    type: path
  built:
    description: Names of those files in it whose hashes are not the lock's, since they were built or given.
    type: list
    elements: str
    default: []
  source_url:
    description: Address of a git repository. Empty is none.
    type: str
    default: ''
  source_version:
    description: A commit or tag of it.
    type: str
    default: ''
  source_submodules:
    description: Take its submodules too.
    type: bool
    default: true
  settings:
    description: What of the inventory decided what is in the archive. Set by the action.
    type: dict
    default: {}
  environment:
    description: Environment variables that tell how the host reaches the world. Accounts in them are not shown.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Pack what the nodes need
  metalray.cluster.bundle:
    path: /var/tmp/metalray-bundle
    packages:
      - names: [nfs-common, python3-venv]
    wheels: /var/tmp/metalray-bundle/house/3f0c9a1be2d4
"""

RETURN = r"""
archive:
  description: The archive.
  returned: success
  type: str
  sample: /var/tmp/metalray-bundle/metalray-bundle-bookworm-amd64.tar
sha256:
  description: Hash of its manifest, which has the hashes of all that is in it.
  returned: success
  type: str
size:
  description: Bytes of the archive.
  returned: success
  type: int
parts:
  description: Files and bytes of each part.
  returned: success
  type: dict
  sample: {apt: {files: 123, bytes: 52000000}}
packages:
  description: The packages that were asked for and are in it.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url

from ..module_utils import _bundle_apt as apt
from ..module_utils import _docker_repository as docker
from ..module_utils._access import apply_environment, git_configuration, hide_accounts, without_addresses
from ..module_utils._bundle import (
    PARTS,
    BundleError,
    Manifest,
    list_files,
    read_manifest,
    write_archive,
)
from ..module_utils._bundle_source import Mirrors
from ..module_utils._docker import DockerError
from ..module_utils._openpgp import armor, dearmor

_KEY_LIMIT = 1 << 20


class Work:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.root = Path(module.params["path"])
        self.parts = self.root / "parts"

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        return self.module.run_command(list(command), environ_update=dict(environment))

    def architecture(self) -> str:
        rc, out, err = self.run(["dpkg", "--print-architecture"], {"LC_ALL": "C"})
        if rc != 0:
            raise BundleError(f"dpkg does not tell the architecture of this host: {err.strip()}")
        return out.strip()

    def sources(self, release: docker.Release, architecture: str) -> tuple[dict[str, str], list[apt.Group]]:
        """The lists of sources, Docker's among them, and what it adds to the packages."""
        files = apt.source_files(Path("/etc/apt"))
        wanted = self.params["docker"]
        if not wanted:
            return files, []
        names = wanted["packages"] or docker.default_packages(wanted["source"], release, confined=True)
        url = docker.expand_url(wanted["url"], release)
        if url:
            key_url = docker.expand_url(wanted["key_url"], release)
            key_url = key_url or (f"{url}/gpg" if wanted["source"] == "docker" else "")
            signed_by = docker.archive_keyring(release)
            if key_url:
                signed_by = str(self.root / "docker.asc")
                Path(signed_by).write_text(self.key(key_url, wanted["key_fingerprint"]), encoding="ascii")
            files = {name: text for name, text in files.items() if url not in text}
            files["docker.sources"] = docker.render_sources(wanted["source"], url, release, architecture, signed_by)
        return files, [apt.Group(names, recommends=True)]

    def key(self, url: str, fingerprint: str) -> str:
        response, info = fetch_url(self.module, url, timeout=30)
        if info["status"] != 200 or response is None:
            raise BundleError(f"the key of Docker's repository cannot be fetched from {url}: {info['msg']}")
        data = response.read(_KEY_LIMIT)
        docker.check_key(data, fingerprint, url)
        return armor(dearmor(data))

    def apt(self, release: docker.Release, architecture: str) -> list[str]:
        root, place = self.root / "apt", self.parts / "apt"
        files, groups = self.sources(release, architecture)
        groups += [apt.Group(**group) for group in self.params["packages"]]
        environment = apt.prepare(root, files, self.params["environment"])
        environment.update(without_addresses(self.params["environment"]))
        names, packages = apt.fetch(self.run, root, groups, environment)
        _empty(place)
        for name, path in packages.items():
            os.link(path, place / name)
        (place / "Packages").write_text(apt.index(self.run, place), encoding="utf-8")
        return names

    def source(self) -> dict[str, str]:
        place = self.parts / "source"
        place.mkdir(parents=True, exist_ok=True)
        url = self.params["source_url"]
        if not url:
            _empty(place)
            return {}
        file = self.root / "git.conf"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(git_configuration(self.params["environment"], url) or "[include]\n\tpath = ~/.gitconfig\n")
        environment = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": str(file), "LC_ALL": "C"}
        mirrors = Mirrors(self.run, place, environment, self.params["source_submodules"])
        mirrors.fetch(url, self.params["source_version"])
        for other in place.iterdir():
            if other.name not in mirrors.directories.values():
                shutil.rmtree(other)
        return mirrors.directories

    def copies(self) -> None:
        """What is there already."""
        wheels = self.params["wheels"]
        _empty(self.parts / "wheels")
        for path in sorted(Path(wheels).glob("*.whl")) if wheels else ():
            shutil.copyfile(path, self.parts / "wheels" / path.name)

    def all(self) -> dict[str, Any]:
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        release = docker.parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
        architecture = self.architecture()
        names = self.apt(release, architecture)
        sources = self.source()
        self.copies()
        manifest = Manifest(
            system=release.id,
            codename=release.codename,
            architecture=architecture,
            settings=self.params["settings"],
            packages=names,
            files=list_files(self.parts),
            sources=sources,
            built=sorted(self.params["built"]),
        )
        archive = self.root / f"metalray-bundle-{release.codename}-{architecture}.tar"
        changed = True
        if archive.exists():
            try:
                changed = read_manifest(str(archive)).digest != manifest.digest
            except BundleError:
                changed = True
        if changed:
            write_archive(self.parts, manifest, archive)
        parts = {name: list(manifest.part(name).values()) for name in PARTS}
        return {
            "changed": changed,
            "archive": str(archive),
            "sha256": manifest.digest,
            "size": archive.stat().st_size,
            "packages": names,
            "parts": {
                name: {"files": len(entries), "bytes": sum(entry["size"] for entry in entries)}
                for name, entries in parts.items()
            },
        }


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "packages": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "names": {"type": "list", "elements": "str", "required": True},
                    "recommends": {"type": "bool", "default": False},
                    "optional": {"type": "bool", "default": False},
                },
            },
            "docker": {"type": "dict", "default": {}},
            "wheels": {"type": "path"},
            "built": {"type": "list", "elements": "str", "default": []},
            "source_url": {"type": "str", "default": ""},
            "source_version": {"type": "str", "default": ""},
            "source_submodules": {"type": "bool", "default": True},
            "settings": {"type": "dict", "default": {}},
            "environment": {"type": "dict", "default": {}},
        },
    )
    apply_environment(module)
    hide_accounts(module, [module.params["source_url"]])
    try:
        result = Work(module).all()
    except (BundleError, DockerError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['path']}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
