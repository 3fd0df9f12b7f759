# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tunnel to the dashboard, without a node: molecule/default opens a real one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ansible_collections.metalray.cluster.plugins.plugin_utils._tunnel import Tunnel, TunnelError, answers, free_port


def tunnel(directory: Path, *options: str, target: str = "ops@127.0.0.1", port: int = 8265) -> Tunnel:
    return Tunnel(directory, ["ssh", "-F", "/dev/null", "-o", "ConnectTimeout=5", *options], target, port)


def test_a_port_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert free_port(0, taken) not in (0, taken)
        with pytest.raises(TunnelError, match=f"port {taken} of this machine is taken"):
            free_port(taken, 8265)
        assert not answers(taken, timeout=0.2)
    assert free_port(0, taken) == taken == free_port(taken, 1)


def test_one_name_for_one_way_to_one_port(tmp_path: Path) -> None:
    others = [tunnel(tmp_path, target="ops@node2"), tunnel(tmp_path, port=9), tunnel(tmp_path, "-p", "2222")]
    assert tunnel(tmp_path).name == tunnel(tmp_path).name
    assert len({one.name for one in [tunnel(tmp_path), *others]}) == 4


def test_the_command_by_hand_has_every_option(tmp_path: Path) -> None:
    command = tunnel(tmp_path, "-o", "ProxyCommand=ssh -W %h:%p gate").command(8300)
    assert command == (
        "ssh -N -L 127.0.0.1:8300:127.0.0.1:8265 -F /dev/null -o ConnectTimeout=5 -o 'ProxyCommand=ssh -W %h:%p gate' ops@127.0.0.1"
    )


def test_what_a_broken_one_left_is_removed(tmp_path: Path) -> None:
    one = tunnel(tmp_path)
    left = tmp_path / f"{one.name}-8265"
    left.touch()
    assert one.port() == 0 and not left.exists()
    one.close()


def test_a_node_out_of_reach_is_said_in_ssh_s_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TunnelError, match="Connection refused"):
        tunnel(tmp_path, "-p", str(port)).open(port)
    with pytest.raises(TunnelError, match="did not connect"):
        Tunnel(tmp_path, ["/no/ssh"], "x", 1).open(port)
