# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables that somebody set in the environment files of a node.

Internal to metalray.cluster: not a public interface.

Read, never executed: code under a condition counts, and a value that a shell would compute is reported as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._tree import Tree

_KNOWN = re.compile(
    r"(?:NCCL|GLOO|TORCH|PYTORCH|VLLM|FI|OFI_NCCL|RDMAV|UCX)_\w+|TP_SOCKET_IFNAME|MASTER_(?:ADDR|PORT)|HOST_IP",
    re.ASCII,
)
# Whole words, so that NCCL_IB_PKEY (a partition of the fabric) and counts of tokens stay.
_SECRET = re.compile(
    r"(?:^|_)(?:API|ACCESS|AUTH|PRIVATE)?(?:KEYS?|TOKEN|SECRETS?|PASSW\w*|PASSPHRASE|CREDENTIALS?)(?:_|$)", re.I
)


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody else's business."""
    return bool(_SECRET.search(name))


# Line number, name, value.
Assignment = tuple[int, str, str]

OURS = ("/etc/metalray/cluster.env", "/etc/profile.d/metalray.sh")

_WORD = r"""(?:[^\s;&|()<>"'`\\$] | \\. | \$\{[^}]*\} | \$\((?:[^()]|\([^()]*\))*\) | \$ | `[^`]*` | "(?:[^"\\]|\\.)*" | '[^']*')+"""
_TOKEN = re.compile(
    rf"(?P<blank>\s+) | (?P<comment>\#.*) | (?P<operator>[;&|()<>]+) | (?P<word>{_WORD})", re.VERBOSE | re.DOTALL
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.ASCII | re.DOTALL)
_KEYWORDS = {"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"}
_DECLARE = {"export", "declare", "typeset", "readonly"}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with the number of their first one, those that end in a backslash joined to the next."""
    start, held = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        start = start or number
        if line.endswith("\\") and not line.endswith("\\\\"):
            held += line[:-1]
            continue
        yield start, held + line
        start, held = 0, ""
    if held:
        yield start, held


def _unquote(word: str) -> str:
    """A word as a shell reads it, without expanding anything."""
    parts = re.findall(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|(\\.|[^'"\\]+)""", word, re.DOTALL)
    return "".join(
        single or re.sub(r'\\([$`"\\])', r"\1", double) or re.sub(r"\\(.)", r"\1", bare)
        for single, double, bare in parts
    )


def _commands(line: str) -> Iterator[list[str]]:
    """The simple commands of a line as lists of words. What follows an open quote is left out."""
    words: list[str] = []
    place = 0
    while (token := _TOKEN.match(line, place)) is not None:
        place = token.end()
        if token.lastgroup == "operator":
            yield words
            words = []
        elif token.lastgroup == "word" and (words or token.group() not in _KEYWORDS):
            words.append(token.group())
    if place < len(line) and words and not line[place - 1].isspace():
        words.pop()  # its quote is not closed in this line
    yield words


def parse_shell(text: str) -> Iterator[Assignment]:
    """Assignments of a shell script that stay: not those in front of a command, which only that command sees."""
    for number, line in _lines(text):
        for words in _commands(line):
            found = [_ASSIGNMENT.fullmatch(word) for word in words]
            lead = next((place for place, match in enumerate(found) if match is None), len(words))
            if lead == len(words) or words[lead] in _DECLARE:
                yield from ((number, match[1], _unquote(match[2])) for match in found if match)


def parse_pam(text: str) -> Iterator[Assignment]:
    """/etc/environment as pam_env reads it: '#' ends a line anywhere, one pair of quotes around the value goes."""
    for number, line in enumerate(text.splitlines(), start=1):
        name, equals, value = line.partition("#")[0].strip().partition("=")
        if equals:
            yield number, re.sub(r"^export\s+", "", name), re.sub(r"""^["']|["']$""", "", value)


def parse_environment_d(text: str) -> Iterator[Assignment]:
    """environment.d(5): one assignment a line, comments in lines of their own."""
    for number, line in _lines(text):
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match:
            yield number, match[1], _unquote(match[2].strip())


def parse_unit(text: str) -> Iterator[Assignment]:
    """``Environment=`` and ``DefaultEnvironment=`` of systemd's files: several quoted assignments a line."""
    for number, line in _lines(text):
        setting = re.match(r"\s*(?:Default)?Environment\s*=\s*(.*)", line)
        for word in re.findall(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+""", setting[1] if setting else ""):
            match = _ASSIGNMENT.fullmatch(_unquote(word))
            if match:
                yield number, match[1], match[2]


def parse_nccl(text: str) -> Iterator[Assignment]:
    """nccl.conf as NCCL reads it: everything before the first '=' is the name and all after it the value, blanks, quotes and
    'export ' included. The block that this collection wrote is left out."""
    ours = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            ours = line == "# BEGIN metalray.cluster" or (ours and line != "# END metalray.cluster")
        elif not ours and "=" in line:
            name, _equals, value = line.partition("=")
            yield number, name, value


Parser = Callable[[str], Iterable[Assignment]]

_SHELL_AT_HOME = (".profile", ".bash_profile", ".bash_login", ".bashrc", ".zshenv")
_FILES: tuple[tuple[str, Parser], ...] = (
    ("/etc/environment", parse_pam),
    ("/etc/environment.d/*.conf", parse_environment_d),
    ("/etc/profile", parse_shell),
    ("/etc/profile.d/*.sh", parse_shell),
    ("/etc/bash.bashrc", parse_shell),
    ("/etc/systemd/system.conf", parse_unit),
    ("/etc/systemd/system.conf.d/*.conf", parse_unit),
    ("/etc/systemd/system/metalray-*.service", parse_unit),
    ("/etc/systemd/system/metalray-*.service.d/*.conf", parse_unit),
    ("/etc/nccl.conf", parse_nccl),
)


def read_environment_files(root: str, home: str) -> list[dict[str, Any]]:
    """Every assignment of a variable that concerns NCCL, Gloo, torch, vLLM or the network below them.

    ``home`` is that of the account whose login files count, or empty. Names that look like secrets are never returned.
    Files that cannot be read, and binary ones, are passed over.
    """
    tree = Tree(root)
    places = [(path, parser) for pattern, parser in _FILES for path in tree.glob(pattern)]
    if home:
        places += [(f"{home}/{name}", parse_shell) for name in _SHELL_AT_HOME]
        places.append((f"{home}/.nccl.conf", parse_nccl))
    found = []
    for path, parser in places:
        data = tree.data(path) if path not in OURS else b""
        if not data or b"\0" in data:
            continue
        for line, name, value in parser(data.decode("utf-8", "replace")):
            # In nccl.conf a name may hold blanks, quotes or 'export '.
            word = (name.split() or [""])[-1].strip("\"'")
            if _KNOWN.fullmatch(word) and not is_secret(word):
                found.append({"file": path, "line": line, "name": name, "value": value})
    return found
