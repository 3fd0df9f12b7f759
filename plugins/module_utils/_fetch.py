# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files fetched side by side, each known by its hash: what is there already is kept, and a broken one goes on where it broke.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import netrc
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

_CHUNK = 1 << 20
_ATTEMPTS = 5
_SILENCE_SECONDS = 60
_PAUSE_SECONDS = 1.0
_OUR_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ESTALE)
# Of the server's answers: the same request may do better a moment later.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class FetchError(Exception):
    """A file cannot be fetched; the text names it, and says why."""


@dataclass(frozen=True)
class Download:
    """``size`` is 0 where nobody has said it."""

    url: str
    path: Path
    sha256: str
    size: int = 0


def bare(url: str) -> str:
    """An address without its account."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def accounts(urls: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The Authorization header for each host that an address or ``.netrc`` has an account for."""
    found: dict[str, str] = {}

    def add(host: str, user: str, password: str) -> None:
        token = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        found.setdefault(host, f"Basic {token}")

    for url in urls:
        parts = urlsplit(url)
        if parts.username:
            add(parts.netloc.rpartition("@")[2], unquote(parts.username), unquote(parts.password or ""))
    file = environment.get("NETRC") or os.path.join(environment.get("HOME", "/root"), ".netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        for host, (user, _account, password) in netrc.netrc(file).hosts.items():
            add(host, user or "", password or "")
    return found


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def amount(count: float) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.1f} MiB"


class Fetcher:
    """Fetches files with a few threads. ``show`` is told from time to time how far it is, in the caller's thread."""

    def __init__(
        self,
        known: Mapping[str, str],
        bundle: str = "",
        show: Callable[[str], None] = lambda said: None,
        deadline: float = float("inf"),
        threads: int = 8,
    ) -> None:
        context = ssl.create_default_context(cafile=bundle or None)
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self._known, self._show, self._deadline, self._threads = known, show, deadline, threads
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._bytes = self._fetched = self._files = 0
        self.fetched: list[Path] = []

    def fetch(self, downloads: Sequence[Download]) -> None:
        """Bring all of them; ``fetched`` are those that were not there. Raises FetchError for the first that fails."""
        total = sum(item.size for item in downloads)
        begun = time.monotonic()
        # The largest first: they decide when the last one ends.
        ordered = sorted(downloads, key=lambda item: -item.size)
        pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        try:
            waiting = {pool.submit(self._one, item) for item in ordered}
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 1.0, concurrent.futures.FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if time.monotonic() >= self._deadline:
                    raise FetchError("the time is up")
                rate = amount(self._fetched / max(0.1, time.monotonic() - begun))
                of = f" of {amount(total)}" if total else ""
                self._show(
                    f"{self._files} of {len(downloads)} files, {amount(self._bytes)}{of}"
                    + (f", {rate} a second" if self._fetched else "")
                )
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _count(self, kept: int = 0, fetched: int = 0, files: int = 0) -> None:
        with self._counting:
            self._bytes += kept + fetched
            self._fetched += fetched
            self._files += files

    def _one(self, item: Download) -> None:
        with contextlib.suppress(FileNotFoundError):
            if (not item.size or item.path.stat().st_size == item.size) and digest_of(item.path) == item.sha256:
                self._count(kept=item.path.stat().st_size, files=1)
                return
            item.path.unlink()
        part = item.path.with_name(f".{item.path.name}.part")
        again = False
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                resumed, digest = self._attempt(item, part)
            except (OSError, http.client.HTTPException, EOFError) as error:
                self._give_up_or_wait(item, part, error, attempt)
                continue
            if digest == item.sha256:
                with part.open("rb") as handle:
                    os.fsync(handle.fileno())
                part.chmod(0o644)
                os.replace(part, item.path)
                self.fetched.append(item.path)
                self._count(files=1)
                return
            part.unlink()
            if not resumed or again:
                raise FetchError(
                    f"{bare(item.url)}: Hash mismatch: it has sha256 {digest}, and {item.sha256} is wanted"
                )
            again = True
        raise FetchError(f"{bare(item.url)}: it breaks off again and again")

    def _attempt(self, item: Download, part: Path) -> tuple[bool, str]:
        """Go on from what there is of it to the end, and hash all of it."""
        have = part.stat().st_size if part.exists() else 0
        if item.size and have > item.size:
            have = 0
        digest = hashlib.sha256()
        with self._open(item.url, have) as answer:
            if have and getattr(answer, "status", 206) != 206:
                have = 0
            expected = item.size or have + int(getattr(answer, "headers", {}).get("Content-Length") or 0)
            with part.open("r+b" if have else "wb") as handle:
                left = have
                while left:
                    chunk = handle.read(min(_CHUNK, left))
                    digest.update(chunk)
                    left -= len(chunk)
                handle.truncate(have)
                self._count(kept=have)
                size = have
                while chunk := answer.read(_CHUNK):
                    if self._stop.is_set():
                        raise FetchError("stopped")
                    handle.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    self._count(fetched=len(chunk))
        if size < expected:
            self._count(kept=-size)
            raise EOFError(f"it ended after {size} of {expected} bytes")
        return have > 0, digest.hexdigest()

    def _open(self, url: str, have: int) -> Any:
        parts = urlsplit(url)
        if parts.scheme in ("", "file"):
            handle: IO[bytes] = open(unquote(parts.path), "rb")  # noqa: SIM115 - the caller closes it
            handle.seek(have)
            return handle
        if parts.scheme not in ("http", "https"):
            raise FetchError(f"{bare(url)}: only https, http and files are fetched from")
        request = urllib.request.Request(bare(url), headers={"User-Agent": "metalray", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        host = parts.netloc.rpartition("@")[2]
        account = accounts([url], {"NETRC": os.devnull}).get(host) or self._known.get(host)
        account = account or self._known.get(host.partition(":")[0])
        if account:
            # Not to where the server sends us from here.
            request.add_unredirected_header("Authorization", account)
        return self._opener.open(request, timeout=_SILENCE_SECONDS)

    def _give_up_or_wait(self, item: Download, part: Path, error: Exception, attempt: int) -> None:
        words = f"HTTP status {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            part.unlink()
        final = (
            (isinstance(error, urllib.error.HTTPError) and error.code not in (*_PASSING, 416))
            or (isinstance(error, OSError) and error.errno in _OUR_DISK)
            or "CERTIFICATE_VERIFY_FAILED" in words
            or attempt == _ATTEMPTS
        )
        if final:
            raise FetchError(f"{bare(item.url)}: {words}") from None
        if self._stop.wait(_PAUSE_SECONDS * 2 ** (attempt - 1)):
            raise FetchError("stopped") from None
