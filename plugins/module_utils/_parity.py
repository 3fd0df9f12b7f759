# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of any number of nodes compared: who is alone with what, told in one table, and how to mend it.

Needs the standard library and ``_versions`` only: a job that starts compares by the same rules.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ._versions import normalised

Facts = Mapping[str, Any]

MISSING = "missing"
# Of the system: what stops a run by default, and what only warns.
STRICT = ("driver", "cuda", "nccl", "nccl_library")
WARNED = ("kernel", "glibc")
SYSTEM = ("os", "kernel", "glibc", "driver", "cuda", "nccl", "nccl_system", "nccl_library")

_WIDTH = 80
# More than these are not worth a limit: the stage leaves a node alone that is as it should be.
_LIMIT_HOSTS = 12
# What python_env puts right. Another version of Python is its own matter.
_REBUILT = ("environment", "package", "files", "stray")


@dataclass(frozen=True)
class Difference:
    """One item in which hosts differ. ``odd`` maps every other value to the hosts that have it.

    ``where`` is a path that the mend needs, and ``tie`` the host that decided where no value has more hosts.
    """

    item: str
    kind: str
    strict: bool
    expected: str
    expected_on: int
    odd: dict[str, list[str]]
    tie: str = ""
    where: str = ""

    @property
    def hosts(self) -> list[str]:
        return [host for hosts in self.odd.values() for host in hosts]


@dataclass(frozen=True)
class Comparison:
    """``edited`` has for each host, by package, the files that were edited; ``own_python`` the hosts on the system's."""

    hosts: list[str]
    differences: list[Difference] = field(default_factory=list)
    edited: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    own_python: frozenset[str] = frozenset()

    @property
    def strict(self) -> list[Difference]:
        return [item for item in self.differences if item.strict]

    @property
    def warned(self) -> list[Difference]:
        return [item for item in self.differences if not item.strict]

    @property
    def groups(self) -> list[list[str]]:
        """Hosts that are equal in all that stops a run, the largest group first."""
        odd: dict[str, list[tuple[str, str]]] = {host: [] for host in self.hosts}
        for item in self.strict:
            for value, hosts in item.odd.items():
                for host in hosts:
                    odd[host].append((item.item, value))
        groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for host, found in odd.items():
            groups.setdefault(tuple(found), []).append(host)
        return sorted(groups.values(), key=len, reverse=True)

    def as_list(self) -> list[dict[str, Any]]:
        return [asdict(item) for item in self.differences]


# --- comparing ---------------------------------------------------------------------------------------------------


def _difference(
    item: str,
    kind: str,
    strict: bool,
    values: Mapping[str, str],
    reference: str,
    where: Mapping[str, str] | None = None,
    wrong: Collection[str] = (),
) -> Difference | None:
    """``wrong`` values are not what others are brought to, however many hosts have them."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return None
    counts = Counter({value: count for value, count in counts.items() if value not in wrong}) or counts
    most = max(counts.values())
    top = [value for value, count in counts.items() if count == most]
    # In a tie there is no majority to be right: the reference host decides, or the first host of the largest groups.
    judge = ""
    if len(top) > 1:
        judge = next(host for host in [reference, *values] if values.get(host) in top)
    expected = values[judge] if judge else top[0]
    odd: dict[str, list[str]] = {}
    for host, value in values.items():
        if value != expected:
            odd.setdefault(value, []).append(host)
    path = next((where[host] for hosts in odd.values() for host in hosts if where.get(host)), "") if where else ""
    return Difference(item, kind, strict, expected, most, odd, judge, path)


def _installed(facts: Facts, name: str) -> str:
    """A package's version, and what other hands made of it."""
    version = str((facts.get("packages") or {}).get(name) or MISSING)
    changed = (facts.get("changed") or {}).get(name)
    return f"{version} {changed['how']} {changed['digest']}".rstrip() if changed and version != MISSING else version


def _environment(facts: Facts, key: str) -> str:
    value = str(facts.get(key) or "")[:12]
    return f"{value} {facts.get('lock') or ''}".rstrip() if value and key == "hash" else value


def _in_short(commit: str) -> str:
    return commit[:12] if re.fullmatch(r"[0-9a-f]{40,}", commit) else commit


def _differences(facts: Mapping[str, Facts], names: Sequence[str], everything: bool, reference: str) -> Iterable[Any]:
    """Every difference below one environment and another, or None for no difference."""

    def compare_by(
        item: str, kind: str, strict: bool, values: dict[str, str], where: Any = None, wrong: Collection[str] = ()
    ) -> Difference | None:
        return _difference(item, kind, strict, values, reference, where, wrong)

    if everything:
        locks = {host: _environment(found, "hash") or "none" for host, found in facts.items()}
        yield compare_by("lock", "environment", True, locks)
        wheels = {host: _environment(found, "wheels") or "none" for host, found in facts.items()}
        yield compare_by("wheels", "environment", True, wheels)
    for name in names:
        if name == "python":
            values = {host: str(found.get("python") or MISSING) for host, found in facts.items()}
            yield compare_by(name, "python", True, values)
            continue
        values = {host: _installed(found, name) for host, found in facts.items()}
        # What other hands changed is not the lock's, so the stage would not bring it to other nodes.
        by_hand = {values[host] for host, found in facts.items() if name in (found.get("changed") or ())} - {MISSING}
        different = compare_by(name, "package", True, values, wrong=by_hand)
        yield different
        # Equal versions may be different files: a wheel for another platform, or one that was compiled on each node.
        expected = different.expected if different else next(iter(values.values()), "")
        files = {
            host: found["contents"][name]
            for host, found in facts.items()
            if values[host] == expected and (found.get("contents") or {}).get(name)
        }
        recorded = all(facts[host].get("hash") for host in files)
        yield compare_by(f"{name}, its files", "files", not recorded, files)
    if everything:
        strays = {host: set(found.get("strays") or ()) for host, found in facts.items()}
        for entry in sorted(set().union(*strays.values())):
            values = {host: "there" if entry in found else "not there" for host, found in strays.items()}
            yield compare_by(entry, "stray", True, values, wrong=["there"])
    sources = {host: found.get("sources") or {} for host, found in facts.items()}
    for name in sorted(set().union(*sources.values())):
        if not everything and name not in names:
            continue
        where = {host: str(found[name].get("path", "")) for host, found in sources.items() if name in found}
        commits = {
            host: _in_short(str(found.get(name, {}).get("commit") or MISSING)) for host, found in sources.items()
        }
        yield compare_by(f"source {name}", "source", True, commits, where)
        # Where git is not there, or may not look, nobody can tell.
        edits = {
            host: found[name]["edits"]
            for host, found in sources.items()
            if found.get(name, {}).get("edits") is not None
        }
        values = {host: f"edited {digest}" if digest else "as committed" for host, digest in edits.items()}
        yield compare_by(f"source {name}, edits", "edits", True, values, where)


def compare(
    facts: Mapping[str, Facts],
    *,
    packages: Sequence[str] = (),
    strict: Sequence[str] = STRICT,
    warned: Sequence[str] = WARNED,
    reference: str = "",
) -> Comparison:
    """Compare the facts of any number of hosts, item by item; the majority is taken to be right, unless other hands made it so.

    ``packages`` names the distributions to compare, with ``python`` among them if wanted; empty means everything about
    the environment. ``strict`` and ``warned`` name items of the system.
    """
    hosts = list(facts)
    if not hosts:
        return Comparison(hosts)
    reference = reference if reference in facts else hosts[0]
    wanted = [normalised(name) for name in packages]
    installed: set[str] = set().union(*(found.get("packages") or {} for found in facts.values()))
    names = list(dict.fromkeys(wanted or ["python", *sorted(installed)]))
    found = list(_differences(facts, names, not wanted, reference))
    # Compared already as the distribution that carries it.
    skipped = {"nccl"} if any(name.startswith("nvidia-nccl-") for name in names) else set()
    for item, is_strict in [*((name, True) for name in strict), *((name, False) for name in warned)]:
        if item not in skipped:
            values = {host: str((facts[host].get("system") or {}).get(item) or MISSING) for host in hosts}
            found.append(_difference(item, "system", is_strict, values, reference))
    edited = {
        host: {name: list(change.get("files") or ()) for name, change in (facts[host].get("changed") or {}).items()}
        for host in hosts
    }
    own = frozenset(host for host in hosts if str(facts[host].get("interpreter") or "").startswith("/usr/bin/"))
    return Comparison(hosts, [item for item in found if item is not None], edited, own)


# --- telling -----------------------------------------------------------------------------------------------------


# The last number of a name's first part, and what is around it.
_NUMBERED = re.compile(r"([^.]*?)(\d{1,9})([^.\d]*(?:\..*)?)")


def _ranges(numbers: Iterable[int], width: int) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    marks = {0: "", 1: ","}
    return ",".join(
        f"{first:0{width}d}" + (f"{marks.get(last - first, '-')}{last:0{width}d}" if last > first else "")
        for first, last in runs
    )


def abbreviated(hosts: Iterable[str]) -> str:
    """Names in short, numbers in brackets: gpu[1-4,7], login."""
    split = {host: _NUMBERED.fullmatch(host) for host in hosts}
    padded = {(found[1], found[3]) for found in split.values() if found and re.match(r"0\d", found[2])}
    words: dict[Any, list[int]] = {}
    for host, found in split.items():
        if found is None:
            words[host] = []
        else:
            stem = (found[1], found[3])
            words.setdefault((*stem, len(found[2]) if stem in padded else 0), []).append(int(found[2]))
    texts = []
    for key, numbers in words.items():
        inside = _ranges(numbers, key[2]) if numbers else ""
        texts.append(
            key if not numbers else f"{key[0]}[{inside}]{key[1]}" if len(numbers) > 1 else f"{key[0]}{inside}{key[1]}"
        )
    return ", ".join(texts)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _laid_out(rows: Sequence[Sequence[str]], indent: str = "  ", gap: str = "  ") -> list[str]:
    """Rows under their heads, within a terminal's width; the widest column gives way."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    room = _WIDTH - len(indent) - len(gap) * (len(widths) - 1)
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        indent + gap.join(_cut(cell, width).ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in lines
    ]


def table(differences: Sequence[Difference], limit: int = 20) -> list[str]:
    """One table of what differs; of many differences those that touch the most hosts."""
    ranked = sorted(differences, key=lambda item: -len(item.hosts))
    kept = {id(item) for item in ranked[:limit]}
    rows = [["item", "expected", "found", "on"]]
    judges = []
    for item in differences:
        if id(item) not in kept:
            continue
        judges += [item.tie] if item.tie else []
        first = [item.item, f"{item.expected}{' *' if item.tie else ''}"]
        for value, hosts in item.odd.items():
            rows.append([*first, value, abbreviated(hosts)])
            first = ["", ""]
    lines = _laid_out(rows)
    if judges:
        lines.append(
            f"  * as many nodes have the one as the other; what {', '.join(dict.fromkeys(judges))} has is taken to be right"
        )
    if len(differences) > limit:
        lines.append(f"  ... and {len(differences) - limit} more in the list 'differences' of this result")
    return lines


def _odd_hosts(differences: Iterable[Difference]) -> list[str]:
    return list(dict.fromkeys(host for item in differences for host in item.hosts))


def _stage(tags: str, hosts: Sequence[str]) -> str:
    limit = f" --limit {','.join(hosts)}" if len(hosts) <= _LIMIT_HOSTS else ""
    return f"ansible-playbook -i INVENTORY metalray.cluster.site --tags {tags}{limit}"


def _mend_one(item: Difference) -> str:
    hosts = abbreviated(item.hosts)
    if item.kind == "python":
        return (
            f"bring the distribution's Python on {hosts} to {item.expected}, or set python_env_python to a full version, "
            "which is then the same on every node"
        )
    if item.kind == "source":
        path = item.where or item.item.partition(" ")[2]
        if re.fullmatch(r"[0-9a-f]{12}", item.expected):
            return f"on {hosts}: git -C {path} fetch, then git -C {path} checkout {item.expected}"
        return f"see on {hosts} why {path} is not as on the others ({item.expected})"
    if item.kind == "edits":
        if item.expected == "as committed":
            return f"on {hosts}: git -C {item.where} stash, or commit the edits and bring every node to that commit"
        return f"commit the edits in {item.where} and bring every node to that commit"
    if item.expected == MISSING:
        return f"remove {item.item} from {hosts}, or install it on every node"
    return f"bring {item.item} on {hosts} to {item.expected}"


def mends(comparison: Comparison) -> list[str]:
    """What to do about that which stops a run, the stage that mends most of it first."""
    own = comparison.own_python

    def by_stage(item: Difference) -> bool:
        return (
            item.kind in _REBUILT or item.item == "nccl" or (item.kind == "python" and not own.intersection(item.hosts))
        )

    stage = [item for item in comparison.strict if by_stage(item)]
    odd = {host for item in stage for host in item.hosts}
    found = [_stage("python_env,ray", [host for host in comparison.hosts if host in odd])] if stage else []
    found += [_mend_one(item) for item in comparison.strict if not by_stage(item)]
    return list(dict.fromkeys(found))


def summary(comparison: Comparison) -> str:
    """One sentence on hosts that differ in what stops a run."""
    strict = comparison.strict
    odd = _odd_hosts(strict)
    items = [item.item for item in strict]
    named = ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
    return (
        f"version mismatch: {_cut(abbreviated(odd), 200)} of {len(comparison.hosts)} nodes "
        f"{'differs' if len(odd) == 1 else 'differ'} from the rest in {named}"
    )


def failure(comparison: Comparison, limit: int = 20) -> str:
    """The message for hosts that differ in something strict."""
    strict = comparison.strict
    lines = [f"{summary(comparison)}; training across them would fail or go wrong:", *table(strict, limit)]
    packages = {item.item for item in strict if item.kind == "package"}
    files: dict[str, list[str]] = {}
    for host in _odd_hosts(strict):
        for name, paths in comparison.edited.get(host, {}).items():
            if name in packages and paths:
                files.setdefault(", ".join(paths), []).append(host)
    lines += [f"  edited on {abbreviated(hosts)}: {paths}" for paths, hosts in list(files.items())[:limit]]
    lines += [f"Mend: {mend}" for mend in mends(comparison)[:limit]]
    return "\n".join(lines)


def warnings(comparison: Comparison) -> list[str]:
    """One line for each difference that does not stop the run."""
    found = []
    for item in comparison.warned:
        odd = "; ".join(f"{abbreviated(hosts)}: {value}" for value, hosts in item.odd.items())
        others = "the other node" if item.expected_on == 1 else f"the other {item.expected_on} nodes"
        note = f" (a tie: {item.tie} is taken to be right)" if item.tie else ""
        found.append(f"Nodes differ in {item.item}: {odd}; {others}: {item.expected}{note}")
    return found
