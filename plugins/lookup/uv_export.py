# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: uv_export
short_description: The lock of a project that uv manages
version_added: 0.1.0
description:
  - Returns what the C(uv.lock) beside a C(pyproject.toml) pins, in the format of requirements files, with hashes, for
    O(metalray.cluster.python_env#module:lock).
  - Runs C(uv export) on the controller. Nothing is resolved and no network is used. The project itself is left out.
  - A C(uv.lock) that is missing or older than the project is refused.
author:
  - The metalray contributors (@metalray)
options:
  _terms:
    description: Paths of files C(pyproject.toml), or of their directories.
    type: list
    elements: str
    required: true
  extras:
    description: Extras to include.
    type: list
    elements: str
    default: []
  groups:
    description: Dependency groups to include. Without any, not even C(dev) is.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show what the project's lock pins
  ansible.builtin.debug:
    msg: "{{ lookup('metalray.cluster.uv_export', inventory_dir ~ '/pyproject.toml', extras=['train']) }}"
"""

RETURN = r"""
_raw:
  description: The text of each lock.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ..plugin_utils._pyproject import ProjectError, export


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        try:
            return [export(term, self.get_option("extras"), self.get_option("groups")) for term in terms]
        except ProjectError as error:
            raise AnsibleLookupError(str(error)) from None
