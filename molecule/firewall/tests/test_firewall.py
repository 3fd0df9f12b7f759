# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets in, seen from each member and from outside the nodes."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

CLOSED = [12345, 40001]

# Everything that is seen on a node, in one command.
LOOK = f"""
import json, socket, subprocess
def connect(address, port):
    try:
        socket.create_connection((address, port), timeout=2).close()
        return "open"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return error.strerror
def out(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout
members = [member.split("/")[0] for member in json.load(open("/etc/metalray/firewall.json"))["members"]]
own = out("hostname", "-I").split()
device = out("ip", "-o", "route", "show", "default").split(" dev ")[1].split()[0]
public = out("ip", "-4", "-o", "address", "show", "dev", device).split(" inet ")[1].split("/")[0]
print(json.dumps(dict(
    public=public,
    members=members,
    to_members={{f"{{a}} {{p}}": connect(a, p) for a in members for p in {CLOSED}}},
    to_itself={{f"{{a}} {{p}}": connect(a, p) for a in ["127.0.0.1", *own] for p in {CLOSED}}},
    service=out("systemctl", "show", "-p", "UnitFileState,ActiveState", "metalray-firewall").split(),
)))
"""


@pytest.fixture(scope="module")
def seen(host) -> dict[str, Any]:
    with host.sudo():
        return json.loads(host.check_output("python3 -c %s", LOOK))


def from_here(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except TimeoutError:
        return "silent"
    except OSError as error:
        return str(error.strerror)
    return "open"


def test_members_get_in(seen):
    assert len(seen["members"]) == 3
    assert set(seen["to_members"].values()) == {"open"}, seen["to_members"]


def test_the_node_reaches_itself_at_every_address(seen):
    assert set(seen["to_itself"].values()) == {"open"}, seen["to_itself"]


@pytest.mark.parametrize("port", CLOSED)
def test_this_machine_is_a_stranger(seen, port):
    assert seen["public"] not in seen["members"]
    assert from_here(seen["public"], port) == "silent"


def test_ssh_is_open_to_strangers(seen):
    assert from_here(seen["public"], 22) == "open"


def test_the_rules_come_back_at_boot(seen):
    assert sorted(seen["service"]) == ["ActiveState=active", "UnitFileState=enabled"]
