# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy

import pytest
from ansible_collections.metalray.cluster.plugins.module_utils._plan import Settings, make_plan

SPECS = {
    "cluster_user": {"type": "str"},
    "cluster_shared_dir": {"type": "path", "default": "/mnt/shared"},
    "cluster_shared_backend": {"type": "str", "choices": ["nfs", "external"], "default": "nfs"},
    "nfs_server_clients": {"type": "list", "elements": "str"},
    "nfs_server_export_options": {"type": "list", "elements": "str", "default": ["rw"]},
    "nfs_server_root_squash": {"type": "bool", "default": True},
    "nfs_client_server": {"type": "str"},
    "nfs_client_mount_options": {"type": "list", "elements": "str", "default": ["hard"]},
    "cluster_interface": {"type": "str"},
    "cluster_cidr": {"type": "str"},
    "limits_nofile": {"type": "int", "default": 65536},
    "limits_memlock": {"type": "str", "default": "unlimited"},
    "docker_users": {"type": "list", "elements": "str"},
    "docker_daemon_options": {
        "type": "dict",
        "default": {"default-address-pools": [{"base": "172.17.0.0/16", "size": 24}]},
    },
    "firewall_closed_ports": {"type": "list", "elements": "str"},
    "firewall_allowed_networks": {"type": "list", "elements": "str", "default": []},
    "python_env_profile": {"type": "str", "choices": ["smoke", "custom"], "default": "smoke"},
    "python_env_lock": {"type": "path"},
    "python_env_pyproject": {"type": "str", "default": ""},
    "python_env_source_paths": {"type": "list", "elements": "str"},
    "python_env_source_url": {"type": "str", "default": ""},
    "python_env_source_version": {"type": "str", "default": ""},
    "training_job": {"type": "str", "choices": ["smoke", "command", "none"], "default": "smoke"},
    "cluster_bundle": {"type": "path"},
    "training_command": {"type": "str", "default": ""},
    "training_secrets": {"type": "dict", "default": {}, "no_log": True},
}


def shared_dir(**more):
    """The shared directory of a node, empty and on its own disk."""
    return {
        "answers": True,
        "error": "",
        "exists": True,
        "kind": "directory",
        "real": "/mnt/shared",
        "empty": True,
        "owner": {"uid": 0, "gid": 0, "mode": "0755"},
        "mount": {"source": "/dev/sda1", "point": "/", "type": "ext4"},
        "mounts": [],
        "unit": "",
        "fstab": [],
        "exports": [],
        "server_threads": 0,
        **more,
    }


def node(number: int, **more):
    return {
        "os": {"id": "debian", "version": "12", "codename": "bookworm", "name": "Debian GNU/Linux 12 (bookworm)"},
        "architecture": "x86_64",
        "python": "3.11.2",
        "systemd": True,
        "hostname": f"host{number}",
        "machine_id": f"{number:032x}",
        "cpus": 64,
        "memory_bytes": 2**40,
        "gpus": 8,
        "hard_limits": {"nofile": 524288, "memlock": None},
        "can_raise_limits": True,
        "user": {"name": "ray", "uid": 1000, "gid": 1000, "group": "ray", "home": "/home/ray"},
        "user_wanted": "ray",
        "shared_dir": shared_dir(),
        "networks": ["10.0.0.0/24"],
        "ca_bundles": {},
        "ssh_port": 22,
        "candidates": [
            {"interface": "fab0", "address": f"10.0.0.{number}", "prefix": 24, "mtu": 9000, "speed_mbps": 100000, "physical": True,
             "default_route": False}
        ],
        **more,
    }  # fmt: skip


class Cluster:
    def __init__(self) -> None:
        self.groups = {"head": ["a"], "workers": ["b", "c"], "cluster": ["a", "b", "c"]}
        self.nodes = {name: node(number) for number, name in enumerate("abc", start=1)}
        self.values: dict[str, dict] = {name: {} for name in "abc"}
        self.others: dict[str, list[str]] = {name: [] for name in "abc"}
        self.warnings: list[str] = []

    def plan(self):
        settings = {name: Settings(self.values[name], {}, self.others[name]) for name in self.values}
        return make_plan(self.groups, copy.deepcopy(self.nodes), settings, SPECS, self.warnings.append)

    def problems(self) -> str:
        plan, problems = self.plan()
        assert plan == {}
        return "\n".join(problems)


@pytest.fixture
def cluster():
    return Cluster()


def test_the_plan_of_a_sound_cluster(cluster):
    plan, problems = cluster.plan()
    assert problems == []
    assert (plan["head"], plan["head_address"], plan["cidr"], plan["user"]) == ("a", "10.0.0.1", "10.0.0.0/24", "ray")
    assert plan["addresses"] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] and plan["missing"] == []
    assert plan["shared_dir"] == "/mnt/shared" and plan["shared_backend"] == "nfs" and plan["ssh_port"] == 22
    assert plan["shared_unit"] == "mnt-shared.mount"
    assert plan["nodes"]["b"]["interface"] == "fab0" and plan["nodes"]["b"]["home"] == "/home/ray"


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        (["canary-1"], "training_secrets must be of type dict"),
        ({"RAY_ADDRESS": "canary-1"}, "training_secrets names RAY_ADDRESS"),
        ({"KEY": {"deep": "canary-1"}}, "training_secrets has KEY with a value that is no text"),
    ],
)
def test_wrong_secrets_are_refused_without_a_word_of_them(cluster, secrets, says):
    cluster.values["b"]["training_secrets"] = secrets
    told = cluster.problems()
    assert told.startswith(f"b: {says}") and "canary" not in told


def test_nodes_whose_ssh_ports_differ_have_none_in_common(cluster):
    cluster.nodes["b"]["ssh_port"] = 2200
    assert cluster.plan()[0]["ssh_port"] == 0


def test_a_head_alone_is_a_cluster(cluster):
    cluster.groups = {"head": ["a"], "cluster": ["a"]}
    cluster.nodes = {"a": node(1)}
    assert cluster.plan()[0]["addresses"] == ["10.0.0.1"]


def test_a_worker_that_did_not_answer_is_named_and_left_out(cluster):
    del cluster.nodes["b"]
    plan, problems = cluster.plan()
    assert problems == [] and plan["missing"] == ["b"] and set(plan["nodes"]) == {"a", "c"}


def test_a_head_that_did_not_answer_is_refused(cluster):
    del cluster.nodes["a"]
    assert "a: the head did not answer" in cluster.problems()


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"head": ["a", "b"], "workers": ["c"]}, "'head' has 2 hosts (a, b)"),
        ({"head": [], "workers": ["a", "b", "c"]}, "'head' is empty or missing"),
        ({"workers": ["a"]}, "'head' is empty or missing"),
        ({"head": ["a"], "workers": ["a", "b"]}, "a is in 'head' and in 'workers'"),
        ({"head": ["a"], "workers": ["b"], "cluster": ["a", "b", "c"]}, "c is in 'cluster' but neither"),
        ({"head": ["a"], "workers": ["b", "c"], "cluster": ["a"]}, "b, c is not in 'cluster'"),
    ],
)
def test_groups_that_make_no_cluster(cluster, groups, says):
    cluster.groups = {"cluster": sorted({*groups.get("head", []), *groups.get("workers", [])}), **groups}
    assert says in cluster.problems()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cluster_shared_backend": "ceph"}, "b: cluster_shared_backend is 'ceph', it must be one of nfs, external"),
        ({"limits_nofile": "many"}, "b: limits_nofile is 'many', it must be of type int"),
        ({"docker_users": {"name": "x"}}, "b: docker_users is {'name': 'x'}, it must be of type list"),
        (
            {"cluster_shared_dir": "/elsewhere"},
            "cluster_shared_dir differs between hosts: '/mnt/shared' on a, c; '/elsewhere' on b",
        ),
        ({"cluster_interface": "eth9"}, "b: cluster_interface is 'eth9', but this node has fab0 10.0.0.2/24"),
        ({"cluster_cidr": "192.0.2.0/24"}, "b: cluster_cidr is 192.0.2.0/24"),
        ({"cluster_cidr": "10.0.0.0/240"}, "b: cluster_cidr is '10.0.0.0/240'"),
    ],
)
def test_a_wrong_value_is_named_with_host_and_what_is_allowed(cluster, values, says):
    cluster.values["b"] = values
    assert says in cluster.problems()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"docker_daemon_options": {"default-address-pools": [{"base": "10.0.0.0/16", "size": 24}]}},
            "10.0.0.0/16 overlaps 10.0.0.0/24",
        ),
        ({"docker_daemon_options": {"default-address-pools": [{"base": "nonsense"}]}}, "b: docker_daemon_options: "),
        (
            {"firewall_closed_ports": ["6379", "22"]},
            "b: firewall_closed_ports: port 22 is asked to be closed, but it is one of SSH's",
        ),
        ({"firewall_closed_ports": ["http"]}, "b: firewall_closed_ports: "),
        (
            {"firewall_allowed_networks": ["0.0.0.0/0"]},
            "b: firewall_allowed_networks: '0.0.0.0/0' is the whole Internet",
        ),
        (
            {"python_env_lock": "/no/such/lock.txt"},
            "b: python_env_lock is '/no/such/lock.txt', and there is no such file",
        ),
        (
            {"python_env_profile": "custom"},
            "b: python_env_profile is 'custom', and neither python_env_lock nor python_env_pyproject is set",
        ),
        ({"python_env_pyproject": "/p"}, "b: python_env_pyproject is '/p', and python_env_profile is 'smoke'"),
        (
            {"python_env_profile": "custom", "python_env_pyproject": "/p", "python_env_lock": __file__},
            "the environment has one lock",
        ),
        ({"python_env_source_paths": ["ok", "a/../.."]}, "b: python_env_source_paths names 'a/../..'"),
        ({"python_env_source_paths": ["/mnt"]}, "b: python_env_source_paths names '/mnt'"),
        ({"python_env_source_paths": ["a\nimport os"]}, "b: python_env_source_paths names"),
        (
            {"python_env_source_url": "https://git.example/x"},
            "b: python_env_source_url is set, and python_env_source_version is not",
        ),
        ({"training_job": "command"}, "b: training_job is 'command', and training_command is empty"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_the_first_change(cluster, values, says):
    cluster.values["b"] = values
    assert says in cluster.problems()


def test_a_pool_that_any_other_node_routes_is_refused(cluster):
    cluster.nodes["c"]["networks"] = ["172.17.5.0/24"]
    said = cluster.problems()
    assert "a: docker_daemon_options: " in said and "172.17.0.0/16 overlaps 172.17.5.0/24" in said


def test_values_that_coerce_are_accepted(cluster):
    cluster.values["b"] = {"limits_nofile": "32768", "docker_users": "one,two"}
    assert cluster.plan()[1] == []


def test_an_expression_that_fails_is_named(cluster):
    settings = {name: Settings({}, {"limits_nofile": "'typo' is undefined"} if name == "c" else {}) for name in "abc"}
    _plan, problems = make_plan(cluster.groups, cluster.nodes, settings, SPECS, cluster.warnings.append)
    assert problems == [
        "c: limits_nofile cannot be evaluated: 'typo' is undefined. Mend the expression in the inventory"
    ]


def test_a_misspelt_name_is_a_warning_and_a_stranger_s_is_not(cluster):
    cluster.others["b"] = ["limit_nofile", "limits_nofiles", "docker_edition", "ansible_user"]
    assert cluster.plan()[1] == []
    assert cluster.warnings == ["'limits_nofiles' is not a variable of this collection. Is 'limits_nofile' meant?"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"os": {"id": "rocky", "version": "9", "codename": "", "name": "Rocky Linux 9"}},
            "b: runs Rocky Linux 9, supported are debian",
        ),
        ({"python": "3.8.10"}, "b: Python is 3.8.10, 3.9 or newer"),
        ({"systemd": False}, "b: systemd is not running"),
        ({"user": None, "user_wanted": "train"}, "b: cluster_user is 'train', which has no account there"),
        ({"machine_id": f"{1:032x}"}, "a and b: the same machine-id"),
        ({"hostname": "host1"}, "a and b: the same host name 'host1'"),
        (
            {"user": {"name": "ray", "uid": 1001, "gid": 1000, "group": "ray", "home": "/home/ray"}},
            "ray uid 1001 gid 1000 on b",
        ),
        ({"candidates": []}, "b has no interface"),
    ],
)
def test_a_node_that_cannot_take_part(cluster, change, says):
    cluster.nodes["b"].update(change)
    assert says in cluster.problems()


def test_two_nodes_with_one_address(cluster):
    cluster.nodes["b"]["candidates"][0]["address"] = "10.0.0.1"
    assert "the same address 10.0.0.1" in cluster.problems()


def test_limits_that_would_lock_everybody_out(cluster):
    cluster.nodes["b"].update(can_raise_limits=False, hard_limits={"nofile": 20000, "memlock": 8388608})
    said = cluster.problems()
    assert "b: limits_nofile is 65536, but this node cannot go above 20000" in said
    assert "b: limits_memlock is unlimited, but this node cannot go above 8192" in said
    cluster.values = {name: {"limits_nofile": 20000, "limits_memlock": "8192"} for name in "abc"}
    assert cluster.plan()[1] == []


def test_an_external_directory_must_be_there(cluster):
    cluster.values = {name: {"cluster_shared_backend": "external"} for name in "abc"}
    cluster.nodes["c"]["shared_dir"]["exists"] = False
    assert "c: cluster_shared_backend is 'external', but /mnt/shared does not exist" in cluster.problems()


def test_all_problems_come_at_once(cluster):
    cluster.nodes["a"].update(systemd=False)
    cluster.nodes["b"].update(python="3.8.1")
    assert len(cluster.plan()[1]) == 2


def mounted(source: str, **more):
    return shared_dir(mounts=[{"source": source, "type": "nfs4", "options": "rw"}], **more)


def test_the_shared_directory_is_judged_on_every_node_before_the_first_change(cluster):
    line = {"file": "/etc/exports", "line": 4, "text": "/mnt/shared *(rw)", "path": "/mnt/shared", "relation": "same",
            "clients": ["*"], "root": False}  # fmt: skip
    cluster.nodes["a"]["shared_dir"] = shared_dir(exports=[line])
    cluster.nodes["b"]["shared_dir"] = mounted("10.0.0.9:/mnt/shared")
    cluster.nodes["c"]["shared_dir"] = mounted("10.0.0.1:/mnt/shared")
    problems = cluster.plan()[1]
    assert [problem.split(" ", 2)[:2] for problem in problems] == [["a:", "/etc/exports:4"], ["b:", "/mnt/shared"]]
    assert "10.0.0.1:/mnt/shared belongs there" in problems[1]
    # Who has brought the file system along is asked about none of it.
    cluster.values = {name: {"cluster_shared_backend": "external"} for name in "abc"}
    assert cluster.plan()[1] == []


def test_a_worker_mounts_from_where_it_is_told_to(cluster):
    cluster.nodes["b"]["shared_dir"] = mounted("10.0.9.9:/mnt/shared")
    assert "belongs there" in cluster.problems()
    cluster.values["b"] = {"nfs_client_server": "10.0.9.9"}
    assert cluster.plan()[1] == []


@pytest.mark.parametrize(
    ("threads", "cause"), [(0, "the server does not run on a"), (8, "a firewall keeps it from a, perhaps")]
)
def test_a_mount_of_the_head_that_hangs_is_what_a_stage_mends(cluster, threads, cause):
    """A run that opens the firewall again must not be kept from it by what the firewall does."""
    cluster.nodes["b"]["shared_dir"] = mounted("10.0.0.1:/mnt/shared", answers=False)
    cluster.nodes["a"]["shared_dir"]["server_threads"] = threads
    assert cluster.plan()[1] == []
    assert f"b: /mnt/shared does not answer: {cause}" in "".join(cluster.warnings)


def test_a_mount_that_no_stage_mends_is_refused(cluster):
    cluster.nodes["a"]["shared_dir"]["server_threads"] = 8
    cluster.nodes["b"]["shared_dir"] = mounted("10.0.0.1:/mnt/shared", answers=False, error="Stale file handle")
    assert "b: /mnt/shared is a stale mount of 10.0.0.1:/mnt/shared" in cluster.problems()
    cluster.nodes["b"]["shared_dir"] = mounted("10.0.9.9:/mnt/shared", answers=False)
    cluster.values["b"] = {"nfs_client_server": "10.0.9.9"}
    assert "b: /mnt/shared is mounted from 10.0.9.9:/mnt/shared and does not answer" in cluster.problems()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cluster_shared_dir": "/"}, "cluster_shared_dir: '/' must be absolute"),
        ({"nfs_server_clients": "10.0.0.2,*"}, "a: nfs_server_clients: '*' is no IP address"),
        (
            {"nfs_server_export_options": ["rw", "no_root_squash"]},
            "a: nfs_server_export_options: 'no_root_squash' is among",
        ),
    ],
)
def test_an_export_that_cannot_be_is_refused(cluster, values, says):
    cluster.values = {name: values for name in "abc"}
    assert says in cluster.problems()


def test_what_is_dangerous_is_a_warning(cluster):
    cluster.values = {name: {"nfs_server_root_squash": "no", "nfs_client_mount_options": "rw,soft"} for name in "abc"}
    assert cluster.plan()[1] == []
    assert [warning.split(" ")[0] for warning in cluster.warnings] == ["nfs_server_root_squash", "'soft'"]


def test_a_bundle_is_held_against_every_node_before_anything_is_changed(cluster, tmp_path):
    for values in cluster.values.values():
        values["cluster_bundle"] = str(tmp_path / "none.tar")
    assert f"a, b, c: cluster_bundle is '{tmp_path}/none.tar', and there is no such file" in cluster.problems()
