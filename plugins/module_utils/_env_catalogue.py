# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment variables of distributed training, as data: what exists since when, what it may say, where it harms.

Internal to metalray.cluster: not a public interface. Runs on the controller.

The data is ``variables.yml`` (its head documents every field) and ``nccl_names.csv`` (every name that any release of NCCL
reads) of the role network_env. ``load`` reads and checks both; nothing else touches a file.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLES = "variables.yml"
NCCL_NAMES = "nccl_names.csv"

STATUSES = ("active", "deprecated", "renamed", "removed", "never_existed")
VERDICTS = ("keep", "change", "optional", "no_effect", "harmful", "job_level")
SCOPES = ("node", "cluster", "job")
RENDERS = ("nccl_conf", "env", "arg", "none")
LEVELS = ("error", "warning", "info")
KINDS = ("integer", "bytes", "enum", "interfaces", "hca", "cidr", "address", "host", "port", "endpoint", "path", "pairs",
         "text")  # fmt: skip
READERS = ("gloo", "nccl", "tensorpipe")
CONDITIONS = ("gpus", "multi_gpu", "nvlink", "single_node", "multi_node", "rdma_chosen", "rdma_visible", "no_rdma", "socket", "efa",
              "one_nic", "several_nics", "plugins", "vllm", "ipv4", "ipv6")  # fmt: skip
TRANSPORTS = ("ethernet", "infiniband", "roce")
NAME_KINDS = ("core", "example")

_RELEASE = re.compile(r"\d+(\.\d+)*")
_BOUND = re.compile(r"(>=|<)(\d+(?:\.\d+)*)")


class CatalogueError(Exception):
    """The data is wrong; the text names the file, the entry and the field."""


def release(text: str) -> tuple[int, ...]:
    """A release as a tuple that sorts: '2.28.9' -> (2, 28, 9). What follows the numbers ('2.11.0+cu130', '2.4.0a0') is dropped.

    Zeros at the end count for nothing, so that 2.5 is 2.5.0. Raises ValueError when the text does not start with a number.
    """
    found = _RELEASE.match(text.strip())
    if not found:
        raise ValueError(f"'{text}' is not a release")
    numbers = [int(part) for part in found.group().split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


@dataclass(frozen=True)
class Syntax:
    """What a value may say. ``breaks`` tells that a wrong one stops the job; ``why`` what else it does."""

    kind: str
    min: int | None = None
    max: int | None = None
    values: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    case: str = "exact"
    reader: str | None = None
    own: bool = False
    breaks: bool = False
    why: str | None = None

    def same(self, one: str, other: str) -> bool:
        return one.lower() == other.lower() if self.case == "any" else one == other


@dataclass(frozen=True)
class Harm:
    """A rule: on what values, under which conditions, how bad, and why."""

    level: str
    why: str
    mend: str | None = None
    values: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()
    matches: str | None = None
    times: str | None = None
    above: int | None = None
    when: tuple[str, ...] = ()
    others: Mapping[str, str | None] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    releases: Mapping[str, str] = field(default_factory=dict)

    def concerns(self, release_of: Mapping[str, str | None]) -> bool:
        """Whether the rule is about these releases. An unknown one is taken as the newest."""
        for product, bound in self.releases.items():
            sign, limit = _BOUND.fullmatch(bound).groups()  # type: ignore[union-attr]
            have = release_of.get(product)
            reached = have is None or release(have) >= release(limit)
            if reached != (sign == ">="):
                return False
        return True


@dataclass(frozen=True)
class Variable:
    """One entry of variables.yml."""

    name: str
    component: str
    source: str
    verdict: str
    status: str = "active"
    since: str | None = None
    until: str | None = None
    deprecated: str | None = None
    removed: str | None = None
    replacement: str | None = None
    syntax: Syntax | None = None
    default: str | None = None
    seed: str | None = None
    scope: str | None = None
    may_differ: bool = False
    unique: bool = False
    same_count: bool = False
    render: str = "none"
    use: Mapping[str, str] = field(default_factory=dict)
    harm: tuple[Harm, ...] = ()
    note: str | None = None

    @property
    def product(self) -> str:
        return self.component.partition("/")[0]

    def gone_in(self, have: str | None) -> bool:
        """Whether a release lacks it already; an unknown release is taken as the newest."""
        if self.removed is None:
            return self.status in ("removed", "renamed", "never_existed")
        return have is None or release(have) >= release(self.removed)


@dataclass(frozen=True)
class NcclName:
    """One line of nccl_names.csv. ``last`` is empty while the newest known release still has it."""

    name: str
    kind: str
    first: str
    last: str = ""
    default: str = ""
    source: str = ""


@dataclass(frozen=True)
class Family:
    """Names under one prefix. ``complete`` means that every real one is known."""

    prefix: str
    complete: bool


@dataclass(frozen=True)
class Catalogue:
    variables: Mapping[str, Variable]
    nccl_names: Mapping[str, NcclName]
    nccl_newest: str
    oldest: Mapping[str, str] = field(default_factory=dict)
    families: tuple[Family, ...] = ()
    foreign_prefixes: Mapping[str, str] = field(default_factory=dict)
    foreign_names: Mapping[str, str] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

    def get(self, name: str) -> Variable | None:
        return self.variables.get(name)

    def family(self, name: str) -> Family | None:
        return next((family for family in self.families if name.startswith(family.prefix)), None)

    def foreign(self, name: str) -> str | None:
        """Whose name it is, where another program owns it (NCCL's plugins, builds)."""
        if name in self.foreign_names:
            return self.foreign_names[name]
        return next((owner for prefix, owner in self.foreign_prefixes.items() if name.startswith(prefix)), None)

    def known(self, name: str) -> bool:
        return (
            name in self.variables or name in self.nccl_names or name in self.others or self.foreign(name) is not None
        )

    def known_in(self, name: str, nccl_version: str | None) -> bool | None:
        """Whether a release of NCCL reads the name; None when no release that is known here does.

        A release that is not known is taken as the newest that is.
        """
        entry = self.nccl_names.get(name)
        if entry is None:
            return None
        have = release(nccl_version or self.nccl_newest)
        if self.first_known(entry.first):
            return not entry.last or have <= release(entry.last)
        return release(entry.first) <= have and (not entry.last or have <= release(entry.last))

    def first_known(self, since: str, product: str = "nccl") -> bool:
        """Whether a release is the oldest that was looked at, so that the name may be older."""
        return since == self.oldest.get(product)

    def newer_than_known(self, nccl_version: str | None) -> bool:
        return nccl_version is not None and release(nccl_version) > release(self.nccl_newest)

    def real_names(self) -> list[str]:
        """Names that do something today: what a mistyped one may have meant."""
        usable = [v.name for v in self.variables.values() if v.status in ("active", "deprecated") and v.render != "arg"]
        return sorted({*usable, *(n.name for n in self.nccl_names.values() if not n.last), *self.others})

    def closest(self, name: str, cutoff: float = 0.75) -> str | None:
        """The real name most like this one. One that differs by its prefix alone comes first (NCCL_X for TORCH_NCCL_X)."""
        real = self.real_names()
        wanted = name.strip().upper()
        family = self.family(wanted)
        for other in real:
            if other != wanted and (other.endswith(f"_{wanted}") or wanted.endswith(f"_{other}")):
                return other
        kin = [other for other in real if family and other.startswith(family.prefix)]
        for pool in (kin, real):
            found = difflib.get_close_matches(wanted, pool, n=1, cutoff=cutoff)
            if found:
                return found[0]
        return None


def seed_values(catalogue: Catalogue, interface: str, head_address: str, source_dir: str) -> dict[str, str]:
    """The guide's own values, with a node's interface, the head's address and the source directory filled in."""
    stand_ins = {"<YOUR_INTERFACE>": interface, "<HEAD_INTERNAL_IP>": head_address, "$(pwd)": source_dir}
    values = {}
    for variable in catalogue.variables.values():
        if variable.seed is not None:
            value = variable.seed
            for stand_in, real in stand_ins.items():
                value = value.replace(stand_in, real)
            values[variable.name] = value
    return values


class _Reader:
    """Takes fields out of one mapping of the data, each checked; ``done`` refuses what is left over."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CatalogueError(f"{where} is {data!r}, it must be a mapping of fields")
        self.data, self.where = dict(data), where

    def fail(self, name: str, seen: Any, allowed: str) -> CatalogueError:
        return CatalogueError(f"{self.where}: {name} is {seen!r}, it must be {allowed}")

    def take(
        self, name: str, kind: type, default: Any = None, *, required: bool = False, choices: Iterable[str] = ()
    ) -> Any:
        if name not in self.data:
            if required:
                raise CatalogueError(f"{self.where}: {name} is missing")
            return default
        value = self.data.pop(name)
        words = {
            str: "a text (quote numbers)",
            int: "a whole number",
            bool: "true or false",
            dict: "a mapping",
            list: "a list",
        }
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(name, value, words[kind])
        if choices and value not in choices:
            raise self.fail(name, value, f"one of {', '.join(choices)}")
        return value

    def texts(self, name: str, choices: Iterable[str] = ()) -> tuple[str, ...]:
        values = self.take(name, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.fail(name, value, "a list of texts (quote numbers)")
            if choices and value not in choices:
                raise self.fail(name, value, f"of {', '.join(choices)}")
        return tuple(values)

    def release(self, name: str, *, required: bool = False) -> str | None:
        value = self.take(name, str, required=required)
        if value is not None and not _RELEASE.fullmatch(value):
            raise self.fail(name, value, 'a release such as "2.4.8"')
        return value

    def done(self) -> None:
        if self.data:
            raise CatalogueError(f"{self.where}: {', '.join(map(str, self.data))} is not a field")


def _syntax(data: Any, where: str) -> Syntax:
    reader = _Reader(data, where)
    kind = reader.take("kind", str, required=True, choices=KINDS)
    syntax = Syntax(
        kind=kind,
        min=reader.take("min", int),
        max=reader.take("max", int),
        values=reader.texts("values"),
        legacy=reader.texts("legacy"),
        case=reader.take("case", str, "exact", choices=("exact", "any")),
        reader=reader.take("reader", str, required=kind == "interfaces", choices=READERS),
        own=reader.take("own", bool, False),
        breaks=reader.take("breaks", bool, False),
        why=reader.take("why", str),
    )
    reader.done()
    if (kind == "enum") != bool(syntax.values):
        raise reader.fail("values", list(syntax.values), "given for the kind enum, and for no other")
    return syntax


def _harm(data: Any, where: str) -> Harm:
    reader = _Reader(data, where)
    harm = Harm(
        level=reader.take("level", str, required=True, choices=LEVELS),
        why=reader.take("why", str, required=True),
        mend=reader.take("mend", str),
        values=reader.texts("values"),
        excepted=reader.texts("except"),
        matches=reader.take("matches", str),
        times=reader.take("times", str),
        above=reader.take("above", int),
        when=reader.texts("when", CONDITIONS),
        others=reader.take("with", dict, {}),
        without=reader.texts("without"),
        releases=reader.take("releases", dict, {}),
    )
    reader.done()
    for product, bound in harm.releases.items():
        if not isinstance(bound, str) or not _BOUND.fullmatch(bound):
            raise reader.fail(f"releases.{product}", bound, 'a bound such as ">=2.21" or "<2.21"')
    if (harm.times is None) != (harm.above is None):
        raise CatalogueError(f"{where}: times and above belong together")
    if harm.matches is not None:
        try:
            re.compile(harm.matches)
        except re.error as error:
            raise reader.fail("matches", harm.matches, f"a regular expression ({error})") from error
    return harm


def _variable(data: Any, where: str) -> Variable:
    reader = _Reader(data, where)
    name = reader.take("name", str, required=True)
    reader.where = where = f"{where.partition(':')[0]}: {name}"
    status = reader.take("status", str, "active", choices=STATUSES)
    syntax = reader.data.pop("syntax", None)
    use = reader.data.pop("use", "unset")
    if not isinstance(use, (str, Mapping)) or (isinstance(use, Mapping) and set(use) != set(TRANSPORTS)):
        raise reader.fail("use", use, f"a text, or a text for each of {', '.join(TRANSPORTS)}")
    harm = reader.take("harm", list, [])
    variable = Variable(
        name=name,
        status=status,
        component=reader.take("component", str, required=True),
        since=reader.release("since"),
        until=reader.release("until"),
        deprecated=reader.release("deprecated"),
        removed=reader.release("removed"),
        replacement=reader.take("replacement", str),
        syntax=None if syntax is None else _syntax(syntax, f"{where}: syntax"),
        default=reader.take("default", str),
        seed=reader.take("seed", str),
        verdict=reader.take("verdict", str, required=True, choices=VERDICTS),
        scope=reader.take("scope", str, required=status != "never_existed", choices=SCOPES),
        may_differ=reader.take("may_differ", bool, False),
        unique=reader.take("unique", bool, False),
        same_count=reader.take("same_count", bool, False),
        render=reader.take("render", str, "none", choices=RENDERS),
        use=dict.fromkeys(TRANSPORTS, use) if isinstance(use, str) else dict(use),
        harm=tuple(_harm(rule, f"{where}: harm {number}") for number, rule in enumerate(harm, 1)),
        note=reader.take("note", str),
        source=reader.take("source", str, required=True),
    )
    reader.done()
    if variable.syntax is None and status != "never_existed":
        raise CatalogueError(f"{where}: syntax is missing")
    if status == "renamed" and variable.replacement is None:
        raise CatalogueError(f"{where}: replacement is missing, and the status is renamed")
    if status in ("renamed", "removed") and variable.removed is None:
        raise CatalogueError(f"{where}: removed is missing, and the status is {status}")
    return variable


def _name(row: Mapping[str, str], where: str) -> NcclName:
    for column in ("name", "kind", "first", "last"):
        if row.get(column) is None:
            raise CatalogueError(f"{where}: {column} is missing")
    entry = NcclName(**{column: row.get(column) or "" for column in NcclName.__dataclass_fields__})
    where = f"{where.partition(':')[0]}: {entry.name}"
    if entry.kind not in NAME_KINDS:
        raise CatalogueError(f"{where}: kind is {entry.kind!r}, it must be one of {', '.join(NAME_KINDS)}")
    for column in ("first", "last"):
        value = getattr(entry, column)
        if not _RELEASE.fullmatch(value) and not (column == "last" and not value):
            raise CatalogueError(f"{where}: {column} is {value!r}, it must be a release such as 2.4.8")
    if entry.last and release(entry.last) < release(entry.first):
        raise CatalogueError(f"{where}: last is {entry.last!r}, it must not come before first ({entry.first})")
    return entry


def _check_references(catalogue: Catalogue) -> None:
    for variable in catalogue.variables.values():
        for rule in variable.harm:
            for other in (*rule.others, *rule.without, *([rule.times] if rule.times else [])):
                if not catalogue.known(other):
                    raise CatalogueError(
                        f"{VARIABLES}: {variable.name}: harm names {other}, which is not in the catalogue"
                    )
        if variable.status == "renamed" and not catalogue.known(variable.replacement or ""):
            raise CatalogueError(
                f"{VARIABLES}: {variable.name}: replacement is {variable.replacement!r}, which is not in the catalogue"
            )
    for entry in catalogue.nccl_names.values():
        for column in ("first", "last"):
            value = getattr(entry, column)
            if value and release(value) > release(catalogue.nccl_newest):
                raise CatalogueError(
                    f"{NCCL_NAMES}: {entry.name}: {column} is {value}, it must not be newer than nccl_newest of {VARIABLES} "
                    f"({catalogue.nccl_newest})"
                )


def parse(data: Any, rows: Iterable[Mapping[str, str]]) -> Catalogue:
    """The catalogue from what the two files hold. Raises CatalogueError at the first wrong entry."""
    reader = _Reader(data, VARIABLES)
    if reader.take("schema", int, required=True) != 1:
        raise CatalogueError(f"{VARIABLES}: schema is {data['schema']}, it must be 1")
    newest = reader.release("nccl_newest", required=True)
    reader.release("nccl_newest_source")
    oldest = reader.take("oldest", dict, {})
    families = []
    for number, item in enumerate(reader.take("families", list, []), 1):
        entry = _Reader(item, f"{VARIABLES}: families {number}")
        families.append(Family(entry.take("prefix", str, required=True), entry.take("complete", bool, required=True)))
        entry.done()
    foreign_prefixes, foreign_names = {}, {}
    for number, item in enumerate(reader.take("foreign", list, []), 1):
        entry = _Reader(item, f"{VARIABLES}: foreign {number}")
        owner, prefix = entry.take("of", str, required=True), entry.take("prefix", str)
        if prefix is None:
            foreign_names[entry.take("name", str, required=True)] = owner
        else:
            foreign_prefixes[prefix] = owner
        entry.done()
    others = frozenset(reader.texts("others"))
    variables: dict[str, Variable] = {}
    for number, item in enumerate(reader.take("variables", list, required=True), 1):
        variable = _variable(item, f"{VARIABLES}: entry {number}")
        if variable.name in variables:
            raise CatalogueError(f"{VARIABLES}: {variable.name}: name is there twice")
        variables[variable.name] = variable
    reader.done()
    names: dict[str, NcclName] = {}
    for number, row in enumerate(rows, 2):
        name = _name(row, f"{NCCL_NAMES}: line {number}")
        if name.name in names:
            raise CatalogueError(f"{NCCL_NAMES}: {name.name}: name is there twice")
        names[name.name] = name
    catalogue = Catalogue(
        variables, names, newest or "", oldest, tuple(families), foreign_prefixes, foreign_names, others
    )
    _check_references(catalogue)
    return catalogue


def load(directory: Path) -> Catalogue:
    """Read the catalogue from the directory of its two files."""
    # The controller has it with Ansible; a node, to which module_utils may travel, need not.
    import yaml

    try:
        # libyaml reads it ten times as fast, where it is there; the loader is the safe one either way.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load((directory / VARIABLES).read_text(encoding="utf-8"), Loader=loader)
        with (directory / NCCL_NAMES).open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, yaml.YAMLError) as error:
        raise CatalogueError(f"the catalogue of {directory} cannot be read: {error}") from error
    return parse(data, rows)
