# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of the guests alone: Ray's processes that nothing waits for leave the processor to the agent that the raylet waits for."""

import os
import sys

_LATER = (
    "/dashboard/dashboard.py",
    "/monitor.py",
    "/log_monitor.py",
    "ray.util.client.server",
    "/runtime_env/agent/main.py",
)

if any(part in " ".join(sys.orig_argv) for part in _LATER):
    os.nice(19)
