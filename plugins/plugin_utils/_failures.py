# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible says when it reaches a node and cannot run a module there, in words with a mend.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What Ansible or the node says, the cause in our words, and the mend. The first that matches counts.
_CAUSES: Sequence[tuple[str, str, str]] = (
    (
        r"Incorrect \S+ password|Sorry, try again|\d incorrect password attempt|su: Authentication failure",
        "{become} did not accept the password that Ansible was given for the account '{account}'",
        "Correct it (--ask-become-pass, or ansible_become_password); where nodes have different ones, set "
        "ansible_become_password for each host in a vault",
    ),
    (
        r"Missing \S+ password|password is required|terminal is required to read the password|no askpass program",
        "{become} asks for the password of the account '{account}', and Ansible was given none",
        "Run with --ask-become-pass (-K), put ansible_become_password into a vault, or let the account use sudo without one "
        "(NOPASSWD, with visudo -f /etc/sudoers.d/{account})",
    ),
    (
        r"not in the sudoers file|is not allowed to (execute|run)|may not run sudo",
        "the account '{account}' may not become root by {become}",
        "As root on the node: 'usermod -aG sudo {account}'; or connect as an account that may (ansible_user)",
    ),
    (
        r"must have a tty|requiretty",
        "sudo wants a terminal (requiretty)",
        "Take requiretty out of /etc/sudoers, or add 'Defaults:{account} !requiretty' with visudo",
    ),
    (
        r"sudo: (command )?not found|sudo: No such file|/sudo: not found",
        "sudo is not installed",
        "As root on the node: 'apt-get install sudo' and 'usermod -aG sudo {account}'; or set ansible_become_method to su",
    ),
    (
        r"account validation failure|account is locked|account has expired|(password|account).{0,20}expired",
        "{become} refuses the account '{account}': it is locked, or its password has expired",
        "As root on the node: 'chage -l {account}', then 'passwd {account}'",
    ),
    (
        r"[Tt]imeout \(\d+s\) waiting for privilege escalation|timed out waiting for privilege escalation",
        "{become} did not answer in time",
        "See on the node how long 'sudo -v' takes (a directory service or a name server that does not answer), or set a "
        "longer timeout (-T)",
    ),
    (
        r"minimum of Python version|future feature annotations is not defined",
        "its Python is too old for this Ansible",
        "Install a newer one beside it and name it in ansible_python_interpreter, or use a supported system",
    ),
    (
        r"module interpreter \S+ was not found|python[\d.]*: (command )?not found|python[\d.]*: No such file",
        "there is no Python where Ansible looks for it",
        "Install it (ansible NODE -b -m ansible.builtin.raw -a 'apt-get install -y python3'), or name it in "
        "ansible_python_interpreter",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "its disk is full",
        "Make room ('df -h' and 'df -i' show where)",
    ),
    (
        r"Failed to create temporary directory|Read-only file system"
        r"|Permission denied: '[^']*(\.ansible|ansible-tmp)|cannot create directory",
        "the account '{account}' cannot write where Ansible puts its files",
        "Give it a home that is its own and can be written, or set ansible_remote_tmp to a directory such as /var/tmp/ansible-{account}",
    ),
)
# What Ansible takes for a lost connection, although the node answered.
_REACHED = re.compile(
    r"waiting for privilege escalation|Failed to create temporary directory|No space left on device", re.IGNORECASE
)
_MOST = 160


def was_reached(text: str) -> bool:
    """Whether the node answered, and only what was to be done there failed."""
    return bool(_REACHED.search(text))


def explain_failure(text: str, account: str, become: str) -> str:
    """One sentence with the cause and one with the mend, for what came back from a node."""
    for pattern, cause, mend in _CAUSES:
        found = re.search(pattern, text)
        if found:
            names = {"account": account, "become": become}
            line = next((line for line in text.splitlines() if found.group(0).splitlines()[0] in line), "").strip()
            return f"{cause.format(**names)} ('{line[:_MOST]}'). {mend.format(**names)}"
    said = " ".join(text.split())
    return f"it cannot be read: '{said[:_MOST]}'. Run 'ansible NODE -b -m metalray.cluster.node_facts -vvv' and mend what it says"
