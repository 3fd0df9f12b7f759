# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with the environment variables that a user has set, on the hardware that is there.

Internal to metalray.cluster: not a public interface. Runs on the controller; every function is pure.

``lint`` takes the assignments of the whole cluster, from the inventory and from the files that were found on the nodes, and
what is known of each node. Names, releases, syntax and harm are data (``_env_catalogue``); this file is how to judge by them.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable

from ._env_catalogue import Catalogue, Harm, Syntax, Variable, release

# By which a value that NCCL's parser would cut is turned into what was meant.
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}
_NCCL_MAX_INTERFACES = 16
_NCCL_MAX_HCAS = 32
_MANY_HOSTS = 8
# How much a name of an open family must resemble a known one; VLLM_USE_V2 is not taken for VLLM_USE_V1.
_NEAR_MISS = 0.87
_LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class Assignment:
    """A variable that somebody set. ``place`` is inventory, environment or nccl_conf; ``where`` says it to a person
    ('network_env_extra', '/etc/environment line 3'). In nccl_conf, name and value are the line's own text on both sides of '='.
    """

    name: str
    value: str
    place: str
    where: str
    host: str


@dataclass(frozen=True)
class Context:
    """What a rule may ask about a node. ``rdma_ports`` are the active ones, as 'mlx5_0:1'."""

    host: str
    transport: str = "socket"
    nodes: int = 1
    gpus: int = 0
    nvlink: str = "unknown"
    rdma_visible: bool = False
    rdma_ports: Sequence[str] = ()
    nics: int = 1
    plugins: bool = False
    interfaces: Sequence[str] = ()
    addresses: Sequence[str] = ()
    interface: str = ""
    address: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def ip_version(self) -> int | None:
        try:
            return ipaddress.ip_address(self.address).version
        except ValueError:
            return None


@dataclass(frozen=True)
class Finding:
    """One thing to know, on all hosts where it holds. Errors stop the run."""

    level: str
    name: str
    where: str
    hosts: tuple[str, ...]
    message: str


CONDITIONS: dict[str, Callable[[Context], bool]] = {
    "gpus": lambda c: c.gpus >= 1,
    "multi_gpu": lambda c: c.gpus >= 2,
    "nvlink": lambda c: c.nvlink in ("all", "some"),
    "single_node": lambda c: c.nodes == 1,
    "multi_node": lambda c: c.nodes > 1,
    "rdma_chosen": lambda c: c.transport in ("infiniband", "roce"),
    "rdma_visible": lambda c: c.rdma_visible,
    "no_rdma": lambda c: not c.rdma_ports,
    "socket": lambda c: c.transport == "socket",
    "efa": lambda c: c.transport == "efa",
    "one_nic": lambda c: c.nics <= 1,
    "several_nics": lambda c: c.nics >= 2,
    "plugins": lambda c: c.plugins,
    "vllm": lambda c: c.versions.get("vllm") is not None,
    "ipv4": lambda c: c.ip_version == 4,
    "ipv6": lambda c: c.ip_version == 6,
}


@dataclass(frozen=True)
class _Note:
    """A finding on one host, before those of all hosts are put together. ``has`` is what may differ from host to host."""

    level: str
    message: str
    has: str = ""


# ---------------------------------------------------------------- values alone


def _integer(value: str, syntax: Syntax, for_nccl: bool) -> str | None:
    """Why a value is no integer as the variable wants it, or None."""
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", value):
        number = int(value)
        if (syntax.min is None or number >= syntax.min) and (syntax.max is None or number <= syntax.max):
            return None
        return f"is out of range; {_range(syntax)} is allowed"
    cause = "is not a whole number"
    if for_nccl:
        # NCCL takes what strtoll(value, base 0) makes of it, and says nothing.
        if re.fullmatch(r"0[0-7]+", value):
            cause = f"is read as octal, {int(value, 8)}, because of the leading 0; write {value.lstrip('0') or '0'}"
        elif re.fullmatch(r"0[xX][0-9a-fA-F]+", value):
            cause = f"is hexadecimal; write {int(value, 16)}"
        elif found := re.fullmatch(r"([1-9][0-9]*)\s*([kKmMgG])(i?[bB])?", value):
            cause = f"is read as {found[1]}; write {int(found[1]) * _UNITS[found[2].lower()]}"
        elif found := re.fullmatch(r"(-?[0-9]+)\.[0-9]*", value):
            cause = f"is read as {found[1]}; write a whole number"
        elif value.lower() in ("true", "yes", "on", "false", "no", "off"):
            cause = "is read as 0, or as the default from NCCL 2.32 on; write 1 for on and 0 for off"
    return f"{cause}. A whole number is allowed, {_range(syntax)}"


def _range(syntax: Syntax) -> str:
    if syntax.min is not None and syntax.max is not None:
        return f"{syntax.min} to {syntax.max}"
    return f"{syntax.min} or more" if syntax.min is not None else "of any size"


def _address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_cidr(value: str) -> bool:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return "/" in value


def _is_port(value: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", value) is not None and int(value) < 65536


def _is_host(value: str) -> bool:
    return _address(value) or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", value) is not None


def _is_endpoint(value: str) -> bool:
    found = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]+)", value)
    return found is not None and _is_port(found["port"]) and _is_host(found["six"] or found["host"])


_CHECKS: dict[str, tuple[Callable[[str], bool], str]] = {
    "cidr": (_is_cidr, "a network in CIDR notation (10.0.0.0/24)"),
    "address": (_address, "an IP address"),
    "host": (_is_host, "a host name or an IP address"),
    "port": (_is_port, "a port, 1 to 65535"),
    "endpoint": (_is_endpoint, "host:port"),
    "path": (lambda value: value.startswith("/"), "an absolute path"),
    "pairs": (
        lambda value: all(re.fullmatch(r"[a-z_]+:\S+", part) for part in value.split(",")),
        "key:value, by commas",
    ),
}


def check_syntax(variable: Variable, value: str) -> str | None:
    """What is wrong with the form of a value, as the rest of a sentence that starts with NAME=value; None when nothing is."""
    syntax = variable.syntax
    if syntax is None:
        return None
    problem = None
    if syntax.kind in ("integer", "bytes"):
        problem = _integer(value, syntax, variable.product.startswith("nccl"))
    elif syntax.kind == "enum":
        if not any(syntax.same(value, allowed) for allowed in (*syntax.values, *syntax.legacy)):
            named = next((allowed for allowed in syntax.values if allowed.lower() == value.lower()), None)
            problem = f"is written with the wrong case; write {named}" if named else "is not one of its values"
            problem += f". Allowed: {', '.join(syntax.values)}"
    elif syntax.kind in _CHECKS:
        accepts, allowed = _CHECKS[syntax.kind]
        if not accepts(value):
            problem = f"is not {allowed}"
    if problem and syntax.why:
        problem += f" ({syntax.why})"
    return problem


def _literal_trap(value: str) -> str | None:
    """What NCCL's own file keeps of a value although no person means it."""
    if value != value.strip():
        return "has blanks at its end, which nccl.conf keeps; remove them"
    if re.search(r"\s#", value):
        return "carries a note, which nccl.conf keeps as part of the value; write comments on lines of their own, from column 0"
    if re.search("[\"']", value):
        return "has quotes, which nccl.conf keeps as part of the value; write it without them"
    return None


# ---------------------------------------------------------------- names of interfaces and adapters


def _items(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


@dataclass(frozen=True)
class _NcclList:
    """NCCL's list of names: prefixes, or whole names after '='; all others after '^'."""

    inverted: bool
    exact: bool
    items: tuple[str, ...]

    @classmethod
    def parse(cls, value: str) -> _NcclList:
        inverted = value.startswith("^")
        rest = value[1:] if inverted else value
        exact = rest.startswith("=")
        return cls(inverted, exact, tuple(_items(rest[1:] if exact else rest)))

    def hits(self, name: str, item: str) -> bool:
        return name == item if self.exact else name.startswith(item)


def _own_value(variable: Variable, assignment: Assignment) -> str:
    """How to mend a value that must differ between nodes."""
    if assignment.place == "inventory" and variable.render != "none":
        return (
            "Leave it out: it is written for each node from what the node has. To choose yourself, set it for each host"
        )
    return "Correct it or remove it"


def _check_exact_interfaces(variable: Variable, a: Assignment, c: Context, reader: str) -> Iterator[_Note]:
    """Gloo and TensorPipe: whole names only."""
    if len(a.value) < 2:
        yield _Note("warning", "is ignored: Gloo reads values of two characters and more")
        return
    names = a.value.split(",")
    if reader == "tensorpipe" and len(names) > 1:
        yield _Note("error", "names several interfaces; TensorPipe takes one")
        return
    if re.search(r"[\s=^\"']", a.value) or "" in names:
        yield _Note(
            "error",
            "is not a list of whole interface names by commas; '=', '^', blanks and quotes are NCCL's notation or nobody's, and the "
            f"job fails at start. {_own_value(variable, a)}",
        )
        return
    absent = [name for name in names if name not in c.interfaces and name != "lo"]
    if absent:
        longer = [name for name in sorted(c.interfaces) if name.startswith(absent[0])]
        cause = f"names {', '.join(absent)}, which is no interface of this node; the job fails at start. {_own_value(variable, a)}"
        yield _Note("error", cause, f"{', '.join(longer)}, but the whole name counts" if longer else "")
    elif c.nodes > 1 and "lo" in names:
        yield _Note("error", f"names the loopback interface, which reaches no other node. {_own_value(variable, a)}")
    elif c.interface and c.interface not in names:
        yield _elsewhere(c)


def _elsewhere(c: Context) -> _Note:
    message = "leaves the interface that carries the cluster. To move all of it, set cluster_interface instead"
    return _Note("warning", message, c.interface)


def _check_nccl_interfaces(variable: Variable, a: Assignment, c: Context) -> Iterator[_Note]:
    if len(a.value) < 2:
        yield _Note("warning", "is ignored: NCCL reads values of two characters and more")
        return
    wanted = _NcclList.parse(a.value)
    present = [*c.interfaces, *([] if "lo" in c.interfaces else ["lo"])]
    if len(wanted.items) > _NCCL_MAX_INTERFACES:
        yield _Note("warning", f"names {len(wanted.items)} interfaces; NCCL reads the first {_NCCL_MAX_INTERFACES}")
    items = [item.partition(":")[0] for item in wanted.items[:_NCCL_MAX_INTERFACES]]
    hit = {name for name in present for item in items if wanted.hits(name, item)}
    if wanted.inverted:
        left = [name for name in present if name not in hit]
        if not left:
            yield _Note(
                "error", f"excludes every interface of this node, so NCCL fails at start. {_own_value(variable, a)}"
            )
        elif "lo" in left:
            yield _Note(
                "warning",
                "excludes less than it seems to: a list after '^' takes the place of NCCL's own exclusions (docker*, lo, virbr*), so lo "
                "can be chosen. Name the interface, with '=' before it",
            )
        return
    if not hit:
        spaced = " (blanks count as part of a name)" if re.search(r"\s", a.value) else ""
        yield _Note(
            "error", f"matches no interface of this node{spaced}, so NCCL fails at start. {_own_value(variable, a)}"
        )
        return
    if c.nodes > 1 and hit == {"lo"}:
        yield _Note("error", f"names the loopback interface, which reaches no other node. {_own_value(variable, a)}")
        return
    if re.search(r"\s", a.value):
        yield _Note("warning", "has blanks, which count as part of a name. Remove them")
    named = hit & set(items)
    if not wanted.exact and hit - named:
        message = "matches more than it names, since names are prefixes, and NCCL takes the first in the kernel's order. Start with '='"
        yield _Note("warning", message, ", ".join(sorted(hit)))
    elif len(hit) > 1:
        message = "matches several interfaces; NCCL's bootstrap takes the first in the kernel's order, not the list's. Name one"
        yield _Note("warning", message, ", ".join(sorted(hit)))
    elif c.interface and c.interface not in hit:
        yield _elsewhere(c)


def chosen_ports(value: str, ports: Collection[str]) -> set[str]:
    """Those of a node's active ports that a value of NCCL_IB_HCA chooses."""
    wanted = _NcclList.parse(value)
    hit = {port for port in ports for item in wanted.items[:_NCCL_MAX_HCAS] if _hca_hits(wanted, port, item)}
    return set(ports) - hit if wanted.inverted else hit


def _hca_hits(wanted: _NcclList, port: str, item: str) -> bool:
    device, _colon, number = port.partition(":")
    name, *rest = item.split(":")
    return wanted.hits(device, name) and (not rest or not rest[0] or rest[0] == number)


def _check_hca(variable: Variable, a: Assignment, c: Context) -> Iterator[_Note]:
    wanted = _NcclList.parse(a.value)
    rdma = c.transport in ("infiniband", "roce") and c.gpus > 0
    chosen = chosen_ports(a.value, c.rdma_ports)
    if len(wanted.items) > _NCCL_MAX_HCAS:
        yield _Note("warning", f"names {len(wanted.items)} adapters; NCCL reads the first {_NCCL_MAX_HCAS}")
    if not chosen:
        yield _Note(
            "error" if rdma else "warning",
            f"matches no active RDMA port of this node, and NCCL falls back to TCP without a word. {_own_value(variable, a)}",
            ", ".join(c.rdma_ports) or "no active port",
        )
        return
    if wanted.inverted:
        return
    idle = [item for item in wanted.items if not any(_hca_hits(wanted, port, item) for port in c.rdma_ports)]
    if idle:
        yield _Note(
            _level(a) if rdma and wanted.exact else "warning",
            f"names {', '.join(idle)}, which this node lacks or which is not active. {_own_value(variable, a)}",
        )
    devices = {port.partition(":")[0] for port in chosen}
    named = {item.partition(":")[0] for item in wanted.items}
    if not wanted.exact and named & devices and devices - named:
        yield _Note("warning", f"matches by prefix {', '.join(sorted(devices - named))} too. Start the list with '='")


def _check_own_address(variable: Variable, a: Assignment, c: Context) -> Iterator[_Note]:
    own = ipaddress.ip_address(a.value)
    if own not in map(ipaddress.ip_address, c.addresses):
        yield _Note("error", f"is not an address of this node. {_own_value(variable, a)}", ", ".join(c.addresses))
    elif c.address and own != ipaddress.ip_address(c.address):
        yield _Note("warning", f"is not the address by which Ray knows this node. {_own_value(variable, a)}", c.address)


def _check_against_node(variable: Variable, a: Assignment, c: Context) -> Iterator[_Note]:
    """Names and addresses in the value, against what the node has."""
    syntax = variable.syntax
    if syntax is None:
        return
    if syntax.kind == "interfaces" and c.interfaces:
        if syntax.reader == "nccl":
            yield from _check_nccl_interfaces(variable, a, c)
        else:
            yield from _check_exact_interfaces(variable, a, c, syntax.reader or "")
    elif syntax.kind == "hca":
        yield from _check_hca(variable, a, c)
    elif syntax.own and c.addresses:
        yield from _check_own_address(variable, a, c)


# ---------------------------------------------------------------- one assignment


@dataclass
class _Node:
    """A node's context with the values that hold there."""

    context: Context
    rendered: Mapping[str, str]
    set: dict[str, list[Assignment]] = field(default_factory=lambda: defaultdict(list))

    def values(self, name: str) -> list[str]:
        found = [a.value for a in self.set.get(name, ())]
        return found or ([self.rendered[name]] if name in self.rendered else [])

    def winner(self, name: str) -> Assignment | None:
        """The assignment that a process on the node sees: the environment beats what the inventory renders to files."""
        order = ("environment", "inventory", "nccl_conf")
        return min(self.set.get(name, ()), key=lambda a: order.index(a.place), default=None)


def _applies(rule: Harm, variable: Variable, a: Assignment, node: _Node) -> bool:
    syntax = variable.syntax or Syntax(kind="text")
    c = node.context
    if rule.values and not any(syntax.same(a.value, value) for value in rule.values):
        return False
    if any(syntax.same(a.value, value) for value in rule.excepted):
        return False
    if rule.matches is not None and not re.search(rule.matches, a.value):
        return False
    if not all(CONDITIONS[name](c) for name in rule.when) or not rule.concerns(c.versions):
        return False
    for name, value in rule.others.items():
        seen = node.values(name)
        if not seen or (value is not None and value not in seen):
            return False
    if any(node.values(name) for name in rule.without):
        return False
    return rule.times is None or _product_above(a.value, node.values(rule.times), rule.above or 0)


def _product_above(value: str, others: Iterable[str], limit: int) -> bool:
    return any(text.isdecimal() and value.isdecimal() and int(value) * int(text) > limit for text in others)


def _level(a: Assignment, breaks: bool = False) -> str:
    """A mistake that does no more than nothing stops a run only where the user can mend it at once: in the inventory."""
    return "error" if breaks or a.place == "inventory" else "warning"


def _title(variable: Variable) -> str:
    return {"nccl": "NCCL", "vllm": "vLLM"}.get(variable.product, variable.product)


def _instead(variable: Variable) -> str:
    return f"Use {variable.replacement} instead" if variable.replacement else "Remove it"


def _dead(variable: Variable, c: Context, catalogue: Catalogue) -> str | None:
    """Why nothing reads the variable on this node, or None."""
    have = c.versions.get(variable.product)
    if variable.status == "never_existed":
        return f"does nothing: no program ever read it. {_instead(variable)}"
    if variable.status in ("removed", "renamed") and variable.gone_in(have):
        last = f" ({variable.until} was the last to read it)" if variable.until else ""
        return f"does nothing: {variable.status} in {_title(variable)} {variable.removed}{last}{_here(have)}. {_instead(variable)}"
    if not variable.since or not have or catalogue.first_known(variable.since, variable.product):
        return None
    if release(have) < release(variable.since):
        return f"does nothing here: {_title(variable)} reads it since {variable.since}{_here(have)}. Remove it"
    return None


def _here(have: str | None) -> str:
    return f", and this node has {have}" if have else ""


def _check_name(a: Assignment, c: Context, catalogue: Catalogue) -> Iterator[_Note]:
    """A name without an entry of its own."""
    have = c.versions.get("nccl")
    entry = catalogue.nccl_names.get(a.name)
    if entry is not None:
        if catalogue.newer_than_known(have) or catalogue.known_in(a.name, have):
            return
        if entry.last and release(have or catalogue.nccl_newest) > release(entry.last):
            yield _Note("warning", f"does nothing: NCCL {entry.last} was the last to read it{_here(have)}. Remove it")
        else:
            yield _Note("warning", f"does nothing here: NCCL reads it since {entry.first}{_here(have)}. Remove it")
        return
    family = catalogue.family(a.name)
    if family is None or catalogue.foreign(a.name) is not None or a.name in catalogue.others:
        return
    if not family.complete:
        close = catalogue.closest(a.name, _NEAR_MISS)
        if close and close.startswith(family.prefix):
            yield _Note(
                "warning", f"is a name that no known release reads; {close} is one. Correct it if that was meant"
            )
        return
    close = catalogue.closest(a.name)
    meant = f"Did you mean {close}? Correct it or remove it" if close else "Remove it"
    if not a.name.startswith("NCCL_"):
        yield _Note(_level(a), f"does nothing: no program reads this name. {meant}")
    elif catalogue.newer_than_known(have):
        newest = catalogue.nccl_newest
        yield _Note(
            "warning",
            f"is no name of NCCL up to {newest}; this node has {have}, of which less is known here. {meant}, unless that release has it",
        )
    else:
        yield _Note(_level(a), f"does nothing: no NCCL up to {catalogue.nccl_newest} reads this name. {meant}")


def _read_by_nccl(name: str, catalogue: Catalogue) -> bool:
    """Whether NCCL or a plugin that it loads reads the name, so that NCCL's own file can set it."""
    variable = catalogue.get(name)
    if variable is not None and name not in catalogue.nccl_names:
        return variable.product not in ("torch", "vllm", "python", "ray", "huggingface")
    return name.startswith("NCCL_") or catalogue.foreign(name) is not None


def belongs_to_nccl(name: str, catalogue: Catalogue) -> bool:
    """Whether a variable of the inventory is written to NCCL's file; some that are named like NCCL's are torch's."""
    variable = catalogue.get(name)
    in_environment = variable is not None and variable.render == "env"
    return name.startswith("NCCL_") and not in_environment and _read_by_nccl(name, catalogue)


def _check(a: Assignment, node: _Node, catalogue: Catalogue) -> Iterator[_Note]:
    """Everything that one assignment shows by itself, the cause first: what follows from a cause is not reported again."""
    c = node.context
    bare = re.sub(r"^\s*(export\s+)?", "", a.name).strip()
    if bare != a.name:
        if catalogue.family(bare) or catalogue.known(bare):
            line = f"{bare}={a.value.strip()}"
            yield _Note(
                _level(a), f"sets a variable named '{a.name}', which nothing reads. Write {line}, no blank around '='"
            )
        return
    variable = catalogue.get(a.name)
    if variable is None and not catalogue.known(a.name) and catalogue.family(a.name) is None:
        return
    if a.place == "nccl_conf" and not _read_by_nccl(a.name, catalogue):
        yield _Note("warning", "has no effect in nccl.conf, which is read when NCCL starts: set it in the environment")
        return
    if not a.value.strip():
        yield from _check_empty(a, variable)
        return
    if variable is None:
        yield from _check_name(a, c, catalogue)
        return
    dead = _dead(variable, c, catalogue)
    if dead:
        yield _Note("warning", dead)
        return
    literal = a.place == "nccl_conf" or (a.place == "inventory" and belongs_to_nccl(a.name, catalogue))
    trap = _literal_trap(a.value) if literal else None
    problem = trap or check_syntax(variable, a.value)
    if problem:
        yield _Note(_level(a, breaks=bool(variable.syntax and variable.syntax.breaks)), problem)
        return
    notes = list(_check_against_node(variable, a, c))
    yield from notes
    if any(note.level == "error" for note in notes):
        return
    yield from _check_use(variable, a, node)


def _check_empty(a: Assignment, variable: Variable | None) -> Iterator[_Note]:
    if a.name.startswith("NCCL_"):
        yield _Note(
            _level(a),
            "is empty, and an empty value keeps NCCL from reading the one of nccl.conf. Give it a value or remove it",
        )
    elif variable is not None and variable.scope != "job":
        yield _Note(_level(a), "is empty. Give it a value or remove it")


def _check_use(variable: Variable, a: Assignment, node: _Node) -> Iterator[_Note]:
    """Harm, age and scope of a value that is right in itself."""
    renamed = variable.status == "deprecated"
    since = f" since {_title(variable)} {variable.deprecated}" if variable.deprecated else ""
    rule = next((rule for rule in variable.harm if _applies(rule, variable, a, node)), None)
    if rule:
        mend = rule.mend or ("Remove it" if rule.level != "info" else "")
        old = f" Its name is {variable.replacement}{since}." if renamed and variable.replacement else ""
        yield _Note(rule.level, f"{rule.why}.{old} {mend}".rstrip())
    elif renamed:
        yield _Note("warning", f"is deprecated{since}. {_instead(variable)}")
    elif variable.scope == "job":
        level = "warning" if a.place == "inventory" else "info"
        yield _Note(
            level, "belongs to a job, not to a node: every job on the node gets it. Set it where the job is started"
        )
    yield from _check_precedence(variable, a, node)


def _check_precedence(variable: Variable, a: Assignment, node: _Node) -> Iterator[_Note]:
    """A value on the node that wins over the one that the collection writes to /etc/nccl.conf."""
    users_file = a.place == "nccl_conf" and ".nccl.conf" in a.where
    if variable.render != "nccl_conf" or not (a.place == "environment" or users_file):
        return
    ours = next((other.value for other in node.set[a.name] if other.place == "inventory"), node.rendered.get(a.name))
    if ours is None and a.name == "NCCL_SOCKET_IFNAME" and node.context.interface:
        ours = f"={node.context.interface}"
    if ours is None or ours == a.value:
        return
    winner = "~/.nccl.conf is read before /etc/nccl.conf" if users_file else "the environment beats /etc/nccl.conf"
    yield _Note(
        "warning",
        f"wins over the value of /etc/nccl.conf in what logins start (drivers, torchrun), since {winner}; Ray's services do not read login "
        "files. Remove it, or set it in the inventory",
        f"{a.name}={ours}",
    )


# ---------------------------------------------------------------- the cluster


def _same_text(values: Mapping[str, str | None]) -> str:
    """'A' on node1, node2 and unset on node3."""
    hosts: dict[str | None, list[str]] = defaultdict(list)
    for host, value in values.items():
        hosts[value].append(host)
    parts = [f"{'unset' if value is None else value} on {_names(names)}" for value, names in hosts.items()]
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]


def _odd(values: Mapping[str, object]) -> list[str]:
    """The hosts that differ from most; all of them when there is no majority."""
    counts: dict[object, int] = defaultdict(int)
    for value in values.values():
        counts[value] += 1
    most = max(counts.values())
    if list(counts.values()).count(most) > 1:
        return list(values)
    return [host for host, value in values.items() if counts[value] != most]


def _across(every: Mapping[str, _Node], catalogue: Catalogue) -> Iterator[tuple[str, str, list[str], _Note]]:
    """(name, where, hosts, note) for what only shows when nodes are compared."""
    names = dict.fromkeys(name for node in every.values() for name in node.set)
    with_gpus = {host: node for host, node in every.items() if node.context.gpus} or every
    for name in names:
        variable = catalogue.get(name)
        # A head without GPUs takes no part in NCCL's collectives.
        nodes = with_gpus if belongs_to_nccl(name, catalogue) else every
        if variable is None or len(nodes) < 2:
            continue
        chosen = {host: node.winner(name) for host, node in nodes.items()}
        if any(a and _dead(variable, nodes[host].context, catalogue) for host, a in chosen.items()):
            continue
        where = _where(a for a in chosen.values() if a)
        level = "error" if all(a is None or a.place == "inventory" for a in chosen.values()) else "warning"
        values = {host: a.value if a else nodes[host].rendered.get(name) for host, a in chosen.items()}
        if variable.unique:
            for value, hosts in _shared(variable, values, nodes):
                yield (
                    name,
                    where,
                    hosts,
                    _Note("error", f"must differ between nodes: {value} is set on {_names(hosts)}. {_each(variable)}"),
                )
        if variable.same_count:
            yield from _unequal_counts(variable, values, nodes, where)
        if variable.scope == "cluster" and not variable.may_differ and len(set(values.values())) > 1:
            yield (
                name,
                where,
                _odd(values),
                _Note(level, f"must be the same on all nodes, but is {_same_text(values)}. Make it equal"),
            )


def _each(variable: Variable) -> str:
    return "Leave it out: it is written for each node" if variable.render != "none" else "Remove it"


def _where(assignments: Iterable[Assignment]) -> str:
    return ", ".join(dict.fromkeys(a.where for a in assignments))


def _shared(
    variable: Variable, values: Mapping[str, str | None], nodes: Mapping[str, _Node]
) -> Iterator[tuple[str, list[str]]]:
    """Values that several hosts have. An address that is not a host's own has been reported there already; what is left are
    addresses that many nodes have, like a container bridge's."""
    own = variable.syntax is not None and variable.syntax.own
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, value in values.items():
        if value is not None and (not own or value in nodes[host].context.addresses):
            hosts[value].append(host)
    yield from ((value, names) for value, names in hosts.items() if len(names) > 1)


def _unequal_counts(
    variable: Variable, values: Mapping[str, str | None], nodes: Mapping[str, _Node], where: str
) -> Iterator[tuple[str, str, list[str], _Note]]:
    counts: dict[str, int] = {}
    for host, value in values.items():
        if variable.syntax and variable.syntax.kind == "hca":
            if value is not None and nodes[host].context.rdma_ports:
                counts[host] = len(chosen_ports(value, nodes[host].context.rdma_ports))
        else:
            # Left out, it is written with the one interface that carries the cluster.
            counts[host] = len(_items(value)) if value else 1
    if len(set(counts.values())) > 1:
        what = "RDMA ports" if variable.syntax and variable.syntax.kind == "hca" else "interfaces"
        seen = _same_text({host: str(count) for host, count in counts.items()})
        message = (
            f"must choose as many {what} on every node, but chooses {seen}; jobs hang otherwise. Make the lists as long"
        )
        yield variable.name, where, _odd(counts), _Note("error", message)


def lint(
    assignments: Iterable[Assignment],
    contexts: Mapping[str, Context],
    catalogue: Catalogue,
    accepted: Collection[str] = (),
    *,
    rendered: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Finding]:
    """All findings, errors first; the same one on several hosts is one finding.

    ``accepted`` are names whose errors the user has taken upon himself: they become warnings that say so. ``rendered`` is what
    will be written for each host (name to value); rules that compare with it are less sharp without it.
    """
    nodes = {host: _Node(_with_releases(context), (rendered or {}).get(host, {})) for host, context in contexts.items()}
    known = [a for a in assignments if a.host in nodes]
    for a in known:
        nodes[a.host].set[a.name].append(a)
    found: dict[tuple[str, str, str, str], dict[str, str]] = defaultdict(dict)

    def add(note: _Note, name: str, value: str | None, where: str, hosts: Iterable[str]) -> None:
        level, message = note.level, note.message
        if level == "error" and name in accepted:
            level, message = "warning", f"{message.rstrip('.')}. Accepted in the inventory, so the run goes on"
        subject = name if value is None else f"{name}={value}"
        found[(level, name, where, f"{subject} {message}")].update(dict.fromkeys(hosts, note.has))

    for a in known:
        for note in _check(a, nodes[a.host], catalogue):
            add(note, a.name, a.value, a.where, [a.host])
    for name, where, hosts, note in _across(nodes, catalogue):
        add(note, name, None, where, hosts)
    order = list(contexts)
    findings = [
        Finding(level, name, where, tuple(sorted(has, key=order.index)), message + _what_they_have(has))
        for (level, name, where, message), has in found.items()
    ]
    return sorted(findings, key=lambda finding: _LEVELS.index(finding.level))


def _what_they_have(has: Mapping[str, str]) -> str:
    """The part of a finding that may differ between hosts."""
    if len(set(has.values())) == 1:
        only = next(iter(has.values()))
        return f". {'This node has' if len(has) == 1 else 'They have'} {only}" if only else ""
    shown = [f"{host} has {text or 'nothing like it'}" for host, text in has.items()][:_MANY_HOSTS]
    return f". {'; '.join(shown)}" + ("; and so on" if len(has) > len(shown) else "")


def _with_releases(context: Context) -> Context:
    """A release that is no release ('unknown') is not known."""
    versions = {product: text if text and text[:1].isdecimal() else None for product, text in context.versions.items()}
    return replace(context, versions=versions)


def _names(hosts: Sequence[str]) -> str:
    shown = list(hosts[:_MANY_HOSTS])
    more = len(hosts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def describe(finding: Finding, nodes: Collection[str] = ()) -> str:
    """A finding for people, on one line. ``nodes`` are all hosts, so that 'all 4 nodes' can be said."""
    everywhere = len(finding.hosts) > 1 and set(finding.hosts) >= set(nodes or [None])
    hosts = f"all {len(finding.hosts)} nodes" if everywhere else _names(finding.hosts)
    return f"{finding.where} ({hosts}): {finding.message.rstrip('.')}."


def render_findings(findings: Iterable[Finding], nodes: Collection[str] = ()) -> str:
    """All of them, errors first."""
    ordered = sorted(findings, key=lambda finding: _LEVELS.index(finding.level))
    return "\n".join(f"{finding.level.upper()} {describe(finding, nodes)}" for finding in ordered)
