# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.metalray.cluster.plugins.module_utils._summary import describe_proof, render, tunnel

NODE = {"interface": "fab0", "mtu": 9000, "speed_mbps": 100000, "cpus": 64, "gpus": 8}
PLAN = {
    "head": "a",
    "cidr": "10.0.0.0/24",
    "shared_dir": "/mnt/shared",
    "missing": ["c"],
    "nodes": {"a": {**NODE, "address": "10.0.0.1"}, "b": {**NODE, "address": "10.0.0.2", "speed_mbps": None}},
}
CLUSTER = {
    "nodes": [{"address": "10.0.0.1", "alive": True, "resources": {"total": {"CPU": 32.0, "GPU": 8.0}}}],
    "resources": {"total": {"CPU": 32.0, "GPU": 8.0}},
}
VERSIONS = {"a": {"python": "3.12.9", "packages": {"ray": "2.60.0", "torch": "2.13.0"}}}
TRAINING = {"submission_id": "smoke-1", "status": "SUCCEEDED", "first_loss": 1.0, "last_loss": 0.25, "samples_per_second": 12345.6,
            "world_size": 2, "backend": "gloo",
            "ranks": [{"rank": 0, "hostname": "host-a",
                       "traffic": [{"interface": "fab0", "address": "10.0.0.1", "bytes_sent": 8189522}]},
                      {"rank": 1, "hostname": "host-b", "traffic": []}]}  # fmt: skip


def test_every_node_has_a_row_also_the_ones_that_are_not_there():
    lines = render(
        PLAN, CLUSTER, VERSIONS, TRAINING, "Network: proved", "ssh -N -L 8265:127.0.0.1:8265 ops@h", 8265
    ).splitlines()
    assert lines[2].split()[:4] == ["a", "head", "10.0.0.1", "fab0"] and lines[2].endswith("alive")
    assert "100 Gb/s, MTU 9000" in lines[2]
    assert lines[2].split()[-6:] == ["32", "8", "3.12.9", "2.60.0", "2.13.0", "alive"]
    assert lines[3].endswith("not in Ray") and "speed unknown" in lines[3]
    assert lines[4].startswith("c ") and lines[4].endswith("no answer")
    assert "Ray: 1 of 3 nodes alive, 32 CPUs, 8 GPUs" in lines[6]
    assert lines[7] == "Network: proved"
    assert "  loss 1 -> 0.25, 12,346 samples/s, 2 workers over gloo" in lines
    assert "  rank 0 on host-a: fab0 10.0.0.1 (8.2 MB sent)" in lines
    assert "  rank 1 on host-b: alone, no traffic" in lines


def test_nothing_known_yet():
    text = render({**PLAN, "missing": []}, {}, {}, {}, "Network: not proved", "ssh x", 8265)
    assert "Ray: does not answer on a, the head; --tags ray starts it." in text and text.count("not in Ray") == 2
    assert "Network 10.0.0.0/24, shared directory /mnt/shared" in text
    assert "ssh x" not in text
    assert "No job has been run." in render(PLAN, CLUSTER, {}, {"status": "ABSENT"}, "", "ssh x", 8265)


def test_the_last_proof_of_the_network_and_whether_it_still_holds():
    record = {"fingerprint": "f", "text": "3 nodes reach each other", "when": "2026-01-02 03:04 UTC"}
    proved = "Network: 3 nodes reach each other (2026-01-02 03:04 UTC"
    assert describe_proof({"a": record, "b": record}, "f") == f"{proved})"
    # One that failed, or has another fingerprint, is not passed over.
    assert describe_proof({"a": record, "b": {}, "c": {**record, "fingerprint": "e"}}, "f").startswith(
        f"{proved}; not proved on b, c,"
    )
    assert (
        describe_proof({"a": record}, "g")
        == describe_proof({"a": {}}, "f")
        == ("Network: not proved as it is now, --tags network_env does")
    )


def test_the_tunnel_can_be_pasted():
    assert tunnel("203.0.113.5", "ubuntu", 22, None, 8265) == "ssh -N -L 8265:127.0.0.1:8265 ubuntu@203.0.113.5"
    assert tunnel("h", None, 2222, "/keys/my key", 8266) == "ssh -N -L 8266:127.0.0.1:8266 -i '/keys/my key' -p 2222 h"
