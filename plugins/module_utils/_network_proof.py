# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every node talks to every other one: TCP, packets of full size, and a collective.

Internal to metalray.cluster: not a public interface.

One run is one process a node, all started at about the same time, with one token. On ``port`` each listens for the
others (TCP) and answers their probes (UDP). Between two nodes there are two connections, one opened by each. On it goes
one JSON object a line:

    opener:   {"token": ..., "name": ..., "mtu": ..., "gpus": ..., "torch": ...}
    listener: the same about itself, or {"refused": REASON}
    opener:   {"done": true, "problems": N}   its own looks at the others are over
    opener:   {"over": true, "ok": ...}       its part of the collective is over

A node stays until every other one is done, or its time is up.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import json
import os
import pwd
import random
import re
import resource
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# Of linux/in.h and linux/in6.h; Python does not name them all. PROBE: do not fragment, and ignore what the kernel
# remembers of the path.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_MTU_FLOOR = 576  # What any network passes; IPv6 and Ethernet pass more.
_MTU_USUAL = (8950, 1500, 1450, 1400)  # jumbo frames in a tunnel, Ethernet, and that in a tunnel
_PROBE = struct.Struct("!4s16sBHI")
_MAGIC, _ASK, _ANSWER = b"mrNP", 1, 2
# Seconds that a probe may take before the next is sent; after the last one its size counts as lost.
_PROBE_WAITS = (0.1, 0.2, 0.4, 0.8)
_PROBES_AT_ONCE = 32

_TICK = 0.05
_CONNECT_SECONDS = 3.0
_HELLO_SECONDS = 5.0
_LINE_BYTES = 65536
_LOGIN_SECONDS = 30.0
_LAST_WORDS = 8.0
# How a run of this module, and what it starts, look in the list of processes.
_OURS = re.compile(r"(AnsiballZ_|modules\.)network_proof|metalray-proof-")

_GPU_BYTES, _CPU_BYTES = 64 << 20, 1 << 20


class ProofError(Exception):
    """The proof cannot begin on this node; the text says why, and how to mend it."""


@dataclass(frozen=True)
class Peer:
    name: str
    address: str


@dataclass(frozen=True)
class Myself:
    """This node's part: ``torch`` is empty, or says why the collective cannot run here."""

    name: str
    address: str
    interface: str
    mtu: int
    gpus: int = 0
    torch: str = ""


def name_some(names: Iterable[str], most: int = 5) -> str:
    """Names for a sentence: all of a few, the first of many."""
    have = list(names)
    return ", ".join(have) if len(have) <= most + 1 else f"{', '.join(have[:most])} and {len(have) - most} more"


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


# Who holds a port ---------------------------------------------------------------------------------------------------


def port_holder(kind: socket.SocketKind, port: int) -> str:
    """The processes that listen on a port, by command and number, as far as this user may know."""
    sockets = set()
    for table in ("tcp", "tcp6") if kind == socket.SOCK_STREAM else ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                listens = kind == socket.SOCK_DGRAM or fields[3] == "0A"
                if listens and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    found = []
    for process in sorted((entry for entry in os.listdir("/proc") if entry.isdigit()), key=int):
        with contextlib.suppress(OSError):
            folder = Path("/proc", process)
            if any(os.readlink(entry) in sockets for entry in (folder / "fd").iterdir()):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(f"process {process} ({command[:200]})")
    return ", ".join(found)


def taken(port: int, address: str, error: OSError, holder: str) -> str:
    """Why a port cannot be had."""
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this node does not have the address {address}: run preflight again, which finds the addresses"
    if error.errno != errno.EADDRINUSE:
        return f"port {port} of {address} cannot be opened: {error.strerror}"
    hint = "an earlier run of the proof, which has not ended: end it" if _OURS.search(holder) else "end it"
    return (
        f"port {port} of {address} is held by {holder or 'another process'}; {hint}, or give the proof another port "
        f"(network_env_prove_port)"
    )


def open_socket(kind: socket.SocketKind, address: str, port: int, until: float) -> socket.socket:
    """Bound and not blocking. An earlier run of this module may still hold the port: it ends by itself, so it is waited for.

    Raises ProofError when the port cannot be had.
    """
    while True:
        opened = socket.socket(family_of(address), kind)
        try:
            opened.setblocking(False)
            if kind == socket.SOCK_STREAM:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, port))
            if kind == socket.SOCK_STREAM:
                opened.listen(1024)
            return opened
        except OSError as error:
            opened.close()
            holder = port_holder(kind, port) if error.errno == errno.EADDRINUSE else ""
            if not _OURS.search(holder) or time.monotonic() > until:
                raise ProofError(taken(port, address, error, holder)) from None
        time.sleep(0.2)


# The largest packet that passes -------------------------------------------------------------------------------------


def headers(address: str) -> int:
    """Bytes of the IP and UDP headers."""
    return 48 if family_of(address) == socket.AF_INET6 else 28


def largest_packet(mtu: int, address: str) -> int:
    """The MTU, or the largest packet that UDP can make where the MTU is beyond it (loopback, IPoIB)."""
    return min(mtu, 65535 if family_of(address) == socket.AF_INET else 65535 + 40)


def next_size(passes: int, lost: int, hints: Iterable[int] = ()) -> int | None:
    """The packet to try next, between one that passes and one that does not; None when they are neighbours.

    ``hints`` are sizes that networks usually have: each is tried, and the one above it, before the middle. Devices often
    take the four bytes of a VLAN's tag more.
    """
    if lost - passes <= 1:
        return None
    for hint in hints:
        if passes < hint < lost:
            return hint
        if passes == hint:
            return hint + 1
        if hint < passes < hint + 5 < lost:
            return hint + 5
    return (passes + lost) // 2


@dataclass
class Search:
    """The search for the largest packet that passes to one peer: ``wanted`` first, the rest only if that does not.

    ``found`` stays None while it goes on; 0 tells that nothing passes.
    """

    wanted: int
    hints: tuple[int, ...] = ()
    size: int = 0
    passes: int = 0
    lost: int = 0
    tries: int = 0
    found: int | None = None

    def __post_init__(self) -> None:
        self.size = self.wanted

    def arrived(self, size: int) -> None:
        if self.found is None and size == self.size:
            self.passes = size
            self._next()

    def missed(self) -> None:
        """Nothing came back in time."""
        self.tries += 1
        # Once some size has passed, a lost one is known to be the size's fault.
        if self.tries >= len(_PROBE_WAITS) - bool(self.passes):
            self.lost = self.size
            self._next()

    def wait(self) -> float:
        return _PROBE_WAITS[self.tries]

    def _next(self) -> None:
        self.tries = 0
        floor = min(_MTU_FLOOR, self.wanted)
        if self.passes == self.wanted or self.lost == floor:
            self.found = self.passes
        elif not self.passes:
            self.size = floor
        else:
            size = next_size(self.passes, self.lost, self.hints)
            self.found, self.size = (self.passes, self.size) if size is None else (None, size)


# The meeting --------------------------------------------------------------------------------------------------------

_NO_ANSWER = "no answer comes: the node is down, or a firewall drops what comes from here"
_WHY = {
    errno.ECONNREFUSED: "it refuses: the proof does not run there (has its task failed or started too late?), or a firewall rejects",
    errno.ETIMEDOUT: _NO_ANSWER,
    errno.EHOSTUNREACH: "nobody there has that address, or a router on the way has no route",
    errno.ENETUNREACH: "this node has no route to it",
    errno.EPERM: "this node's own firewall does not let it out",
    errno.EACCES: "this node's own firewall does not let it out",
}
_REFUSALS = {
    "token": "another run of the proof holds that port there; it ends by itself, then run this again",
    "name": "it does not know this node's name: the nodes were started with different lists",
}
_MUTE = "something there takes the connection and says nothing: another program holds that port"
_ONE_WAY = "its own connections come here, so the proof runs there: a firewall there or on the way keeps this node out"
_MENDS = "see that the node is up, that its firewall lets the cluster's nodes in (--tags firewall), and the routes"


class Lines:
    """JSON objects, one a line, out of a stream that is read piece by piece. Raises ValueError for anything else."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            raise ValueError("no end of line")
        for line in lines:
            try:
                message = json.loads(line.decode("utf-8"))
            except RecursionError:
                raise ValueError("nested too deep") from None
            if not isinstance(message, dict):
                raise ValueError("not an object")
            yield message


@dataclass
class Link:
    """What goes on with one peer. ``sock`` is the connection that this node opened."""

    peer: Peer
    sock: socket.socket | None = None
    lines: Lines = field(default_factory=Lines)
    next_try: float = 0.0
    expires: float = 0.0
    delay: float = 0.1
    why: str = _NO_ANSWER
    if_late: str = _NO_ANSWER
    told: bool = False
    reached: bool = False
    greeted: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    guest: socket.socket | None = None
    visited: bool = False
    search: Search | None = None
    asked_at: float = 0.0


class Meeting:
    """This node among the others: one thread, never blocking for longer than a tick."""

    def __init__(self, me: Myself, peers: Sequence[Peer], port: int, token: str, seconds: float) -> None:
        self.me, self.port, self.token, self.seconds = me, port, token, seconds
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self._secret = hashlib.sha256(token.encode()).digest()[:16]
        self._hello = {"token": token, "name": me.name, "mtu": me.mtu, "gpus": me.gpus, "torch": me.torch}
        self.peers = list(peers)
        self.index = [peer.name for peer in peers].index(me.name)
        # Every node begins with the one after it, so that not all knock at the same door.
        others = self.peers[self.index + 1 :] + self.peers[: self.index]
        self.links = {peer.name: Link(peer) for peer in others}
        self._announced: list[dict[str, Any]] = []
        self._selector = selectors.DefaultSelector()
        # Two connections a peer: more than the usual 1024 files in a cluster of 500 nodes.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 2 * len(peers) + 256 > soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        until = self.started + seconds / 2
        self._datagrams = open_socket(socket.SOCK_DGRAM, me.address, port, until)
        try:
            self._listener = open_socket(socket.SOCK_STREAM, me.address, port, until)
        except ProofError:
            self._datagrams.close()
            raise
        if family_of(me.address) == socket.AF_INET6:
            self._datagrams.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            self._datagrams.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._datagrams, selectors.EVENT_READ, self._datagram)
        self._strangers: dict[socket.socket, float] = {}

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    # The stages

    def look(self) -> None:
        """Reach everybody and find what passes to them, until all is known or time is up."""
        while time.monotonic() < self.deadline:
            self.step()
            if all(link.reached and link.search and link.search.found is not None for link in self.links.values()):
                break

    def announce(self, **message: Any) -> None:
        """Tell everybody, those that have to be connected again too."""
        self._announced.append(message)
        for link in self.links.values():
            if link.greeted:
                self._send(link, message)

    def wait_for(self, what: str) -> list[str]:
        """Stay until every peer has said it; the names of those that have not.

        A peer that is there has a deadline of its own, and began while this node was there: later by ``seconds`` at most.
        """
        while True:
            silent = [link for link in self.links.values() if what not in link.said]
            there = any(link.guest for link in silent)
            if not silent or time.monotonic() > self.deadline + (self.seconds if there else 0):
                return [link.peer.name for link in silent]
            self.step()

    def failed_elsewhere(self) -> list[str]:
        """Peers whose part of the collective failed, or that left without a word."""
        return [
            name
            for name, link in self.links.items()
            if not link.said.get("ok", True) or (link.guest is None and "over" not in link.said)
        ]

    def step(self) -> None:
        for key, _events in self._selector.select(_TICK):
            if key.fileobj.fileno() >= 0:  # type: ignore[union-attr] - an earlier one may have closed it
                key.data(key.fileobj)
        now = time.monotonic()
        for sock in [sock for sock, until in self._strangers.items() if now > until]:
            self._forget(sock)
        probing = 0
        for link in self.links.values():
            self._advance(link, now)
            if link.reached and probing < _PROBES_AT_ONCE:
                probing += self._probe(link, now)

    # Connections that this node opens

    def _advance(self, link: Link, now: float) -> None:
        if link.sock is None and now >= link.next_try:
            self._connect(link, now)
        elif link.sock is not None and not link.greeted and now > link.expires:
            self._drop(link, link.if_late)

    def _connect(self, link: Link, now: float) -> None:
        sock = socket.socket(family_of(link.peer.address), socket.SOCK_STREAM)
        link.sock, link.lines, link.greeted = sock, Lines(), False
        link.if_late, link.expires = _NO_ANSWER, now + _CONNECT_SECONDS
        try:
            sock.setblocking(False)
            sock.bind((self.me.address, 0))
            failed = sock.connect_ex((link.peer.address, self.port))
        except OSError as error:
            failed = error.errno or 0
        if failed not in (0, errno.EINPROGRESS):
            self._drop(link, _WHY.get(failed, os.strerror(failed)))
            return
        self._selector.register(sock, selectors.EVENT_WRITE, partial(self._connected, link))

    def _connected(self, link: Link, sock: Any) -> None:
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self._drop(link, _WHY.get(failed, os.strerror(failed)))
            return
        link.if_late, link.expires = _MUTE, time.monotonic() + _HELLO_SECONDS
        self._selector.modify(sock, selectors.EVENT_READ, partial(self._answered, link))
        self._send(link, self._hello)

    def _answered(self, link: Link, sock: Any) -> None:
        try:
            data = sock.recv(_LINE_BYTES)
            messages = list(link.lines.feed(data))
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:
            self._drop(link, "another program answers there, or the proof has ended there")
            return
        for message in messages:
            if "refused" in message:
                reason = str(message["refused"])
                self._drop(link, _REFUSALS.get(reason, reason), told=True)
                return
            if message.get("name") != link.peer.name or not self._knows(message):
                who = str(message.get("name", "another program"))
                why = f"{who} answers at that address: two nodes have it, or the inventory is wrong"
                self._drop(link, why, told=True)
                return
            link.reached = link.greeted = True
            link.info = message
            for earlier in self._announced:
                self._send(link, earlier)

    def _send(self, link: Link, message: Mapping[str, Any]) -> None:
        try:
            if link.sock:
                link.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self._drop(link, _WHY.get(error.errno or 0, str(error)))

    def _drop(self, link: Link, why: str, told: bool = False) -> None:
        """``told``: the other side gave the reason, which explains more than its silence later."""
        if link.sock is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(link.sock)
            link.sock.close()
        link.sock, link.greeted = None, False
        if told or not link.told:
            link.why, link.told = why, told
        link.next_try = time.monotonic() + link.delay * random.uniform(0.7, 1.3)
        link.delay = min(1.0, link.delay * 1.5)

    def _knows(self, message: Mapping[str, Any]) -> bool:
        return hmac.compare_digest(str(message.get("token", "")).encode(), self.token.encode())

    # Connections that the others open

    def _accept(self, listener: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, source = listener.accept()
                sock.setblocking(False)
                self._strangers[sock] = time.monotonic() + _HELLO_SECONDS
                self._selector.register(sock, selectors.EVENT_READ, partial(self._welcome, source[0], Lines()))

    def _welcome(self, source: str, lines: Lines, sock: Any) -> None:
        """The first words of somebody who came."""
        try:
            data = sock.recv(_LINE_BYTES)
            messages = list(lines.feed(data))
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:
            self._forget(sock)
        if not messages:
            return
        hello, *rest = messages
        link = self.links.get(str(hello.get("name")))
        refused = ""
        if not self._knows(hello):
            refused = "token"
        elif link is None:
            refused = "name"
        elif ipaddress.ip_address(source) != ipaddress.ip_address(link.peer.address):
            refused = (
                f"there this node's connections seem to come from {source}, not {link.peer.address}: "
                f"take away the address translation between the nodes"
            )
        try:
            sock.sendall(json.dumps({"refused": refused} if refused else self._hello).encode() + b"\n")
        except OSError:
            refused = "gone"
        if refused or link is None:
            self._forget(sock)
            return
        del self._strangers[sock]
        link.guest, link.visited, link.info = sock, True, hello
        # Whoever failed to reach that peer before need not wait any longer.
        link.next_try = min(link.next_try, time.monotonic())
        self._selector.modify(sock, selectors.EVENT_READ, partial(self._listen, link, lines))
        for message in rest:
            link.said.update(message)

    def _listen(self, link: Link, lines: Lines, sock: Any) -> None:
        try:
            data = sock.recv(_LINE_BYTES)
            for message in lines.feed(data):
                link.said.update(message)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            data = b""
        if not data:
            self._forget(sock)
            if link.guest is sock:
                link.guest = None

    def _forget(self, sock: socket.socket) -> None:
        self._strangers.pop(sock, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    # Packets of full size

    def _probe(self, link: Link, now: float) -> bool:
        """Send what is due to a peer; whether its search goes on."""
        if link.search is None:
            theirs = int(link.info.get("mtu") or 0)
            wanted = largest_packet(self.me.mtu, self.me.address)
            link.search = Search(wanted, (theirs, *_MTU_USUAL))
            link.asked_at = 0.0
        search = link.search
        if search.found is not None:
            return False
        if link.asked_at:
            if now < link.asked_at + search.wait():
                return True
            search.missed()
        if search.found is None:
            self._ask(link, search.size, now)
        return search.found is None

    def _ask(self, link: Link, size: int, now: float) -> None:
        link.asked_at = now
        packet = _PROBE.pack(_MAGIC, self._secret, _ASK, self.index, size)
        # Not even this node's own interface may take it (EMSGSIZE), or its firewall (EPERM): that is an answer not come.
        with contextlib.suppress(OSError):
            packet = packet.ljust(size - headers(self.me.address), b"\0")
            self._datagrams.sendto(packet, (link.peer.address, self.port))

    def _datagram(self, sock: Any) -> None:
        # The others' probes may come without end; connections want their turn.
        for _turn in range(256):
            try:
                data, source = sock.recvfrom(65536)
            except OSError:
                return
            if len(data) < _PROBE.size:
                continue
            magic, secret, kind, index, size = _PROBE.unpack_from(data)
            if magic != _MAGIC or secret != self._secret or index >= len(self.peers):
                continue
            if kind == _ASK and len(data) + headers(self.me.address) == size:
                with contextlib.suppress(OSError):
                    sock.sendto(_PROBE.pack(_MAGIC, self._secret, _ANSWER, self.index, size), source)
            elif kind == _ANSWER:
                link = self.links.get(self.peers[index].name)
                if link and link.search and link.search.found is None and link.search.size == size:
                    link.search.arrived(size)
                    link.asked_at = 0.0


# What the meeting showed --------------------------------------------------------------------------------------------


def grouped(pairs: Iterable[tuple[Any, str]]) -> dict[Any, list[str]]:
    """Names by what they have in common, in the order of the first."""
    groups: dict[Any, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def why_unreached(link: Link) -> str:
    return _ONE_WAY if link.visited and link.why in (_NO_ANSWER, _WHY[errno.ECONNREFUSED]) else link.why


def unreached_problems(unreached: Mapping[str, tuple[str, str]], port: int, seconds: float) -> list[str]:
    """One sentence a reason: ``unreached`` has name -> (address, reason)."""
    groups = grouped((why, f"{name} ({address})") for name, (address, why) in unreached.items())
    return [
        f"no TCP connection to {name_some(names)} on port {port} in {seconds:g} s: {why}. Mend: {_MENDS}"
        for why, names in groups.items()
    ]


def silent_problems(meeting: Meeting, silent: Iterable[str]) -> list[str]:
    """What to say of peers that were reached, and never said that they are done."""
    links = [meeting.links[name] for name in silent if meeting.links[name].reached]
    left = [link.peer.name for link in links if link.visited]
    shut_out = [f"{link.peer.name} ({link.peer.address})" for link in links if not link.visited]
    problems = []
    if shut_out:
        problems.append(
            f"no TCP connection from {name_some(shut_out)} has come to port {meeting.port} here, though this node reaches it: "
            f"a firewall here or on the way keeps it out. Mend: {_MENDS}"
        )
    if left:
        problems.append(f"{name_some(left)} answered, but left before its own part was done: look at its result")
    return problems


def packet_problems(me: Myself, found: Mapping[str, int], theirs: Mapping[str, int], port: int) -> list[str]:
    """One sentence a kind of peer to which less passes than this node's interface sends."""
    wanted = largest_packet(me.mtu, me.address)
    problems = []
    short = {name: size for name, size in found.items() if size < wanted}
    groups = grouped(((size, theirs.get(name, wanted)), name) for name, size in short.items())
    for (size, their_mtu), names in groups.items():
        if size == 0:
            problems.append(
                f"UDP to {name_some(names)} on port {port} gets no answer though TCP does: let UDP through between the nodes"
            )
            continue
        cause = (
            f"the interface there has an MTU of {their_mtu}"
            if their_mtu < me.mtu
            else "something on the way passes less (a switch, a bridge or a tunnel)"
        )
        problems.append(
            f"packets of {wanted} bytes, the MTU of {me.interface}, do not pass to {name_some(names)}, {size} bytes do: "
            f"{cause}. Give every interface and every switch port between the nodes the same MTU"
        )
    return problems


def odd_mtu(mtus: Mapping[str, int], me: str, head: str) -> str | None:
    """What to say where this node's MTU is not the one that most nodes have; the head's counts where there is no most."""
    counts = Counter(mtus.values())
    usual = max(counts, key=lambda mtu: (counts[mtu], mtu == mtus.get(head)))
    if mtus[me] == usual:
        return None
    others = [name for name, mtu in mtus.items() if mtu == usual]
    return f"the MTU is {mtus[me]} here and {usual} on {name_some(others)}: set the same on all nodes"


def meeting_result(meeting: Meeting) -> tuple[dict[str, Any], dict[str, int | None], list[str]]:
    """Who was reached, the largest packet to each, and what is wrong."""
    me, links = meeting.me, meeting.links.values()
    reached = {link.peer.name: True if link.reached else why_unreached(link) for link in links}
    unreached = {name: (meeting.links[name].peer.address, why) for name, why in reached.items() if why is not True}
    problems = unreached_problems(unreached, meeting.port, meeting.seconds)
    # Where time was up, what has passed so far counts.
    searches = {link.peer.name: link.search for link in links if link.reached and link.search}
    sizes = {name: search.passes for name, search in searches.items() if search.found is not None or search.passes}
    late = [name for name, answer in reached.items() if answer is True and name not in sizes]
    if late:
        problems.append(
            f"no time was left to send packets of full size to {name_some(late)}: start all nodes closer together"
        )
    theirs = {link.peer.name: int(link.info["mtu"]) for link in links if link.info.get("mtu")}
    problems += packet_problems(me, sizes, theirs, meeting.port)
    odd = odd_mtu({**theirs, me.name: me.mtu}, me.name, meeting.peers[0].name)
    return reached, {name: sizes.get(name) for name in reached}, problems + ([odd] if odd else [])


# What NCCL's log says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What the environment was made for; empty where anything is right."""

    transport: str = ""
    interface: str = ""
    hcas: tuple[str, ...] = ()
    intra: str = "any"
    gpudirect: bool = False


@dataclass(frozen=True)
class Edge:
    """A connection between two ranks of a communicator of ``world`` ranks. ``target`` is None where a switch sums."""

    world: int
    source: int
    target: int | None
    via: str
    line: str


@dataclass
class NcclLog:
    """What one rank's log says; ``lines`` has the line that each statement was taken from."""

    version: str | None = None
    network: str | None = None
    bootstrap: str | None = None
    sockets: list[str] = field(default_factory=list)
    hcas: list[str] = field(default_factory=list)
    nvls: bool = False
    edges: list[Edge] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)


def _interface(text: str) -> str:
    """The name in ``NAME:ADDRESS<PORT>``; both parts may have colons."""
    label = text.partition("<")[0]
    for match in re.finditer(":", label):
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(label[match.end() :].partition("%")[0])
            return label[: match.start()]
    return label


_EDGE = re.compile(r"Channel \d+(?:/\d+)? : (\d+)\[\w+\] -> (\d+)\[\w+\] (?:\[\w+\] )?via (\S.*)")
_COLLNET = re.compile(r"CollNet \d+/\d+ : (\d+) \[\w+\] via (\S.*)")
# mlx5_0:1/IB; since 2.30 with a rail and a plane between port and link.
_HCA = re.compile(r"([A-Za-z0-9_.+-]+):(\d+)(?::\d*){0,2}/(?:IB|RoCE)")


def parse_nccl(text: str) -> NcclLog:
    """The log of one rank with NCCL_DEBUG=INFO, of NCCL 2.18 or later."""
    log, world = NcclLog(), 0
    for raw in text.splitlines():
        _before, marker, line = raw.partition("NCCL INFO ")
        if not marker:
            warning = raw.partition("NCCL WARN ")[2].strip()
            if warning:
                log.warnings.append(warning)
            continue
        line = line.strip()
        if line.startswith("NCCL version "):
            log.version = line.split()[2].partition("+")[0]
        elif line.startswith("Using network "):
            log.network, log.lines["network"] = line[len("Using network ") :], line
        elif re.match(r"Bootstrap ?: Using ", line):
            log.bootstrap = _interface(re.sub(r"^Bootstrap ?: Using (\[0\])?", "", line))
            log.lines["bootstrap"] = line
        elif line.startswith("NET/Socket : Using ["):
            log.sockets = [_interface(word) for word in re.findall(r"\[\d+\](\S+<\d+>)", line)]
            log.lines["sockets"] = line
        elif line.startswith("NET/IB : Using"):
            log.hcas = [f"{name}:{port}" for name, port in _HCA.findall(line.partition("; OOB")[0])]
            log.lines.setdefault("hcas", line)
        elif line.startswith("NET/IB : No device found"):
            log.lines["hcas"] = line
        elif line.endswith("Init START"):
            found = re.search(r"nranks (\d+)", line)
            world = int(found.group(1)) if found else world
        elif line.startswith("Connected NVLS"):
            log.nvls = True
        else:
            edge, collnet = _EDGE.match(line), _COLLNET.match(line)
            if edge:
                log.edges.append(Edge(world, int(edge.group(1)), int(edge.group(2)), edge.group(3), line))
            elif collnet:
                log.edges.append(Edge(world, int(collnet.group(1)), None, collnet.group(2), line))
    return log


def _same_network(seen: str, expected: str) -> bool:
    """``AWS Libfabric`` was the name of what is ``Libfabric`` now."""
    return seen.lower() == expected.lower() or seen.lower().endswith(f" {expected.lower()}")


def split_edges(edges: Iterable[Edge], counts: Sequence[int], node: int) -> tuple[list[Edge], list[Edge]]:
    """The edges inside this node, and those to others. A communicator of all ranks counts them node after node."""
    mine = range(sum(counts[:node]), sum(counts[: node + 1]))
    inside, across = [], []
    for edge in edges:
        everybody = edge.world == sum(counts)
        stays = edge.target is not None and (not everybody or (edge.source in mine and edge.target in mine))
        (inside if stays else across).append(edge)
    return inside, across


def judge_nccl(host: str, logs: Sequence[NcclLog], counts: Sequence[int], node: int, want: Expected) -> list[str]:
    """Where the logs of this node's ranks show something else than the environment was made for."""
    problems: dict[str, None] = {}
    edges = [edge for log in logs for edge in log.edges]
    inside, across = split_edges(edges, counts, node)
    several = sum(1 for count in counts if count) > 1

    def say(text: str) -> None:
        problems.setdefault(f"on {host} {text}")

    fell_back = False
    for log in logs:
        seen = log.lines
        if several and want.transport and log.network and not _same_network(log.network, want.transport):
            fell_back = True
            why = f" after '{seen['hcas']}'" if "hcas" in seen else ""
            mend = (
                "see that the ports are Active (ibstat), that NCCL_IB_HCA in /etc/nccl.conf names them, that locked memory is "
                "unlimited (--tags limits) and that no NCCL_NET or NCCL_IB_DISABLE is set in the account's environment"
                if log.network == "Socket"
                else "see that no NCCL_NET or NCCL_NET_PLUGIN is set in the account's environment, which wins over /etc/nccl.conf"
            )
            say(
                f"NCCL uses the network {log.network} ('{seen['network']}'{why}) where {want.transport} is expected: {mend}"
            )
        names = [("bootstrap", [log.bootstrap] if log.bootstrap else [])]
        if not want.transport or _same_network(want.transport, "Socket"):
            names.append(("sockets", log.sockets))
        for key, used in names:
            if want.interface and any(name != want.interface for name in used):
                say(
                    f"NCCL uses {name_some(used)} ('{seen[key]}') where {want.interface} is expected: see that no "
                    f"NCCL_SOCKET_IFNAME is set in the account's environment, which wins over /etc/nccl.conf"
                )
        if several and want.hcas and log.network and _same_network(log.network, "IB"):
            used = {hca if any(":" in name for name in want.hcas) else hca.partition(":")[0] for hca in log.hcas}
            missing, extra = sorted(set(want.hcas) - used), sorted(used - set(want.hcas))
            if missing or extra:
                differs = [f"without {', '.join(missing)}"] * bool(missing) + [f"also {', '.join(extra)}"] * bool(extra)
                say(
                    f"NCCL uses other HCAs than {', '.join(want.hcas)}: {' and '.join(differs)} ('{seen['hcas']}'): see that "
                    f"their ports are Active, and that no NCCL_IB_HCA is set in the account's environment"
                )

    for edge in inside:
        kind = edge.via.partition("/")[0]
        if want.intra != "NET" and kind == "NET":
            say(
                f"GPUs of the same node talk over the network ('{edge.line}'): see that neither NCCL_P2P_DISABLE nor "
                f"NCCL_SHM_DISABLE is set, and that /dev/shm is large enough"
            )
            break
        if want.intra == "P2P" and kind != "P2P":
            say(
                f"GPUs of the same node talk through {kind} ('{edge.line}') where P2P over NVLink is expected: see that "
                f"NCCL_P2P_DISABLE and NCCL_P2P_LEVEL are not set, and that 'nvidia-smi topo -p2p n' says OK"
            )
            break
    if logs and counts[node] > 1 and not inside and not any(log.nvls for log in logs):
        say("NCCL's log shows no connection between the GPUs of the node")

    for edge in across:
        kind, _slash, rest = edge.via.partition("/")
        name = rest.partition("/")[0]
        if kind == "NET" and want.transport and not fell_back and not _same_network(name, want.transport):
            say(f"a connection to another node goes over {name} ('{edge.line}') where {want.transport} is expected")
            break
        if kind == "NET" and want.gpudirect and "GDRDMA" not in edge.via:
            say(
                f"GPUs reach the network without GPUDirect RDMA ('{edge.line}'): see that nvidia_peermem is loaded (or the "
                f"driver offers DMA-BUF) and that NCCL_NET_GDR_LEVEL is not set"
            )
            break
        if kind == "SHM" or (kind == "P2P" and not rest.startswith("MNNVL")):
            say(f"NCCL takes another node for this one ('{edge.line}'): NCCL_HOSTID must differ between nodes")
            break
    if logs and several and counts[node] and not across:
        say("NCCL's log shows no connection to another node")
    return list(problems)


def describe_nccl(logs: Sequence[NcclLog], counts: Sequence[int], node: int) -> dict[str, Any]:
    """The facts of the logs, for the result."""
    inside, _across = split_edges([edge for log in logs for edge in log.edges], counts, node)
    first = logs[0] if logs else NcclLog()
    kinds = sorted(
        {re.sub(r"/read|/CE$|/\d+.*", "", edge.via) for edge in inside} | {"NVLS" for log in logs if log.nvls}
    )
    uses_ib = first.network is not None and _same_network(first.network, "IB")
    return {
        "version": first.version,
        "network": first.network,
        "interface": first.bootstrap,
        "hcas": first.hcas if uses_ib else [],
        "intra": ", ".join(kinds) or None,
    }


# What the kernel counted for Gloo -----------------------------------------------------------------------------------


def judge_gloo(me: Myself, answer: Mapping[str, Any], store: Sequence[Any], size: int) -> tuple[list[str], list[str]]:
    """The interfaces that carried Gloo's traffic, and what is wrong with them. Nobody to talk to: ask only with peers."""
    interfaces, chosen = answer["interfaces"], answer.get("chosen")
    traffic = [c for c in answer["connections"] if list(store) not in ([*c["local"]], [*c["remote"]])]
    mine = str(ipaddress.ip_address(me.address))
    mend = f"see that GLOO_SOCKET_IFNAME is {me.interface} in a fresh login of the account (/etc/profile.d, ~/.profile)"
    problems = []
    elsewhere = grouped((c["local"][0], c["remote"][0]) for c in traffic if c["local"][0] != mine)
    for address, remotes in elsewhere.items():
        problems.append(
            f"on {me.name} Gloo talks to {name_some(sorted(set(remotes)))} from {address} ({interfaces.get(address, '?')}), not "
            f"from {me.address} ({me.interface}): {mend}"
        )
    # It may have gone well: Gloo listens on that interface, and whether anybody has to connect depends on the addresses.
    if not problems and chosen and set(chosen.split(",")) != {me.interface}:
        problems.append(f"on {me.name} GLOO_SOCKET_IFNAME is {chosen} where {me.interface} is expected: {mend}")
    sent = sum(c["sent"] for c in traffic if c["local"][0] == mine)
    if not problems and sent < size:
        problems.append(
            f"on {me.name} the kernel counted only {sent} bytes of Gloo's on {me.interface}, {size} at least are due"
        )
    used = sorted({interfaces.get(c["local"][0], c["local"][0]) for c in traffic})
    return used, problems


# The collective -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Who takes part with how many ranks, in the order of the peers; None for who does not."""

    backend: str
    counts: tuple[int, ...]
    store: tuple[str, int]


def lay_out(peers: Sequence[Peer], gpus: Mapping[str, int], port: int) -> Layout:
    """One rank a GPU with NCCL, or one a node with Gloo where no node has a GPU."""
    with_gpus = any(gpus[peer.name] for peer in peers)
    counts = tuple(gpus[peer.name] if with_gpus else 1 for peer in peers)
    first = next(peer for peer, count in zip(peers, counts) if count)
    return Layout("nccl" if with_gpus else "gloo", counts, (first.address, port))


def login(user: str, command: Sequence[str]) -> list[str]:
    """A command in a fresh login of ``user``, which has the environment that the account's logins get.

    No session of its own: the whole of it ends with its process group. Raises ProofError.
    """
    words = shlex.join(command)
    try:
        wanted = pwd.getpwnam(user)
    except KeyError:
        raise ProofError(f"the collective is to run as '{user}', and this node has no such account") from None
    if os.geteuid() == 0:
        return ["su", "--login", user, "--shell", "/bin/sh", "--session-command", words]
    if wanted.pw_uid != os.geteuid():
        raise ProofError(
            f"the collective is to run as '{user}': run this task with become, or name the connecting account"
        )
    return ["/bin/sh", "-l", "-c", words]


def why_no_torch(user: str, python: str) -> str:
    """Empty where the environment's Python has torch. It is the account's, so it never runs as root. Raises ProofError."""
    if not os.access(python, os.X_OK):
        return f"no torch: there is no {python}"
    code = "import importlib.util, sys; sys.exit(10 + (importlib.util.find_spec('torch') is None))"
    command = login(user, [python, "-c", code])
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, cwd="/", start_new_session=True, **quiet)  # type: ignore[call-overload]
    except OSError as error:
        raise ProofError(f"no login of '{user}' can be made: {error}") from None
    try:
        _nothing, errors = process.communicate(timeout=_LOGIN_SECONDS)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise ProofError(
            f"a login of '{user}' has not ended after {_LOGIN_SECONDS:g} s: see what its files (/etc/profile, "
            f"/etc/profile.d, ~/.profile) wait for"
        ) from None
    except ProofError:
        kill_group(process)
        raise
    if process.returncode not in (10, 11):
        words = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ProofError(f"a login of '{user}' cannot run {python}: {words[-1][:200]} (status {process.returncode})")
    return "" if process.returncode == 10 else f"no torch in {python}"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """A process that has not been waited for, and all that it has started: its number is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_small(path: Path, most: int = 8 << 20) -> str:
    """A file that another account wrote: no link, no device, not without end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as file:
        return file.read(most).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(handle).st_mode) else ""


def read_object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(read_small(path))
        return found if isinstance(found, dict) else {}
    return {}


class Ranks:
    """This node's processes of the collective, in a directory of theirs."""

    def __init__(self, user: str, python: str, script: str, config: Mapping[str, Any]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="metalray-proof-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            program = self.folder / "collective.py"
            program.write_text(script, encoding="utf-8")
            (self.folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            # Only the directory is the account's: it writes its answers there.
            for path in (program, self.folder / "config.json"):
                path.chmod(0o644)
            command = login(user, [python, str(program), str(self.folder)])
            with (self.folder / "output.log").open("wb") as output:
                # From here on nothing in it is opened for writing, and no link followed.
                if os.geteuid() == 0:
                    entry = pwd.getpwnam(user)
                    os.chown(self.folder, entry.pw_uid, entry.pw_gid)
                # They end with their standard input, whatever becomes of this process.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd="/", start_new_session=True
                )
        except OSError as error:
            self.close()
            raise ProofError(f"the collective cannot be started: {error}") from None
        except ProofError:
            self.close()
            raise

    def exit_status(self) -> int | None:
        """None while they run. The process is only looked at: once it is waited for, its group may be somebody else's."""
        if self._process is None or self._process.returncode is not None:
            return self._process.returncode if self._process else None
        seen = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return seen.si_status if seen else None

    def kill(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        kill_group(process)
        # Not before: they would take the directory with them.
        if process.stdin:
            process.stdin.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self, count: int) -> list[dict[str, Any]]:
        return [read_object(self.folder / f"rank{rank}.json") for rank in range(count)]

    def nccl_logs(self, count: int) -> list[NcclLog]:
        return [parse_nccl(read_small(self.folder / f"nccl{rank}.log")) for rank in range(count)]

    def last_output(self) -> str:
        lines = [line.strip() for line in read_small(self.folder / "output.log").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"


def rank_problems(
    host: str, answers: Sequence[Mapping[str, Any]], warnings: Sequence[str], ended: str, output: str
) -> list[str]:
    """What stopped the collective on this node: the first rank that says so, else how it ended."""
    for rank, answer in enumerate(answers):
        if "error" in answer:
            because = f"; NCCL says: {warnings[0]}" if warnings else ""
            return [
                f"on {host} the collective failed while {answer.get('doing')} (rank {rank} of the node): {answer['error']}{because}"
            ]
    waiting = [answer for answer in answers if not answer.get("ok")]
    if not waiting:
        return []
    doing = waiting[0].get("doing")
    at = f"while {doing}" if doing else f"before it began ({output})"
    return [f"on {host} the collective {ended} {at}"]


def run_collective(meeting: Meeting, ranks: Ranks, count: int, seconds: float) -> str:
    """Wait for this node's ranks, as long as nobody else's have failed; how they ended, '' where well."""
    deadline, last_words, broken = time.monotonic() + seconds, float("inf"), []
    ended = ""
    while ranks.exit_status() is None:
        meeting.step()
        now = time.monotonic()
        if not broken:
            broken = meeting.failed_elsewhere()
            last_words = now + min(_LAST_WORDS, seconds / 5) if broken else last_words
        if now > last_words:
            ended = f"was ended, because it failed on {name_some(broken)},"
            break
        if now > deadline:
            ended = f"did not finish in {seconds:g} s and was ended"
            break
    status = ranks.exit_status()
    ranks.kill()
    if not ended and (status != 0 or not all(answer.get("ok") for answer in ranks.answers(count))):
        ended = f"ended with status {status}"
    return ended


NOT_RUN: dict[str, Any] = {"ran": False, "reason": None}


@dataclass(frozen=True)
class Collective:
    """How to run the collective on this node."""

    user: str
    python: str
    script: str
    seconds: float
    expect: Expected


def prove_collective(meeting: Meeting, how: Collective) -> tuple[dict[str, Any], list[str]]:
    """The collective's part of the result, and what is wrong. Everybody has met, and nobody has a problem so far."""
    me, peers = meeting.me, meeting.peers
    about: dict[str, Mapping[str, Any]] = {name: link.info for name, link in meeting.links.items()}
    about[me.name] = {"gpus": me.gpus, "torch": me.torch}
    lacking = grouped((str(about[peer.name]["torch"]), peer.name) for peer in peers if about[peer.name].get("torch"))
    if lacking:
        reason = "; ".join(f"{why} on {name_some(names)}" for why, names in lacking.items())
        everywhere = sum(map(len, lacking.values())) == len(peers)
        problems = [] if everywhere or not me.torch else [f"{me.torch}, which other nodes have: run --tags python_env"]
        return {**NOT_RUN, "reason": f"not run: {reason}"}, problems
    layout = lay_out(peers, {name: int(info.get("gpus") or 0) for name, info in about.items()}, meeting.port + 1)
    node = meeting.index
    count, world = layout.counts[node], sum(layout.counts)
    result = {**NOT_RUN, "backend": layout.backend, "world": world}
    if not count:
        return {**result, "reason": "not run here: this node has no GPU, and others have"}, []
    size = _GPU_BYTES if layout.backend == "nccl" else _CPU_BYTES
    config = {
        "backend": layout.backend,
        "store": list(layout.store),
        "counts": list(layout.counts),
        "node": node,
        "seconds": how.seconds / 2,  # torch knows better than a deadline what it waits for
        "token": meeting.token,
        "bytes": size,
    }
    try:
        if layout.store[0] == me.address:
            open_socket(socket.SOCK_STREAM, *layout.store, until=meeting.deadline).close()
        ranks = Ranks(how.user, how.python, how.script, config)
    except ProofError as error:
        return {**result, "reason": "not run: it cannot be started"}, [str(error)]
    try:
        ended = run_collective(meeting, ranks, count, how.seconds)
        answers, output = ranks.answers(count), ranks.last_output()
        logs = ranks.nccl_logs(count) if layout.backend == "nccl" else []
    finally:
        ranks.close()
    if logs:
        result.update(describe_nccl(logs, layout.counts, node))
    if ended:
        warnings = [warning for log in logs for warning in log.warnings]
        return {**result, "reason": "it failed"}, rank_problems(me.name, answers, warnings, ended, output)
    result.update(ran=True, gb_per_s=answers[0].get("gb_per_s"))
    if logs:
        return result, judge_nccl(me.name, logs, layout.counts, node, how.expect)
    result.update(network="TCP", version=answers[0].get("torch"))
    if world == 1:
        return result, []
    used, problems = judge_gloo(me, answers[0], layout.store, size)
    return {**result, "interface": ", ".join(used)}, problems


def prove(
    me: Myself, peers: Sequence[Peer], port: int, token: str, seconds: float, collective: Collective | None
) -> dict[str, Any]:
    """The whole proof on this node. Raises ProofError where it cannot begin."""
    meeting = Meeting(me, peers, port, token, seconds)
    try:
        meeting.look()
        reached, mtu, problems = meeting_result(meeting)
        meeting.announce(done=True, problems=len(problems))
        silent = meeting.wait_for("done")
        problems += silent_problems(meeting, silent)
        troubled = [name for name, link in meeting.links.items() if link.said.get("problems")]
        outcome: dict[str, Any] = {**NOT_RUN, "reason": "not run: not asked for"}
        if collective is not None:
            if problems or silent or troubled:
                where = f" ({name_some(troubled)})" if troubled and not problems else ""
                outcome["reason"] = f"not run: the nodes do not reach each other as they should{where}"
            else:
                outcome, wrong = prove_collective(meeting, collective)
                problems += wrong
            meeting.announce(over=True, ok=outcome["ran"] or not problems)
    finally:
        meeting.close()
    return {
        "reached": reached,
        "mtu": mtu,
        "collective": outcome,
        "problems": problems,
        "passed": not (problems or silent or troubled),
        "seconds": round(time.monotonic() - meeting.started, 1),
    }


def record_of(result: Mapping[str, Any], fingerprint: str, when: str) -> dict[str, Any]:
    """What a node keeps of a proof that has passed; ``text`` says it to people."""
    nodes, sizes = len(result["reached"]) + 1, [size for size in result["mtu"].values() if size]
    said = f"{nodes} nodes reach each other both ways" if nodes > 1 else "1 node"
    if sizes:
        said += f" with packets of {min(sizes)} bytes"
    seen = result["collective"]
    if seen["ran"]:
        ways = [f"{seen['intra']} inside a node"] if seen.get("intra") else []
        ways += [f"{seen['network']} on {seen['interface']}"] if nodes > 1 else []
        said += f"; all-reduce of {seen['world']} processes ({seen['backend']})"
        said += f" over {' and '.join(ways)}" if ways else ""
        said += f", {seen['gb_per_s']:.3g} GB/s" if seen["gb_per_s"] else ""
    else:
        said += f"; all-reduce {seen['reason']}"
    return {"fingerprint": fingerprint, "when": when, "text": said}


def plan_text(me: Myself, peers: Sequence[Peer], port: int, collective: Collective | None) -> list[str]:
    """What a real run would do, for check mode."""
    others = [peer.name for peer in peers if peer.name != me.name]
    planned = [
        f"listen on {me.address} port {port} (TCP and UDP)",
        f"connect to {name_some(others) or 'nobody: this is the only node'}",
        f"send packets of {largest_packet(me.mtu, me.address)} bytes to each",
    ]
    return planned + ([f"run the collective as {collective.user} with {collective.python}"] if collective else [])
