# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the converged cluster: what was proved of it, and what is said when it is broken or wrongly set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sandbox import NODES, Run, assert_unchanged, fingerprints, on, site

RECORD = "/var/lib/metalray/network_proof.json"
PROVE = ["--tags", "network_env", "-e", "network_env_prove=always", "-e", "network_env_prove_timeout=20"]


@contextmanager
def rule(node: str, *words: str) -> Iterator[None]:
    """A rule of iptables in front of all others, for a while."""
    on(node, f"sudo iptables --wait --insert INPUT {' '.join(words)}")
    try:
        yield
    finally:
        on(node, f"sudo iptables --wait --delete INPUT {' '.join(words)}")


def address(node: str) -> str:
    return on(node, "bash -lc 'echo $VLLM_HOST_IP'")


@pytest.fixture(scope="module", autouse=True)
def proved_as_it_is_now() -> None:
    """Other tests have changed the nodes since they were converged, an environment for instance."""
    assert_unchanged(site("--tags", "network_env"))


def assert_fails(run: Run, *says: str) -> None:
    assert run.status != 0 and run.changed == 0, run.text[-4000:]
    for text in says:
        assert text in run.said, run.text[-4000:]
    assert "Traceback" not in run.text


def test_the_proof_is_kept_and_the_summary_says_so():
    records = {node: json.loads(on(node, f"cat {RECORD}")) for node in NODES}
    for record in records.values():
        assert "3 nodes reach each other both ways with packets of 1500 bytes" in record["text"]
        assert "all-reduce of 3 processes (gloo) over TCP" in record["text"]
    assert "on enp157s0f0np0" in records["node2"]["text"] and "on eth1" in records["node3"]["text"]
    run = site("--tags", "summary")
    assert f"Network: {records['node1']['text']} ({records['node1']['when']})" in run.text


def test_it_is_proved_again_only_when_asked_or_when_something_changed():
    seen = "stat -c %Y-%i /var/lib/metalray/network_proof.json"
    before = on("node2", seen)
    assert_unchanged(site("--tags", "network_env"))
    assert on("node2", seen) == before
    assert_unchanged(site(*PROVE))
    assert on("node2", seen) != before


def test_one_pair_that_does_not_reach_each_other_is_named():
    with rule("node3", "--source", address("node2"), "--protocol", "tcp", "--dport", "29477", "--jump", "DROP"):
        assert_fails(site(*PROVE), "node3", address("node3"), "29477")
    # What was proved before holds no longer, and is proved again without being asked to.
    assert "Network: not proved" in site("--tags", "summary").text
    assert_unchanged(site("--tags", "network_env"))
    assert "Network: 3 nodes reach each other" in site("--tags", "summary").text


def test_full_packets_that_get_lost_are_measured():
    with rule("node2", "--protocol", "udp", "--match", "length", "--length", "1401:65535", "--jump", "DROP"):
        assert_fails(site(*PROVE), "1400", "1500", "MTU")


def test_a_login_that_sends_gloo_elsewhere_is_noticed():
    on("node2", "echo export GLOO_SOCKET_IFNAME=lo | sudo tee /etc/profile.d/zz-local.sh")
    try:
        stage = ["--tags", "network_env"]
        assert_fails(site(*stage), "/etc/profile.d/zz-local.sh line 1 (node2): GLOO_SOCKET_IFNAME=lo")
        # Whoever accepts it is told by a fresh login that it wins over what was written.
        run = site(*stage, "-e", json.dumps({"network_env_accept": ["GLOO_SOCKET_IFNAME"]}))
        assert {node for node, counts in run.recap.items() if counts["failed"]} == {"node2"}, run.text[-4000:]
        own = address("node2")
        assert f"A fresh login of ops has 'lo {own}' where 'enp157s0f0np0 {own}'" in run.said
    finally:
        on("node2", "sudo rm /etc/profile.d/zz-local.sh")


def test_what_a_guide_left_on_a_node_is_found_before_anything_is_changed():
    left = {"GLOO_SOCKET_IFNAME": "eth9", "NCCL_P2P_DISABLE": "1", "GLOO_USE_IPV4": "1"}
    before = on("node2", "cat /etc/environment")
    words = " ".join(f"{name}={value}" for name, value in left.items())
    on("node2", f"printf '%s\\n' {words} | sudo tee -a /etc/environment")
    lines = before.count("\n") + bool(before)
    prints = fingerprints()
    try:
        run = site("--tags", "network_env")
        assert_fails(run, "Nothing was changed", f"/etc/environment line {lines + 1} (node2): GLOO_SOCKET_IFNAME=eth9")
        assert run.text.count(f"/etc/environment line {lines + 2} (node2): NCCL_P2P_DISABLE=1") == 1
        assert "GLOO_USE_IPV4=1 does nothing" in run.said
        assert fingerprints() == prints
        report = site(playbook="playbooks/network_report.yml")
        assert_unchanged(report)
        assert "GLOO_SOCKET_IFNAME=eth9" in report.said and "GLOO_SOCKET_IFNAME=enp27s0f0np0" in report.said
    finally:
        on("node2", "sudo sed -i '/^GLOO_\\|^NCCL_/d' /etc/environment")
    assert on("node2", "cat /etc/environment") == before


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"NCCL_SOCKET_NTHREAD": 4}, "Did you mean NCCL_SOCKET_NTHREADS?"),
        ({"NCCL_BUFFSIZE": "4M"}, "write 4194304"),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, "(node1, node2)"),
        ({"HF_TOKEN": "hunter2"}, "secrets.env"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_mend(extra, says):
    before = fingerprints()
    assert_fails(site("--tags", "network_env", "--check", "-e", json.dumps({"network_env_extra": extra})), says, *extra)
    assert fingerprints() == before


def test_a_profile_comes_and_goes():
    """The guide's settings, since these nodes have no GPU that they would harm: both files, in their own syntax."""
    as_it_was = ["--tags", "network_env", "-e", "network_env_prove=never"]
    guide = [*as_it_was, "-e", "network_env_profile=seed"]
    dry = site(*guide, "--check", "--diff")
    assert dry.status == 0 and "+NCCL_SOCKET_IFNAME=enp27s0f0np0" in dry.text, dry.text[-4000:]
    assert on("node1", "test -e /etc/nccl.conf || echo none") == "none"

    run = site(*guide)
    assert run.status == 0 and run.changed == len(NODES), run.text[-4000:]
    assert_unchanged(site(*guide))
    conf = on("node3", "cat /etc/nccl.conf").splitlines()
    assert "NCCL_SOCKET_IFNAME=eth1" in conf and "NCCL_P2P_DISABLE=1" in conf
    assert on("node3", "bash -lc 'echo $TP_SOCKET_IFNAME $TORCH_DISTRIBUTED_DEBUG'") == "eth1 DETAIL"

    back = site(*as_it_was)
    assert back.status == 0 and back.changed == len(NODES), back.text[-4000:]
    assert on("node1", "test -e /etc/nccl.conf || echo none") == "none"
    assert_unchanged(site("--tags", "network_env"))
