# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``site_environment``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils._access import environment, without_addresses

DOCUMENTATION = r"""
name: site_environment
short_description: The environment variables that let tools reach the world as the site does
version_added: 0.1.0
description:
  - From a role's own environment variables and the site's shared settings, those that uv, pip and git read. The role's own go
    before the shared ones, in capitals or not.
author:
  - The metalray contributors (@metalray)
positional: _input
options:
  _input:
    description: The role's own environment variables.
    type: dict
    required: true
  proxy:
    description: Address of the proxy for HTTP and HTTPS, as in C(cluster_proxy).
    type: str
    default: ''
  no_proxy:
    description: What is reached without it, as in C(cluster_no_proxy).
    type: list
    elements: str
    default: []
  ca_bundle:
    description: File on the node with the certificates to trust, as in C(cluster_ca_bundle).
    type: str
    default: ''
  direct:
    description: Addresses of the nodes.
    type: list
    elements: str
    default: []
  addresses:
    description: Return the proxies' addresses too. Leave them out where a process gets the variables on its command line.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Build with what the site says, and a variable of its own
  become: true
  metalray.cluster.python_env:
    lock: "{{ lookup('ansible.builtin.file', 'locks/smoke.txt') }}"
    uv_version: 0.13.9
    uv_lock: "{{ lookup('ansible.builtin.file', 'uv.txt') }}"
    environment: "{{ {'UV_HTTP_TIMEOUT': '60'} | metalray.cluster.site_environment(proxy='http://proxy.example.com:3128') }}"
"""

RETURN = r"""
_value:
  description: The environment variables.
  type: dict
"""


def site_environment(own: Any, addresses: bool = True, **settings: Any) -> dict[str, str]:
    if not isinstance(own, Mapping):
        raise AnsibleFilterError(f"site_environment takes a dictionary of environment variables, not {own!r}")
    # Null in an inventory is a setting that is not made.
    values = environment(own, **{name: value for name, value in settings.items() if value})
    return values if addresses else without_addresses(values)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"site_environment": site_environment}
