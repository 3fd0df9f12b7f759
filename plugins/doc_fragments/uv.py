# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that take packages with uv: what is locked, and where packages come from."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  lock_name:
    description: How messages name the lock, such as its path on the controller.
    type: str
    default: lock
  python_archive:
    description:
      - Archive of the Python in O(python), for a node that lacks it, as python-build-standalone makes them
        (C(install_only.tar.gz)). An address, or a path on the node, followed by C(#sha256=) and its hash.
      - O(python) must be a full version then.
    type: str
    default: ''
  uv_version:
    description: Version of uv.
    type: str
    required: true
  uv_lock:
    description: Text of a requirements file with the hashes of uv in O(uv_version).
    type: str
    required: true
  index_url:
    description:
      - Address of the package index. Empty is the default of uv and pip. An account in it is not shown in messages.
    type: str
    default: ''
  extra_index_urls:
    description: Addresses of more package indexes.
    type: list
    elements: str
    default: []
  find_links:
    description: Directories on the node with packages to take from, beside the index.
    type: list
    elements: path
    default: []
  ca_bundle:
    description:
      - File on the node with the certificates of the authorities to trust. Empty is the system's own bundle where
        there is one.
    type: path
    default: ''
  torch_backend:
    description: Value for uv's C(--torch-backend), such as V(cu130) or V(cpu). Empty is none.
    type: str
    default: ''
notes:
  - Messages name the options with the prefix C(python_env_), as the variables of the role are named.
"""
