# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dashboard_tunnel``: runs on the controller, with the SSH settings that Ansible reaches the head with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..plugin_utils._action import refused
from ..plugin_utils._tunnel import Tunnel, TunnelError, answers, free_port

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["open", "closed"], "default": "open"},
    "port": {"type": "int", "default": 8265},
    "local_port": {"type": "int", "default": 0},
    "token": {"type": "str", "no_log": True, "default": ""},
}
_display = Display()


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(_ARGUMENTS)
        if self._connection.transport == "local":
            return self._tell(options["port"], options, changed=False, command="")
        if self._connection.transport != "ssh":
            return refused(
                f"The head is reached by '{self._connection.transport}' and not by SSH, so there is nothing to tunnel through. "
                f"On the head the dashboard is http://127.0.0.1:{options['port']}"
            )
        tunnel = Tunnel(Path(constants.ANSIBLE_HOME) / "metalray", *self._ssh(), options["port"])
        try:
            return self._close(tunnel) if options["state"] == "closed" else self._open(tunnel, options)
        except TunnelError as error:
            command = tunnel.command(options["local_port"] or options["port"])
            return refused(f"No tunnel to the dashboard: {error}. By hand: {command}")

    def _ssh(self) -> tuple[list[str], str]:
        """The program with its options, and the node, as the connection plugin has them."""
        option = self._connection.get_option
        words = [option("ssh_executable")]
        if not option("host_key_checking"):
            words += ["-o", "StrictHostKeyChecking=no"]
        for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
            words += shlex.split(option(name) or "")
        if option("private_key_file"):
            words += ["-i", option("private_key_file")]
        if option("port"):
            words += ["-p", str(option("port"))]
        host, user = option("host"), option("remote_user")
        return words, f"{user}@{host}" if user else host

    def _close(self, tunnel: Tunnel) -> dict[str, Any]:
        port = tunnel.port()
        if port and not self._task.check_mode:
            tunnel.close()
        _display.display(f"\nThe tunnel on port {port} is closed.\n" if port else "\nNo tunnel was open.\n")
        return {"changed": bool(port)}

    def _open(self, tunnel: Tunnel, options: dict[str, Any]) -> dict[str, Any]:
        port = tunnel.port()
        if port and options["local_port"] in (0, port):
            return self._tell(port, options, changed=False, command=tunnel.command(port))
        new = free_port(options["local_port"], options["port"])
        if not self._task.check_mode:
            tunnel.close()
            tunnel.open(new)
            if not answers(new):
                tunnel.close()
                return refused(
                    f"Nothing answers on port {options['port']} of the head, so the tunnel was closed again. --tags ray starts "
                    f"Ray there; if it did, look at: journalctl -u metalray-head -n 50"
                )
        return self._tell(new, options, changed=True, command=tunnel.command(new))

    @staticmethod
    def _tell(port: int, options: dict[str, Any], changed: bool, command: str) -> dict[str, Any]:
        # The token is for the eyes of who asked: it is in no result.
        lines = [f"Dashboard: http://localhost:{port}"]
        lines += [f"Token: {options['token']}"] if options["token"] else []
        lines += (
            ["Close it with -e dashboard_state=closed. The same by hand, from any machine:", f"  {command}"]
            if command
            else []
        )
        _display.display("\n" + "\n".join(lines) + "\n")
        return {"changed": changed, "url": f"http://localhost:{port}", "command": command}
