# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from guests import cut_power, switch_on, unreachable, wait_for


@pytest.fixture(scope="module")
def stranger():
    """A guest on the public network that is no member. It is there only while it is asked: even an idle one costs."""
    switch_on("stranger")
    wait_for("the stranger", lambda: unreachable("stranger"))
    yield "stranger"
    cut_power("stranger")
