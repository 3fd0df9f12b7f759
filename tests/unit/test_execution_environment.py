# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-builder makes of execution-environment.yml. Its build needs a registry, and is not tried here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("context")
    command = [Path(sys.executable).with_name("ansible-builder"), "create", "--output-filename", "Containerfile"]
    done = subprocess.run([*command, "--context", directory], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_what_is_installed_is_pinned(context):
    containerfile = (context / "Containerfile").read_text(encoding="utf-8")
    assert 'ARG ANSIBLE_INSTALL_REFS="ansible-core==2.20.10 ansible-runner==2.4.3"' in containerfile
    requirements = (context / "_build/requirements.txt").read_text(encoding="utf-8").split()
    assert requirements and all("==" in requirement for requirement in requirements)
    # From Galaxy comes nothing.
    assert not (context / "_build/requirements.yml").exists()


def test_the_base_image_is_the_builder_s_to_name(context):
    images = [
        line for line in (context / "Containerfile").read_text(encoding="utf-8").splitlines() if "BASE_IMAGE=" in line
    ]
    assert images == ['ARG EE_BASE_IMAGE="localhost/base-image:given-by-build-arg-EE_BASE_IMAGE"']


def test_the_collection_s_own_needs_are_in_it(context):
    declared = yaml.safe_load((ROOT / "meta/execution-environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert set(declared) == {"system"}
    assert (context / "_build/bindep.txt").read_text("utf-8") == (ROOT / declared["system"]).read_text("utf-8")
