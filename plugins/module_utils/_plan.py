# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions that concern the whole cluster, made once from all nodes' facts.

Internal to metalray.cluster: not a public interface. Runs on the controller. Every function that checks returns a list of
problems, each a whole sentence with its mend, so that a user sees all of them at once.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.validation import check_type_bool, check_type_list

from . import _nfs as nfs
from ._access import check_access, masked
from ._bundle import check_bundle, lock_text
from ._docker import DockerError, check_pools, taken_by_reservation
from ._firewall import FirewallError, closed_ports, parse_networks
from ._first_contact import judge, together
from ._interfaces import LOOPBACK, Candidate, InterfaceError, choose, narrow
from ._pythons import archive_problem
from ._secrets import check as check_secrets
from ._training import check_choice, plan_training

SUPPORTED = {"debian": {"12", "13"}, "ubuntu": {"22.04", "24.04"}}
_OLDEST_PYTHON = (3, 9)


@dataclass(frozen=True)
class Settings:
    """What the inventory says of one host: values of the variables that the roles know, and the names of all others."""

    values: Mapping[str, Any]
    unusable: Mapping[str, str] = field(default_factory=dict)
    other_names: Sequence[str] = ()


def check_groups(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Exactly one head; every node in one part only; nothing in ``cluster`` outside the two parts."""
    head, workers = list(groups.get("head", ())), list(groups.get("workers", ()))
    cluster = list(groups.get("cluster", ()))
    problems = []
    if len(head) != 1:
        problems.append(
            f"inventory: the group 'head' has {len(head)} hosts ({', '.join(head) or 'none'}), it needs exactly one. Move the others to "
            "'workers'"
            if head
            else "inventory: the group 'head' is empty or missing, it needs exactly one host. Put one node into it"
        )
    both = sorted(set(head) & set(workers))
    if both:
        problems.append(f"inventory: {', '.join(both)} is in 'head' and in 'workers'. Remove it from one of them")
    outside = sorted(set(cluster) - set(head) - set(workers))
    if outside:
        problems.append(
            f"inventory: {', '.join(outside)} is in 'cluster' but neither in 'head' nor in 'workers'. Put it into one of them"
        )
    missing = sorted((set(head) | set(workers)) - set(cluster))
    if missing:
        problems.append(
            f"inventory: {', '.join(missing)} is not in 'cluster'. Make 'head' and 'workers' children of 'cluster'"
        )
    return problems


def _allowed(option: Mapping[str, Any]) -> str:
    if option.get("choices"):
        return "one of " + ", ".join(map(str, option["choices"]))
    return f"of type {option.get('type', 'str')}"


def check_variables(host: str, settings: Settings, specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The host's values against the roles' argument specs (variable name to option, as in meta/argument_specs.yml)."""
    problems = [
        f"{host}: {name} cannot be evaluated: {reason}. Mend the expression in the inventory"
        for name, reason in settings.unusable.items()
    ]
    for name, value in settings.values.items():
        option = {key: specs[name][key] for key in ("type", "elements", "choices", "options") if key in specs[name]}
        # One variable at a time: the message then names it, and a required neighbour is not missed here.
        result = ArgumentSpecValidator({name: _without_required(option)}).validate({name: value})
        if result.error_messages and specs[name].get("no_log"):
            problems.append(f"{host}: {name} must be {_allowed(option)} (its value is not shown)")
        elif result.error_messages:
            problems.append(
                f"{host}: {name} is {masked(repr(value))}, it must be {_allowed(option)} ({masked('; '.join(result.error_messages))})"
            )
    return problems


def _without_required(option: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in option.items() if key != "required"}


def suggest_names(settings: Settings, specs: Iterable[str]) -> list[str]:
    """Names that look like a misspelt variable of the collection: a warning, since they may be somebody else's."""
    known = sorted(specs)
    prefixes = tuple(sorted({name.split("_", 1)[0] + "_" for name in known}))
    warnings = []
    for name in settings.other_names:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85) if name.startswith(prefixes) else []
        if close:
            warnings.append(f"'{name}' is not a variable of this collection. Is '{close[0]}' meant?")
    return warnings


def check_node(host: str, node: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Whether one node can take part."""
    problems = []
    system = node["os"]
    if system["version"] not in SUPPORTED.get(system["id"], ()):
        allowed = "; ".join(f"{name} {', '.join(sorted(versions))}" for name, versions in SUPPORTED.items())
        problems.append(
            f"{host}: runs {system['name'] or system['id'] or 'an unknown system'}, supported are {allowed}. Reinstall the node"
        )
    if tuple(map(int, node["python"].split(".")[:2])) < _OLDEST_PYTHON:
        problems.append(
            f"{host}: Python is {node['python']}, 3.9 or newer is needed. Set ansible_python_interpreter to one"
        )
    if not node["systemd"]:
        problems.append(
            f"{host}: systemd is not running, Ray and Docker are run by it. Use a node that boots with systemd"
        )
    if node["user"] is None:
        problems.append(
            f"{host}: cluster_user is '{node['user_wanted']}', which has no account there. Create it on every node with the same uid, or "
            "set cluster_user to an account that exists"
        )
    problems += _check_limits(host, node, values)
    shared = values["cluster_shared_dir"]
    if values["cluster_shared_backend"] == "external" and not node["shared_dir"]["exists"]:
        problems.append(
            f"{host}: cluster_shared_backend is 'external', but {shared} does not exist. Mount the shared file system there, or set "
            "cluster_shared_backend to 'nfs'"
        )
    return problems


def _check_limits(host: str, node: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """A limit above what the node can give would lock everybody out: PAM refuses a login whose limits it cannot set."""
    if node["can_raise_limits"]:
        return []
    problems = []
    wanted = {"nofile": values["limits_nofile"], "memlock": values["limits_memlock"]}
    unit = {"nofile": 1, "memlock": 1024}
    for name, value in wanted.items():
        hard = node["hard_limits"].get(name)
        asked = None if str(value) in ("unlimited", "infinity", "-1") else int(value) * unit[name]
        if hard is not None and (asked is None or asked > hard):
            problems.append(
                f"{host}: limits_{name} is {value}, but this node cannot go above {hard // unit[name]} (a container without "
                "CAP_SYS_RESOURCE). "
                f"Raise the container's limit, or set limits_{name} to {hard // unit[name]} or less"
            )
    return problems


def check_meaning(host: str, values: Mapping[str, Any], networks: Iterable[str]) -> list[str]:
    """Values of the right type that cannot work: what the roles would refuse later, after other stages have changed nodes.

    ``networks`` are those that any node has a route to, in CIDR notation.
    """
    problems = []
    try:
        check_pools(values.get("docker_daemon_options") or {}, taken_by_reservation(networks))
    except DockerError as error:
        problems.append(f"{host}: docker_daemon_options: {error}")
    try:
        closed_ports(values.get("firewall_closed_ports") or [], None, [22])
    except FirewallError as error:
        problems.append(f"{host}: firewall_closed_ports: {error}")
    for name in ("firewall_members", "firewall_allowed_networks"):
        try:
            parse_networks(values.get(name) or [], name)
        except FirewallError as error:
            problems.append(f"{host}: {error}")
    problems += [f"{host}: {problem}" for problem in _check_environment(values)]
    problems += [
        f"{host}: training_secrets {problem}" for problem in check_secrets(values.get("training_secrets") or {})
    ]
    if values.get("training_job") == "command" and not str(values.get("training_command") or "").strip():
        problems.append(f"{host}: training_job is 'command', and training_command is empty. Give it a shell command")
    return problems


def _check_environment(values: Mapping[str, Any]) -> list[str]:
    problems = []
    lock, project = values.get("python_env_lock"), values.get("python_env_pyproject")
    custom = values.get("python_env_profile") == "custom"
    if lock and not os.path.isfile(lock):
        problems.append(f"python_env_lock is '{lock}', and there is no such file on the controller. Correct the path")
    if project and not custom:
        problems.append(
            f"python_env_pyproject is '{project}', and python_env_profile is '{values.get('python_env_profile')}'. Set the profile to "
            "'custom', or take the project out"
        )
    elif project and lock:
        problems.append(
            f"python_env_lock is '{lock}' and python_env_pyproject is '{project}': the environment has one lock. Set one of them"
        )
    elif custom and not lock and not project:
        problems.append(
            "python_env_profile is 'custom', and neither python_env_lock nor python_env_pyproject is set. Name the lock that you made "
            "with 'uv pip compile --generate-hashes', or a pyproject.toml with its uv.lock"
        )
    if values.get("python_env_source_url") and not values.get("python_env_source_version"):
        problems.append("python_env_source_url is set, and python_env_source_version is not. Give it a commit or a tag")
    archive = str(values.get("python_env_python_archive") or "")
    problems += filter(None, [archive_problem(str(values.get("python_env_python") or ""), archive)])
    paths = check_type_list(values.get("python_env_source_paths") or [])
    problems += [
        f"python_env_source_paths names '{path}': allowed are directories inside of the training source, such as '.' or 'src'"
        for path in map(str, paths)
        if not path.strip() or path.startswith("/") or {"..", "\n"} & {*path.split("/"), *path}
    ]
    return problems


def check_twins(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Two inventory names that lead to one machine, or two machines that were cloned with their identity."""
    problems = []
    for key, label, mend in (
        (
            "machine_id",
            "machine-id",
            "If it is one machine, remove one name; if it is a clone, run systemd-machine-id-setup on it",
        ),
        ("hostname", "host name", "Give each node a name of its own (hostnamectl set-hostname)"),
    ):
        owners: dict[str, list[str]] = defaultdict(list)
        for host, node in nodes.items():
            owners[node[key]].append(host)
        problems += [
            f"{' and '.join(sorted(hosts))}: the same {label} '{value}'. {mend}"
            for value, hosts in owners.items()
            if value and len(hosts) > 1
        ]
    return problems


def check_users(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Files on a shared directory belong to numbers: the user needs the same ones on every node."""
    ids: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for host, node in nodes.items():
        if node["user"]:
            ids[node["user"]["name"], node["user"]["uid"], node["user"]["gid"]].append(host)
    if len(ids) < 2:
        return []
    seen = "; ".join(
        f"{name} uid {uid} gid {gid} on {', '.join(sorted(hosts))}" for (name, uid, gid), hosts in sorted(ids.items())
    )
    return [
        f"cluster_user differs between nodes: {seen}. Give the account the same uid and gid everywhere (usermod -u, groupmod -g)"
    ]


def check_same(values: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Variables that mean something only when every host has the same value."""
    problems = []
    for name in names:
        seen: dict[str, list[str]] = defaultdict(list)
        for host, host_values in values.items():
            seen[str(host_values[name])].append(host)
        if len(seen) > 1:
            listed = "; ".join(f"'{value}' on {', '.join(hosts)}" for value, hosts in seen.items())
            problems.append(f"{name} differs between hosts: {listed}. Set it once for the group 'cluster'")
    return problems


def plan_addresses(
    nodes: Mapping[str, Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]], head: str
) -> tuple[dict[str, Candidate], str, list[str]]:
    """Each node's candidate, the cluster's network, and problems; the first two are empty when there are problems."""
    candidates: dict[str, list[Candidate]] = {}
    problems = []
    for host, node in nodes.items():
        have = [Candidate.from_dict(item) for item in node["candidates"]]
        try:
            candidates[host] = narrow(have, values[host].get("cluster_interface"), values[host].get("cluster_cidr"))
        except InterfaceError as error:
            problems.append(f"{host}: {error}. Mend the variable, or the node's network")
        except ValueError as error:
            problems.append(
                f"{host}: cluster_cidr is {values[host].get('cluster_cidr')!r}: {error}. Write it as 10.15.22.0/24"
            )
    if problems:
        return {}, "", problems
    if candidates == {head: []}:
        return {head: LOOPBACK}, LOOPBACK.network, []
    try:
        picked, network = choose(candidates, head)
    except InterfaceError as error:
        return {}, "", [f"{error}. Set cluster_interface or cluster_cidr, or mend the network"]
    owners: dict[str, list[str]] = defaultdict(list)
    for host, candidate in picked.items():
        owners[candidate.address].append(host)
    twins = [
        f"{' and '.join(hosts)}: the same address {address}. Give each node its own"
        for address, hosts in owners.items()
        if len(hosts) > 1
    ]
    return picked, network, twins


def plan_bundles(
    nodes: Mapping[str, Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the bundle of each host that has one holds, as far as roles need to know, and problems."""
    bundles: dict[str, dict[str, Any]] = {}
    found: list[tuple[str, str]] = []
    for host, node in nodes.items():
        if not values[host].get("cluster_bundle"):
            continue
        lock = lock_text(values[host])
        manifest, wrong = check_bundle(values[host], node["os"], node["architecture"], lock)
        found += [(host, problem) for problem in wrong]
        if manifest:
            bundles[host] = {
                "packages": list(manifest.packages),
                "sources": dict(manifest.sources),
                "built": [f"{name}#sha256={manifest.files[f'wheels/{name}']['sha256']}" for name in manifest.built],
            }
    return bundles, together(found)


def check_nfs(
    nodes: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Any]],
    head: str,
    head_address: str,
    warn: Callable[[str], None],
) -> list[str]:
    """Whether the head can export the shared directory to the cluster alone, and every worker mount it there."""
    path = values[head]["cluster_shared_dir"]
    if values[head]["cluster_shared_backend"] != "nfs":
        return []
    problem = nfs.path_problem(path)
    if problem:
        return [f"cluster_shared_dir: {problem}"]
    problems = _check_export(head, values[head])
    warnings = [] if _squashes_root(values[head]) else [nfs.root_warning(path)]
    serving = nodes[head]["shared_dir"]["server_threads"] > 0
    if serving:
        mended_by = (
            f"a firewall keeps it from {head}, perhaps. The stages nfs and firewall open that one's (--tags nfs)"
        )
    else:
        mended_by = f"the server does not run on {head}. The stage nfs starts it (--tags nfs)"
    for host, node in nodes.items():
        if host == head:
            judged = nfs.check_head(host, path, node["shared_dir"])
        else:
            server = values[host].get("nfs_client_server") or head_address
            source = nfs.source_of(server, path)
            # A mount that says it is stale is beyond what a stage mends, where the server runs.
            mends = server == head_address and not (serving and node["shared_dir"]["error"])
            judged = nfs.check_worker(host, path, node["shared_dir"], source, mended_by if mends else "")
            warnings.append(nfs.soft_warning(check_type_list(values[host].get("nfs_client_mount_options") or [])))
        problems += judged.problems
        warnings += judged.warnings
    for warning in dict.fromkeys(filter(None, warnings)):
        warn(warning)
    return problems


def _squashes_root(values: Mapping[str, Any]) -> bool:
    value = values.get("nfs_server_root_squash")
    return value is None or check_type_bool(value)


def _check_export(head: str, values: Mapping[str, Any]) -> list[str]:
    problems = []
    options = values.get("nfs_server_export_options")
    try:
        nfs.export_options(["rw"] if options is None else check_type_list(options), _squashes_root(values))
    except nfs.NfsError as error:
        problems.append(f"{head}: nfs_server_export_options: {error}")
    try:
        nfs.parse_clients(check_type_list(values.get("nfs_server_clients") or []))
    except nfs.NfsError as error:
        problems.append(f"{head}: nfs_server_clients: {error}")
    return problems


def choose_builder(
    nodes: Mapping[str, Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]], head: str
) -> tuple[str, list[str]]:
    """The node that fetches and builds what the others install: the head, or one that can compile for GPUs where builds are
    allowed and the head cannot."""
    wanted = str(values[head].get("python_env_builder") or "")
    if wanted and wanted not in values:
        return head, [
            f"python_env_builder is '{wanted}', and the inventory's group 'cluster' has no such host. Name one of {', '.join(values)}"
        ]
    if wanted and wanted not in nodes:
        return head, [
            f"python_env_builder is '{wanted}', and that node did not answer. Mend its SSH access (ansible {wanted} -m ping), or "
            "name another"
        ]
    builds = check_type_bool(values[head].get("python_env_allow_builds") or False)
    able = [host for host in nodes if nodes[host].get("nvcc")]
    return wanted or (able[0] if builds and able and head not in able else head), []


def make_plan(
    groups: Mapping[str, Sequence[str]],
    nodes: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Settings],
    specs: Mapping[str, Mapping[str, Any]],
    warn: Callable[[str], None],
    runs: Callable[[str], bool] = lambda stage: True,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The cluster's plan, or the problems that stand in its way.

    ``groups`` are the inventory's; ``nodes`` the facts of the hosts that answered, or ``failure`` for one that could not be
    read; ``settings`` and ``specs`` the hosts' values and the roles' options; ``runs`` tells whether a stage takes part in
    this run; ``presets`` what the training job's presets need. The plan is documented with the action ``cluster_plan``.
    """
    problems = check_groups(groups)
    if problems:
        return {}, problems
    head = groups["head"][0]
    order = [head, *groups.get("workers", ())]
    for host in order:
        problems += check_variables(host, settings[host], specs)
    for message in dict.fromkeys(message for host in order for message in suggest_names(settings[host], specs)):
        warn(message)
    if problems:
        return {}, problems

    failed = together((host, nodes[host]["failure"]) for host in order if "failure" in nodes.get(host, {}))
    if failed:
        return {}, failed
    missing = [host for host in order if host not in nodes]
    if head in missing:
        return {}, [
            f"{head}: the head did not answer, and every later stage needs it. Mend its SSH access (ansible {head} -m ping)"
        ]
    answered = {host: nodes[host] for host in order if host in nodes}
    defaults = {name: option["default"] for name, option in specs.items() if "default" in option}
    values = {host: {**defaults, **settings[host].values} for host in order}
    for host, node in answered.items():
        problems += check_node(host, node, values[host])
        problems += check_access(host, values[host], node["ca_bundles"])
    problems += (
        check_twins(answered)
        + check_users(answered)
        + check_same(values, ("cluster_shared_dir", "cluster_shared_backend"))
    )
    bundles, wrong = plan_bundles(answered, values)
    problems += wrong
    picked, network, wrong = plan_addresses(answered, values, head)
    problems += wrong
    refusals, warnings = judge(answered, values, {host: one.address for host, one in picked.items()}, runs)
    problems += refusals
    for message in warnings:
        warn(message)
    networks = sorted({network for node in answered.values() for network in node["networks"]})
    for host in answered:
        problems += check_meaning(host, values[host], networks)
    problems += check_choice(values[head], answered, presets or {})
    if picked:
        problems += check_nfs(answered, values, head, picked[head].address, warn)
    builder, wrong = choose_builder(answered, values, head)
    problems += wrong
    if problems:
        return {}, problems

    user = answered[head]["user"]
    plan = {
        "user": user["name"],
        "shared_dir": values[head]["cluster_shared_dir"],
        "shared_backend": values[head]["cluster_shared_backend"],
        "shared_unit": nfs.unit_name(values[head]["cluster_shared_dir"], "mount"),
        "cidr": network,
        "head": head,
        "head_address": picked[head].address,
        "builder": builder,
        "cuda_architectures": sorted({one for node in answered.values() for one in node.get("cuda_architectures", ())}),
        "addresses": [picked[host].address for host in answered],
        # The nodes' own port, whatever leads to it from outside; 0 where it is not the same on all.
        "ssh_port": ports.pop() if len(ports := {node["ssh_port"] for node in answered.values()}) == 1 else 0,
        "missing": missing,
        "training": plan_training(values[head]),
        "nodes": {
            host: {
                "address": picked[host].address,
                "interface": picked[host].interface,
                "prefix": picked[host].prefix,
                "mtu": picked[host].mtu,
                "speed_mbps": picked[host].speed_mbps,
                "networks": node["networks"],
                "cpus": node["cpus"],
                "memory_bytes": node["memory_bytes"],
                "gpus": node["gpus"],
                "os": node["os"],
                "architecture": node["architecture"],
                "bundle": bundles.get(host, {}),
                **{key: node["user"][key] for key in ("uid", "gid", "group", "home")},
            }
            for host, node in answered.items()
        },
    }
    return plan, []
