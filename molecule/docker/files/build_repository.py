# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a signed apt repository with the layout and package names of Docker's own.

The packages are stand-ins: the distribution's engine under the names, dependencies and conflicts of Docker's. It runs
as root on a node: build_repository.py DIRECTORY
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "5:99.0.0-standin"
# Name: the distribution's packages that it is made of, and its control fields.
PARTS = {
    "docker-ce": (["docker.io"], "Conflicts: docker.io\nReplaces: docker.io"),
    "docker-ce-cli": ([], "Conflicts: docker.io, docker-cli\nReplaces: docker.io, docker-cli"),
    "containerd.io": (["containerd", "runc"], "Conflicts: containerd, runc\nReplaces: containerd, runc"),
    "docker-buildx-plugin": ([], "Conflicts: docker-buildx"),
    "docker-compose-plugin": ([], "Conflicts: docker-compose-v2"),
}
REPLACED = ("containerd", "runc", "docker-cli")


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.PIPE, text=True).stdout


def available(name: str) -> bool:
    return bool(subprocess.run(["apt-cache", "pkgnames", name], check=True, capture_output=True).stdout)


def unpack(name: str, work: Path) -> Path:
    target = work / f"of-{name}"
    download = work / f"download-{name}"
    download.mkdir()
    run("apt-get", "download", "-q", name, cwd=download)
    run("dpkg-deb", "--raw-extract", str(next(download.glob("*.deb"))), str(target))
    return target


def depends_of(control: str) -> list[str]:
    line = next((line for line in control.splitlines() if line.startswith("Depends:")), "Depends:")
    wanted = [item.strip() for item in line.partition(":")[2].split(",") if item.strip()]
    return [item for item in wanted if item.split()[0] not in REPLACED]


def build(name: str, trees: dict[str, Path], work: Path, architecture: str, pool: Path) -> None:
    sources, fields = PARTS[name]
    root = work / name
    (root / "DEBIAN").mkdir(parents=True)
    depends: list[str] = []
    for source in sources:
        shutil.copytree(trees[source], root, symlinks=True, dirs_exist_ok=True)
        depends += depends_of((root / "DEBIAN/control").read_text())
    (root / "DEBIAN/md5sums").unlink(missing_ok=True)
    if name == "docker-ce":
        depends += ["docker-ce-cli", "containerd.io"]
        (root / "usr/bin/docker").unlink(missing_ok=True)
    if name == "docker-ce-cli":
        client = next(tree / "usr/bin/docker" for tree in trees.values() if (tree / "usr/bin/docker").exists())
        (root / "usr/bin").mkdir(parents=True)
        shutil.copy2(client, root / "usr/bin/docker")
    unique = list(dict.fromkeys(depends))
    control = [
        f"Package: {name}",
        f"Version: {VERSION}",
        f"Architecture: {architecture}",
        "Maintainer: nobody <nobody@localhost>",
        *([f"Depends: {', '.join(unique)}"] if unique else []),
        *fields.splitlines(),
        "Description: stand-in made of the distribution's own package, for a test",
    ]
    (root / "DEBIAN/control").write_text("\n".join(control) + "\n")
    run("dpkg-deb", "--build", "--root-owner-group", "-Znone", str(root), str(pool / f"{name}_{architecture}.deb"))


def index(pool: Path, top: Path) -> str:
    stanzas = []
    for package in sorted(pool.glob("*.deb")):
        data = package.read_bytes()
        stanzas.append(
            run("dpkg-deb", "--field", str(package)).rstrip("\n")
            + f"\nFilename: {package.relative_to(top)}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
    return "\n".join(stanzas)


def gpg(home: Path, *arguments: str) -> str:
    options = ["--batch", "--yes", "--homedir", str(home), "--pinentry-mode", "loopback", "--passphrase", ""]
    return run("gpg", *options, *arguments)


def make_key(home: Path, name: str) -> str:
    gpg(home, "--quick-generate-key", f"{name} <{name}@localhost>", "rsa2048", "sign", "never")
    rows = gpg(home, "--with-colons", "--list-keys", name).splitlines()
    return next(row.split(":")[9] for row in rows if row.startswith("fpr:"))


def main() -> None:
    top = Path(sys.argv[1])
    if (top / "fingerprint").exists():
        return
    architecture = run("dpkg", "--print-architecture").strip()
    codename = next(
        line.partition("=")[2].strip('"')
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    work = top.with_name(top.name + "-work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(top, ignore_errors=True)
    binary = top / "dists" / codename / "stable" / f"binary-{architecture}"
    pool = top / "pool"
    for directory in (work, binary, pool):
        directory.mkdir(parents=True)
    names = ["docker.io", "containerd", "runc", *(["docker-cli"] if available("docker-cli") else [])]
    trees = {name: unpack(name, work) for name in names}
    for name in PARTS:
        build(name, trees, work, architecture, pool)

    packages = index(pool, top).encode()
    files = {"Packages": packages, "Packages.gz": gzip.compress(packages)}
    sums = []
    for name, data in files.items():
        (binary / name).write_bytes(data)
        sums.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} stable/binary-{architecture}/{name}")
    release = top / "dists" / codename / "Release"
    release.write_text(
        f"Origin: stand-in\nSuite: {codename}\nCodename: {codename}\nArchitectures: {architecture}\n"
        f"Components: stable\nDate: {run('date', '-Ru').strip().replace('+0000', 'UTC')}\nSHA256:\n"
        + "\n".join(sums)
        + "\n"
    )
    home = work / "gnupg"
    home.mkdir(mode=0o700)
    fingerprint = make_key(home, "repository")
    gpg(home, "--local-user", fingerprint, "--clearsign", "--output", str(release.with_name("InRelease")), str(release))
    gpg(home, "--armor", "--output", str(top / "gpg"), "--export", fingerprint)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    shutil.rmtree(work)
    for path in top.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    (top / "fingerprint").write_text(fingerprint + "\n")


if __name__ == "__main__":
    main()
