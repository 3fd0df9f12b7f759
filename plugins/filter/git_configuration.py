# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``git_configuration``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..module_utils._access import git_configuration, without_account

DOCUMENTATION = r"""
name: git_configuration
short_description: What git needs to reach a repository as the site does, as a file
version_added: 0.1.0
description:
  - The text of a file for E(GIT_CONFIG_GLOBAL), from what P(metalray.cluster.site_environment#filter) returns. A proxy's address,
    with the account in it, is then on no command line and in no process's environment. The account's own settings are included.
author:
  - The metalray contributors (@metalray)
positional: _input
options:
  _input:
    description: Environment variables.
    type: dict
    required: true
  url:
    description: The repository's address.
    type: str
    required: true
  repositories:
    description: Repositories of a bundle, their address without an account to the directory's name. They are asked instead.
    type: dict
    default: {}
  directory:
    description: Where on the node these directories are.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Lead git through the proxy
  metalray.cluster.node_files:
    files:
      - path: /etc/metalray/git.conf
        content: "{{ {'https_proxy': 'http://proxy.example.com:3128'} | metalray.cluster.git_configuration(url=repository) }}"
        mode: "0600"
        secret: true
  become: true
"""

RETURN = r"""
_value:
  description: The text, or nothing where git needs none.
  type: str
"""


def configuration(
    values: Mapping[str, Any], url: str, repositories: Mapping[str, str] | None = None, directory: str = ""
) -> str:
    places = {address: f"file://{directory}/{name}" for address, name in (repositories or {}).items()}
    if without_account(url) in places:
        places[url] = places[without_account(url)]
    return git_configuration({name: str(value) for name, value in values.items()}, url, places)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"git_configuration": configuration}
