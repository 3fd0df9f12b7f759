# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site playbook as its users run it, on the converged nodes: again, in part, installed, with wrong input, without a node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from sandbox import INVENTORY, NODES, PROJECT, assert_unchanged, fingerprints, on, site, users_environment

STAGES = [
    "preflight",
    "docker",
    "nfs",
    "python_env",
    "limits",
    "network_env",
    "firewall",
    "ray",
    "versions",
    "dataset",
    "training",
    "summary",
]
MOST_REMOTE_COMMANDS = 40


def test_a_second_run_changes_nothing_and_is_cheap(capsys):
    """Counted by sshd, not by Ansible: each command that reaches a node leaves a line in its journal."""
    sessions = "sudo journalctl --quiet --no-pager --output cat --identifier sshd | grep -c '^Starting session: '"
    before = {node: int(on(node, sessions)) for node in NODES}
    run = site()
    assert_unchanged(run)
    # The question itself is one more session.
    counts = {node: int(on(node, sessions)) - before[node] - 1 for node in NODES}
    with capsys.disabled():
        print(f"\nremote commands of a run that changes nothing: {counts}")
    assert all(0 < count <= MOST_REMOTE_COMMANDS for count in counts.values()), counts
    assert "3 of 3 nodes alive" in run.text


def test_a_dry_run_promises_no_change_either():
    assert_unchanged(site("--check", "--diff"))


@pytest.mark.parametrize("stage", [*STAGES, "nfs_server", "nfs_client"])
def test_a_stage_alone(stage):
    assert_unchanged(site("--tags", stage))


def test_one_worker_alone():
    run = site("--limit", "node2", "--tags", "network_env,ray,versions")
    assert run.status == 0, run.text[-4000:]
    assert set(run.recap) == {"node2"} and run.changed == 0


def play_names(path: Path) -> list[str]:
    names: list[str] = []
    for play in yaml.safe_load(path.read_text(encoding="utf-8")):
        imported = play.get("ansible.builtin.import_playbook")
        names += play_names(path.parent / imported) if imported else [play["name"]]
    return names


def test_the_installed_collection_does_the_same_where_awx_runs_it(tmp_path):
    """By ansible-runner, whose events are what AWX shows."""
    pytest.importorskip("ansible_runner")
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", tmp_path],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    tarball = next(tmp_path.glob("*.tar.gz"))
    subprocess.run(
        ["ansible-galaxy", "collection", "install", "--offline", "--no-deps", "--force", "-p", tmp_path, tarball],
        check=True,
        capture_output=True,
    )
    installed = tmp_path / "ansible_collections/metalray/cluster"
    assert not (installed / "collections").exists()

    (tmp_path / "run/project").mkdir(parents=True)
    run = subprocess.run(
        ["ansible-runner", "run", tmp_path / "run", "--ident", "site", "--inventory", INVENTORY,
         "--playbook", "metalray.cluster.site"],
        env=users_environment(ANSIBLE_COLLECTIONS_PATH=str(tmp_path), ANSIBLE_PIPELINING="1"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
    files = (tmp_path / "run/artifacts/site/job_events").glob("*.json")
    written = [path.read_text(encoding="utf-8") for path in files]
    events = sorted(map(json.loads, written), key=lambda event: event["counter"])
    assert not {"runner_on_failed", "runner_on_unreachable", "error"} & {event["event"] for event in events}
    begun = [event["event_data"]["name"] for event in events if event["event"] == "playbook_on_play_start"]
    assert begun == play_names(installed / "playbooks/site.yml")
    (recap,) = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
    assert set(recap["ok"]) == set(NODES) and recap["changed"] == {}
    token = on("node1", "sudo cat /etc/metalray/ray_token")
    assert len(token) == 64 and not any(token in text for text in written)


def test_a_checkout_may_have_any_name(tmp_path):
    checkout = tmp_path / "we ird.name"
    left_out = shutil.ignore_patterns(".git", ".venv", ".cache", ".sandbox", "build", "reports")
    shutil.copytree(PROJECT, checkout, symlinks=True, ignore=left_out)
    run = site("--tags", "network_env,summary", cwd=checkout)
    assert_unchanged(run)
    assert "3 of 3 nodes alive" in run.text


def test_the_job_trained_on_every_node_through_the_private_network():
    results = json.loads(on("node1", "cat /mnt/shared/results/smoke-*.json"))
    assert results["status"] == "SUCCEEDED" and results["world_size"] == 3
    assert results["last_loss"] < results["first_loss"] / 5
    ways = {
        rank["hostname"]: {way["interface"] for way in rank["traffic"] if not way["within_node"]}
        for rank in results["ranks"]
    }
    assert ways == {"node1": {"enp27s0f0np0"}, "node2": {"enp157s0f0np0"}, "node3": {"eth1"}}
    assert min(way["bytes_sent"] for rank in results["ranks"] for way in rank["traffic"]) > 100_000
    for node in NODES:
        assert on(node, f"ls {results['checkpoint']}")


def test_the_job_trains_again_only_when_asked():
    def attempts() -> int:
        return int(
            on("node1", "bash -lc 'ray job list' 2>&1 | grep -o \"submission_id='smoke-[^']*\" | sort -u | wc -l")
        )

    before = attempts()
    assert_unchanged(site("--tags", "training"))
    assert attempts() == before
    run = site("--tags", "training", "-e", "training_force=true", "-e", "training_smoke_epochs=5")
    assert run.status == 0 and run.recap["node1"]["changed"] == 1, run.text[-4000:]
    assert attempts() == before + 1


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"docker_source": "snap", "ray_port": "six", "training_job": "dance"},
            [
                "docker_source is 'snap', it must be one of docker, distro",
                "ray_port is 'six', it must be of type int",
                "training_job is 'dance', it must be one of",
            ],
        ),
        (
            {
                "cluster_cidr": "192.0.2.0/24",
                "cluster_user": "nobody-here",
                "limits_nofile": 99999999,
                "cluster_shared_backend": "external",
                "cluster_shared_dir": "/not/there",
            },
            [
                "cluster_cidr is 192.0.2.0/24, but this node has",
                "cluster_user is 'nobody-here', which has no account there",
                "limits_nofile is 99999999, but this node cannot go above",
                "cluster_shared_backend is 'external', but /not/there does not exist",
            ],
        ),
        ({"cluster_interface": "nope0"}, ["cluster_interface is 'nope0', but this node has"]),
    ],
    ids=["types", "meaning", "interface"],
)
def test_wrong_input_is_refused_before_anything_is_changed(variables, says):
    """Everything that is wrong is said at once, for every node."""
    before = fingerprints()
    run = site("-e", json.dumps(variables))
    assert run.status != 0 and run.changed == 0
    assert "Nothing was changed" in run.text
    for text in says:
        assert all(f"{node}: {text}" in run.text for node in NODES), (text, run.text[-5000:])
    assert "Traceback" not in run.text
    assert fingerprints() == before


def test_an_inventory_with_two_heads_is_refused(tmp_path):
    shutil.copytree(INVENTORY, tmp_path / "inventory")
    hosts = tmp_path / "inventory/hosts.yml"
    text = hosts.read_text(encoding="utf-8")
    hosts.write_text(text.replace("        workers:\n          hosts:\n", ""), encoding="utf-8")
    run = site(inventory=tmp_path / "inventory")
    assert run.status != 0 and "'head' has 3 hosts" in run.text and "Traceback" not in run.text


def test_nodes_that_differ_stop_the_run_and_a_job_that_is_started_without_it():
    """An edit inside of a package, which no version tells of."""
    file = on("node2", "ls /opt/metalray/venv/lib/python3*/site-packages/click/globals.py")
    # By renaming, as an editor does: the cache of uv shares the file.
    on("node2", f"sudo cp -a {file} /root/ && sudo sed -i '1i # mine' {file}")
    job = {"training_job": "command", "training_command": "echo trained", "training_command_name": "parity"}
    try:
        run = site("--tags", "versions,training", "-e", json.dumps(job))
        assert run.status != 0
        assert "version mismatch: node2 of 3 nodes differs from the rest in click;" in run.said, run.text[-4000:]
        assert "edited on node2: click/globals.py" in run.said
        assert "--tags python_env,ray --limit node2" in run.said
        assert "TASK [Training]" not in run.text.split("TASK [Compare them]")[1]
        # The job asks Ray, which has a task read each node.
        started = site("--tags", "training", "-e", json.dumps(job))
        assert started.status != 0
        assert "version mismatch: node2 of 3 nodes differs from the rest in click;" in started.said, started.text[
            -6000:
        ]
        assert "edited on node2: click/globals.py" in started.said
        assert "| trained" not in started.text
    finally:
        on("node2", f"sudo mv /root/globals.py {file}")
    done = site("--tags", "versions,training", "-e", json.dumps(job))
    assert done.status == 0 and "| 3 nodes have the same versions" in done.text, done.text[-4000:]
    assert "| trained" in done.text
