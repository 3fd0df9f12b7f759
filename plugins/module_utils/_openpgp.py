# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of OpenPGP public keys (RFC 4880, RFC 9580) without gpg, which a minimal node lacks.

Internal to metalray.cluster: not a public interface.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

_ARMOR = re.compile(
    rb"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)^-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL | re.MULTILINE,
)
_SECRET_KEYS = (5, 7)
_PUBLIC_KEY = 6


class KeyFormatError(ValueError):
    """The bytes are not an OpenPGP public key; the text says why."""


def dearmor(data: bytes) -> bytes:
    """The binary form of a key, armored or binary. Several armored blocks are joined."""
    blocks = _ARMOR.findall(data)
    if not blocks:
        if not data or not data[0] & 0x80:
            raise KeyFormatError("it is not an OpenPGP key, neither armored nor binary")
        return data
    return b"".join(_decode(block) for block in blocks)


def _decode(block: bytes) -> bytes:
    lines = [line.strip() for line in block.splitlines()]
    # Armor headers end with an empty line; the checksum is a line of its own and starts with '='.
    start = lines.index(b"") + 1 if b"" in lines else 0
    text = b"".join(line for line in lines[start:] if not line.startswith(b"="))
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise KeyFormatError("its armor holds broken base64") from None


def armor(binary: bytes) -> str:
    """The armored form of a binary key."""
    text = base64.b64encode(binary).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    checksum = base64.b64encode(_crc24(binary).to_bytes(3, "big")).decode("ascii")
    return "\n".join(
        ["-----BEGIN PGP PUBLIC KEY BLOCK-----", "", *lines, f"={checksum}", "-----END PGP PUBLIC KEY BLOCK-----", ""]
    )


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and body of every packet."""
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        if position + count > len(data):
            raise KeyFormatError("it is cut short")
        position += count
        return data[position - count : position]

    while position < len(data):
        head = take(1)[0]
        if not head & 0x80:
            raise KeyFormatError(f"byte {position - 1} does not begin a packet")
        if not head & 0x40:
            width = head & 0x03
            length = len(data) - position if width == 3 else int.from_bytes(take(1 << width), "big")
            yield (head >> 2) & 0x0F, take(length)
            continue
        body = b""
        while True:
            first = take(1)[0]
            if 224 <= first < 255:
                body += take(1 << (first & 0x1F))
                continue
            if first < 192:
                length = first
            elif first < 224:
                length = ((first - 192) << 8) + take(1)[0] + 192
            else:
                length = int.from_bytes(take(4), "big")
            yield head & 0x3F, body + take(length)
            break


def _fingerprint(body: bytes) -> str:
    version = body[0] if body else 0
    if version == 4:
        # SHA-1 is what the format prescribes; on a FIPS host it must be asked for as such.
        digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
    elif version == 6:
        digest = hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body)
    else:
        raise KeyFormatError(f"it holds a key of version {version}; 4 and 6 are known")
    return digest.hexdigest().upper()


def fingerprints(data: bytes) -> list[str]:
    """Fingerprints of all primary keys in ``data``, armored or binary, in order; never none."""
    found = []
    for tag, body in _packets(dearmor(data)):
        if tag in _SECRET_KEYS:
            raise KeyFormatError("it holds a secret key")
        if tag == _PUBLIC_KEY:
            found.append(_fingerprint(body))
        elif not found:
            raise KeyFormatError("it does not begin with a public key")
    if not found:
        raise KeyFormatError("it holds no public key")
    return found


def normalised(fingerprint: str) -> str:
    """A fingerprint as people write it (spaces, colons, 0x, small letters) in plain form; ValueError if it is none."""
    plain = re.sub(r"[\s:]", "", fingerprint).upper()
    plain = plain[2:] if plain.startswith("0X") else plain
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", plain):
        raise ValueError(f"'{fingerprint}' is no fingerprint: allowed are 40 or 64 hexadecimal digits")
    return plain
