#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: docker_repository
short_description: Set up the apt repository of the Docker engine, its key pinned, and tell what is still to be
  installed
version_added: 0.1.0
description:
  - Tells in one call which packages of the wanted engine a node lacks and which installed packages stand in their way.
  - Writes the repository's key to C(/etc/apt/keyrings/docker.asc) and its entry to
    C(/etc/apt/sources.list.d/docker.sources). The key is compared with O(key_fingerprint) before it is written, and
    again on every run. A file with a second key in it is refused, because apt would trust both. No gpg is needed.
  - An older entry for the same repository, in a file that holds nothing else, is removed, because apt refuses a
    repository that is listed twice with different keys.
  - Refuses a node that has an engine of another source, unless O(replace_engine) is set. Installs and removes no
    package itself.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it. The key is not fetched then.
  diff_mode:
    support: full
    description: Returns the difference of the files; for the key, its fingerprints.
  idempotent:
    support: full
    description: A second run changes and downloads nothing.
options:
  source:
    description: V(docker) for the packages of Docker's own repository, V(distro) for those of the distribution.
    type: str
    choices: [docker, distro]
    default: docker
  url:
    description:
      - The apt repository. C({id}) and C({codename}) stand for the node's distribution and release.
      - When empty, no repository is written, because those that apt knows have the packages, and one that this module
        wrote before is removed.
    type: str
    default: ''
  key_url:
    description:
      - Where the repository's key is, armored or binary. The same placeholders as in O(url).
      - When empty, it is C(gpg) below O(url) for O(source=docker), and the keyring of the distribution that the node
        already has for O(source=distro).
    type: str
    default: ''
  key_fingerprint:
    description: Fingerprint of the repository's key. Needed wherever a key is fetched.
    type: str
    default: ''
  packages:
    description:
      - The packages to look for, as C(name) or C(name=version); a version may hold C(*).
      - When empty, the engine with its client, build and compose plugins, under the names they have in O(source) on
        this release.
    type: list
    elements: str
    default: []
  replace_engine:
    description: Accept that an engine of another source is to be removed, and its containers with it stopped.
    type: bool
    default: false
  environment:
    description: Environment variables for fetching the key, such as V(https_proxy). Accounts in them are not shown.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Set up Docker's repository
  become: true
  metalray.cluster.docker_repository:
    url: https://packages.example.org/docker/linux/{id}
    key_fingerprint: 9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88
  register: docker

- name: Install what is missing
  become: true
  ansible.builtin.apt:
    name: "{{ docker.missing }}"
    update_cache: true
  when: docker.missing | length > 0
"""

RETURN = r"""
paths:
  description: The files that changed, or would change in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/apt/keyrings/docker.asc, /etc/apt/sources.list.d/docker.sources]
engine:
  description: The installed version of the wanted engine, empty where it is not installed.
  returned: success
  type: str
  sample: 5:29.0.2-1~debian.12~bookworm
missing:
  description: Those of the packages that apt has to install.
  returned: success
  type: list
  elements: str
  sample: [docker-ce, containerd.io]
conflicts:
  description: Installed packages that must be removed before. Empty where the wanted engine is installed.
  returned: success
  type: list
  elements: str
  sample: [podman-docker]
prerequisites:
  description: Packages that must be installed before the key can be fetched. Where there are any, no file was written
    yet.
  returned: success
  type: list
  elements: str
  sample: [ca-certificates]
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url

from ..module_utils import _docker_repository as repository
from ..module_utils._access import apply_environment, hide_accounts
from ..module_utils._docker import DockerError, engine_get, engine_runs
from ..module_utils._files import FilesError, Wanted, apply_files, as_result
from ..module_utils._openpgp import armor, dearmor, normalised

APT = Path("/etc/apt")
KEY_LIMIT = 1 << 20


def installed_packages(module: AnsibleModule, packages: list[str]) -> dict[str, str]:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package} ${Version}\\n"]
    # It exits with 1 where one of the names is unknown.
    _rc, out, _err = module.run_command([*command, *repository.interesting_packages(packages)])
    return repository.parse_installed(out)


def foreign_engines(installed: dict[str, str]) -> list[str]:
    """Engines that no package owns."""
    found = ["the snap docker"] if Path("/snap/docker/current").exists() else []
    packaged = any(name in installed for name in (*repository.ENGINE.values(), "moby-engine"))
    if not packaged:
        found += [
            path for path in ("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd") if Path(path).exists()
        ]
    return found


def read_sources() -> dict[str, str]:
    directory = APT / "sources.list.d"
    paths = [APT / "sources.list", *sorted(directory.glob("*.list")), *sorted(directory.glob("*.sources"))]
    return {str(path): path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}


def fetch_key(module: AnsibleModule, url: str, fingerprint: str) -> str:
    response, info = fetch_url(module, url, timeout=30)
    if info["status"] != 200 or response is None:
        raise DockerError(
            f"the key of the repository cannot be fetched from {url}: {info['msg']}. Open the way there, give a mirror "
            "as docker_repository_url, or take the distribution's engine with docker_source: distro"
        )
    data = response.read(KEY_LIMIT)
    repository.check_key(data, fingerprint, url)
    return armor(dearmor(data))


def key_file(module: AnsibleModule, url: str, fingerprint: str) -> Wanted:
    """The pinned key as it is to lie on the node, fetched only where it does not yet."""
    path = Path(repository.KEY_FILE)
    present = path.read_bytes() if path.is_file() else b""
    if present and repository.is_pinned_key(present, fingerprint):
        return Wanted(str(path), present.decode("utf-8", "surrogateescape"))
    if module.check_mode:
        return Wanted(str(path), f"OpenPGP key {normalised(fingerprint)} from {url}\n")
    return Wanted(str(path), fetch_key(module, url, fingerprint))


def wanted_files(module: AnsibleModule, release: repository.Release, url: str, key_url: str) -> list[Wanted]:
    params = module.params
    sources = read_sources()
    if not url:
        # Only what this module wrote: the entry of an administrator stays.
        if not sources.get(repository.SOURCES_FILE, "").startswith(repository.HEADER):
            return []
        return [Wanted(path, state="absent") for path in (repository.SOURCES_FILE, repository.KEY_FILE)]
    files = [Wanted(path, state="absent") for path in repository.doubles(sources, url)]
    signed_by = repository.archive_keyring(release)
    if key_url:
        signed_by = repository.KEY_FILE
        files.append(key_file(module, key_url, params["key_fingerprint"]))
    rc, out, err = module.run_command(["dpkg", "--print-architecture"])
    if rc != 0:
        raise DockerError(f"dpkg does not tell the architecture of this node: {err.strip()}")
    text = repository.render_sources(params["source"], url, release, out.strip(), signed_by)
    return [*files, Wanted(repository.SOURCES_FILE, text)]


def describe(entry: dict[str, str], fingerprint: str) -> dict[str, str]:
    """The diff of the key in words: its armor tells nobody anything."""
    if entry["before_header"] != repository.KEY_FILE:
        return entry
    after = f"OpenPGP key {normalised(fingerprint)}\n" if entry["after"] else ""
    return {**entry, "before": "another key\n" if entry["before"] else "", "after": after}


def apply(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    source = params["source"]
    release = repository.parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
    packages = params["packages"] or repository.default_packages(source, release, repository.is_confined())
    installed = installed_packages(module, packages)
    missing = repository.missing_packages(packages, installed)
    in_the_way = repository.conflicts(source, installed) if missing else []
    if missing:
        info = (engine_get("/info") if engine_runs() else None) or {}
        others = foreign_engines(installed)
        repository.check_engine(source, installed, params["replace_engine"], others, info.get("ContainersRunning", 0))

    url = repository.expand_url(params["url"], release)
    key_url = repository.expand_url(params["key_url"], release) or (f"{url}/gpg" if url and source == "docker" else "")
    if url and key_url:
        try:
            normalised(params["key_fingerprint"])
        except ValueError as error:
            raise DockerError(f"key_fingerprint: {error}. A key is only trusted by its fingerprint") from None
    result = {
        "changed": False,
        "paths": [],
        "diff": [],
        "engine": installed.get(repository.ENGINE[source], ""),
        "missing": missing,
        "conflicts": in_the_way,
        "prerequisites": [],
    }
    if not os.path.exists("/etc/ssl/certs/ca-certificates.crt") and (url + key_url).find("https:") >= 0:
        result["prerequisites"] = ["ca-certificates"]
        if not module.check_mode:
            return result
    applied = as_result(apply_files(module, wanted_files(module, release, url, key_url)))
    applied["diff"] = [describe(entry, params["key_fingerprint"]) for entry in applied["diff"]]
    return {**result, **applied}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["docker", "distro"], "default": "docker"},
            "url": {"type": "str", "default": ""},
            "key_url": {"type": "str", "default": "", "no_log": False},
            "key_fingerprint": {"type": "str", "default": "", "no_log": False},
            "packages": {"type": "list", "elements": "str", "default": []},
            "replace_engine": {"type": "bool", "default": False},
            "environment": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    # Messages of apt and dpkg are read.
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8"}
    apply_environment(module)
    hide_accounts(module, [module.params["url"], module.params["key_url"]])
    try:
        result = apply(module)
    except (DockerError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
