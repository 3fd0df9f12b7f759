#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon
short_description: Merge options into the Docker engine's daemon.json, with address pools checked against routes
version_added: 0.1.0
description:
  - Merges options into whatever C(daemon.json) already holds. Keys that others put there, such as the runtimes of the
    NVIDIA container toolkit, stay. A merge that changes nothing leaves the file as it is, whatever its formatting.
  - Refuses an address pool that overlaps a network which this node routes, or one of O(reserved_networks). Containers
    on such a pool would cut the node off from the hosts there.
  - Routes of all tables and both address families count. Default routes, loopback, link-local and multicast do not, nor
    do routes that lead nowhere (C(blackhole), C(unreachable), C(prohibit), C(throw)), nor the engine's own networks.
  - Checks the merged options before it writes them, with C(dockerd --validate) where the installed C(dockerd) has it
    (23.0 and later), and refuses a key that the unit of the engine already gives as a flag.
  - Does not touch the engine. RV(reload_required) and RV(restart_required) say what the engine needs to take the
    options on.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and report what it would change without changing it, also where no engine is
      installed yet.
  diff_mode:
    support: full
    description: Returns the difference of C(daemon.json).
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  options:
    description:
      - What C(daemon.json) shall hold, merged as JSON Merge Patch (RFC 7396). Dictionaries are merged, every other
        value is replaced, and V(null) takes a key away.
      - C(default-address-pools) is a list and so is replaced as a whole. It is one decision, in order of preference,
        and a pool that is no longer wanted must be able to go.
    type: dict
    required: true
  path:
    description: The engine's configuration file. A link is followed.
    type: path
    default: /etc/docker/daemon.json
  reserved_networks:
    description:
      - Networks in CIDR notation that no address pool may overlap, beside those which this node routes.
      - Give the networks of all nodes here, so that the same pools are right on every one.
    type: list
    elements: str
    default: []
  socket:
    description: Socket of the engine, asked for its networks and for the options in force. Only a running engine is
      asked.
    type: path
    default: /run/docker.sock
notes:
  - Needs the command C(ip) of iproute2 on the node where the options hold C(default-address-pools).
"""

EXAMPLES = r"""
- name: Give the engine many small networks and keep containers over its restarts
  become: true
  metalray.cluster.docker_daemon:
    options:
      default-address-pools:
        - base: 172.17.0.0/16
          size: 24
      live-restore: true
    reserved_networks: [10.77.0.0/24]
  register: daemon

- name: Restart the engine only where that is needed
  become: true
  ansible.builtin.systemd_service:
    name: docker
    state: restarted
  when: daemon.restart_required

- name: Take a key away
  become: true
  metalray.cluster.docker_daemon:
    options:
      registry-mirrors:
"""

RETURN = r"""
options:
  description: All options of C(daemon.json) after the merge, also those of others.
  returned: success
  type: dict
  sample: {"live-restore": true, "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}
validated_by:
  description:
    - V(dockerd) where C(dockerd --validate) accepted the options, V(module) where no such C(dockerd) is installed and
      only the checks of this module ran, V(none) where nothing was to be written.
  returned: success
  type: str
  sample: dockerd
running:
  description: Whether the engine runs.
  returned: success
  type: bool
  sample: true
reload_required:
  description:
    - Whether the running engine must be reloaded (SIGHUP) to take the options on. Where a restart is required too,
      reload it first and wait until it reports live-restore, so that containers outlive the restart.
  returned: success
  type: bool
  sample: true
restart_required:
  description:
    - Whether the running engine must be restarted to take the options on, because of this change or of an earlier one
      that it has not taken on yet. Always V(false) where the engine does not run.
  returned: success
  type: bool
  sample: false
"""

import ipaddress
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _docker as docker
from ..module_utils._files import FilesError, Wanted, apply_files


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise docker.DockerError(
            f"{path} is not UTF-8 text (byte {error.start}). It was left as it is; correct or remove it, then run again"
        ) from None
    except OSError as error:
        raise docker.DockerError(f"{path} cannot be read: {error.strerror}") from None


def routes(module: AnsibleModule) -> list[dict[str, Any]]:
    ip = module.get_bin_path("ip")
    if ip is None:
        raise docker.DockerError(
            f"the command ip is missing, so {docker.POOLS} cannot be checked against the routes of this node. "
            "Install the package iproute2, then run again"
        )
    found = []
    for family in ("-4", "-6"):
        rc, out, err = module.run_command([ip, "-json", family, "route", "show", "table", "all"])
        if rc == 0:
            found += json.loads(out or "[]")
        elif family == "-4":
            raise docker.DockerError(f"the routes of this node cannot be read: {err.strip()}")
    return found


def check_flags(module: AnsibleModule, options: dict[str, Any]) -> None:
    systemctl = module.get_bin_path("systemctl")
    if systemctl is None:
        return
    _rc, out, _err = module.run_command([systemctl, "show", "--property=ExecStart", "docker.service"])
    environment = docker.environment_file(read("/etc/default/docker"))
    clashes = docker.flag_clashes(docker.dockerd_arguments(out, environment), options)
    if clashes:
        flags = ", ".join(f"{key} (flag {flag})" for flag, key in clashes)
        raise docker.DockerError(
            f"docker.service already gives dockerd as a flag: {flags}. The engine would not start with both; "
            "take the key out of the options, or the flag out of the unit"
        )


def validate(module: AnsibleModule, options: dict[str, Any], have: dict[str, Any], path: str) -> str:
    """Refuse options that the engine would not start with; who vouches for them."""
    problems = docker.option_problems(options)
    if problems:
        raise docker.DockerError(f"{path} was not written: " + "; ".join(problems))
    check_flags(module, options)
    dockerd = module.get_bin_path("dockerd")
    if dockerd is None:
        return "module"
    descriptor, temporary = tempfile.mkstemp(suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(docker.render(options))
    rc, out, err = module.run_command([dockerd, "--validate", "--config-file", temporary])
    os.unlink(temporary)
    said = (err.strip() or out.strip()).replace(temporary, path)
    if rc == 0:
        return "dockerd"
    if "unknown flag: --validate" not in said:
        raise docker.DockerError(f"{path} was not written, dockerd refuses it: {said}")
    unknown = docker.unknown_keys(options, have)
    if unknown:
        raise docker.DockerError(
            f"{path} was not written: the installed dockerd does not know {', '.join(unknown)} and would not start. "
            "Correct the name, or take it out of the options"
        )
    return "module"


def apply(module: AnsibleModule) -> dict[str, Any]:
    # A link stays a link: the file behind it is replaced.
    path = os.path.realpath(module.params["path"])
    text = read(path)
    have = docker.parse_daemon_json(text, path)
    want = docker.merge_options(have, module.params["options"])

    running = docker.engine_runs(str(have.get("pidfile", "/run/docker.pid")))
    engine = module.params["socket"]
    info = (docker.engine_get("/info", engine) if running else None) or {}
    validated_by = "none"
    if want != have:
        validated_by = validate(module, want, have, path)
        if want.get("live-restore") and (info.get("Swarm") or {}).get("LocalNodeState") == "active":
            raise docker.DockerError(
                f"{path} was not written: live-restore is true, but this node is in a swarm and the engine would not "
                "start with both. Set live-restore to false"
            )
    if want.get(docker.POOLS):
        own = docker.own_subnets(docker.engine_get("/networks", engine)) if running else []
        taken = docker.taken_by_routes(routes(module), own)
        docker.check_pools(want, taken + docker.taken_by_reservation(module.params["reserved_networks"]))

    result: dict[str, Any] = {
        "changed": False,
        "diff": [],
        "options": want,
        "validated_by": validated_by,
        "running": running,
    }
    if want != have:
        mode = f"{stat.S_IMODE(os.stat(path).st_mode):04o}" if os.path.exists(path) else "0644"
        applied = apply_files(module, [Wanted(path, docker.render(want), mode=mode)])
        result.update(changed=applied.changed, diff=applied.diff)
    step = docker.next_step(have, want, info) if running else docker.Step(reload=False, restart=False)
    result.update(reload_required=step.reload, restart_required=step.restart)
    stopped = info.get("ContainersRunning", 0)
    if step.restart and stopped and not want.get("live-restore"):
        module.warn(f"{stopped} running container(s) stop when the engine restarts, because live-restore is off")
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "path": {"type": "path", "default": docker.DAEMON_JSON},
            "reserved_networks": {"type": "list", "elements": "str", "default": []},
            "socket": {"type": "path", "default": docker.ENGINE_SOCKET},
        },
        supports_check_mode=True,
    )
    for network in module.params["reserved_networks"]:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            module.fail_json(msg=f"reserved_networks holds '{network}'; allowed are networks such as 10.77.0.0/24")
    try:
        result = apply(module)
    except (docker.DockerError, FilesError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
