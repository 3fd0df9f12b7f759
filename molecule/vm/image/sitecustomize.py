# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of the guests alone, a stand-in for a processor of normal speed.

A raylet ends if its dashboard agent has not written the port it listens on within 15 seconds of its start, which nothing
sets and an emulated processor cannot keep. So the agent writes it as soon as it begins: the port is the one it was given.
"""

import os
import sys

if any(word.endswith("/dashboard/agent.py") for word in sys.orig_argv):
    _given = dict(word[2:].split("=", 1) for word in sys.orig_argv if word.startswith("--") and "=" in word)
    _file = os.path.join(_given["session-dir"], "dashboard_agent_listen_port_" + _given["node-id"])
    with open(_file + ".early", "w", encoding="ascii") as _handle:
        _handle.write(_given["listen-port"])
    # Whole or not at all: the raylet reads it as soon as it is there.
    os.replace(_file + ".early", _file)
