# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every stage alone, by its tag, on nodes that nobody has touched, and from a bundle. The tests build on each other, in this order."""

from __future__ import annotations

import json

import pytest
from sandbox import NODES, Run, assert_unchanged, fingerprints, site

# Until there is one.
NO_BUNDLE = {"METALRAY_BUNDLE": ""}


def assert_refused(run: Run, mend: str) -> None:
    assert run.status != 0 and run.changed == 0, run.text[-4000:]
    assert mend in run.said, run.text[-4000:]
    assert "Traceback" not in run.text


@pytest.mark.parametrize(
    "variables",
    [{}, {"cluster_shared_backend": "nfs", "cluster_shared_dir": "/srv/shared"}],
    ids=["external directory", "nfs"],
)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(variables):
    before = fingerprints()
    run = site("--check", "--diff", "-e", json.dumps(variables), **NO_BUNDLE)
    assert run.status == 0, run.text[-4000:]
    assert all(run.recap[node]["changed"] > 5 for node in NODES), run.recap
    for said in (
        "docker.io",
        "/etc/metalray/cluster.env",
        "/etc/security/limits.d/90-metalray.conf",
        "metalray-worker.service",
    ):
        assert said in run.text
    if variables:
        assert "nfs-kernel-server" in run.text and "/srv/shared 10.77.252.12(rw," in run.text
    assert fingerprints() == before


@pytest.mark.parametrize(
    ("stage", "mend"),
    [
        ("ray", "--tags python_env,network_env"),
        ("versions", "--tags python_env"),
        ("training", "--tags python_env,ray"),
    ],
)
def test_a_stage_too_early_is_refused_and_says_which_comes_first(stage, mend):
    before = fingerprints()
    assert_refused(site("--tags", stage, "-e", "training_job=smoke", **NO_BUNDLE), mend)
    assert fingerprints() == before


def test_the_summary_of_fresh_nodes_says_that_ray_is_not_there():
    run = site("--tags", "summary", "-e", "training_job=smoke", **NO_BUNDLE)
    assert_unchanged(run)
    assert "Ray: does not answer on node1" in run.text and run.text.count("not in Ray") == 3


def test_one_node_makes_the_bundle_and_then_all_are_cut_off():
    run = site(playbook="molecule/offline/cut_off.yml", **NO_BUNDLE)
    assert run.status == 0, run.text[-6000:]


@pytest.mark.parametrize("stage", ["nfs", "docker", "limits", "network_env", "firewall", "python_env"])
def test_a_stage_alone_prepares_the_nodes(stage):
    run = site("--tags", stage)
    assert run.status == 0 and run.changed > 0, run.text[-6000:]


def test_training_without_ray_is_refused():
    assert_refused(
        site("--tags", "training", "-e", "training_job=smoke", "-e", "training_cluster_timeout=1"), "--tags ray"
    )


def test_ray_alone_starts_on_prepared_nodes():
    run = site("--tags", "ray")
    assert run.status == 0 and all(run.recap[node]["changed"] for node in NODES), run.text[-6000:]


@pytest.mark.parametrize("stage", ["versions", "dataset", "training"])
def test_a_stage_alone_looks_at_the_running_cluster(stage):
    assert_unchanged(site("--tags", stage))


def test_the_summary_alone_shows_the_cluster():
    run = site("--tags", "summary")
    assert_unchanged(run)
    assert "3 of 3 nodes alive" in run.text and run.text.count("  3.13.") == 3


def test_the_stages_alone_left_nothing_to_do():
    assert_unchanged(site())
