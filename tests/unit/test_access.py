# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv, pip, git and apt through a forward proxy that asks for an account, to names that only the proxy knows; and over TLS with
an authority that no system knows."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ansible_collections.metalray.cluster.plugins.filter.git_configuration import configuration as git_file
from ansible_collections.metalray.cluster.plugins.filter.site_environment import site_environment
from ansible_collections.metalray.cluster.plugins.module_utils._access import (
    apt_configuration,
    check_access,
    count_certificates,
    masked,
    trusted_hosts,
)
from ansible_collections.metalray.cluster.plugins.module_utils._versions import RECORD_FILE

pytestmark = pytest.mark.tools

ACCOUNT = "us%40er:s3cr%3At"
UV = Path(sys.executable).with_name("uv")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    """Forwards HTTP, and tunnels TLS, for who shows the account. Every name that ends in .test leads to one server here."""

    daemon_threads = True

    def __init__(self, plain: int, secure: int) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.plain, self.secure = plain, secure
        self.forwarded: list[str] = []
        self.refused: list[str] = []

    def address(self, account: str = ACCOUNT) -> str:
        return f"http://{account}@127.0.0.1:{self.server_port}"


class Forward(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: object) -> None:
        pass

    def admitted(self) -> bool:
        wanted = "Basic " + base64.b64encode(b"us@er:s3cr:t").decode()
        if self.headers.get("Proxy-Authorization") == wanted:
            self.server.forwarded.append(f"{self.command} {self.path}")
            return True
        self.server.refused.append(self.path)
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="site"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self) -> None:
        if not self.admitted():
            return
        parts = urlsplit(self.path)
        assert parts.hostname and parts.hostname.endswith(".test"), self.path
        there = http.client.HTTPConnection("127.0.0.1", self.server.plain, timeout=20)
        length = int(self.headers.get("Content-Length") or 0)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        there.request(self.command, target, self.rfile.read(length) if length else None, kept)
        answer = there.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def do_CONNECT(self) -> None:
        if not self.admitted():
            return
        with socket.create_connection(("127.0.0.1", self.server.secure), timeout=20) as there:
            self.send_response(200)
            self.end_headers()
            self.close_connection = True

            def pump(source: socket.socket, sink: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        sink.sendall(data)
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)

            back = threading.Thread(target=pump, args=(there, self.connection))
            back.start()
            pump(self.connection, there)
            back.join()


def wheel(directory: Path) -> Path:
    """A package that no index in the world has."""
    directory.mkdir(parents=True)
    path = directory / "metalray_probe-1.0-py3-none-any.whl"
    files = {
        "metalray_probe.py": "",
        "metalray_probe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: metalray-probe\nVersion: 1.0\n",
        "metalray_probe-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "metalray_probe-1.0.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "".join(f"{name},,\n" for name in [*files, record]))
    return path


def repository(directory: Path, scratch: Path) -> None:
    """A git repository as plain files, for git's oldest protocol over HTTP."""

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=scratch, check=True, capture_output=True)

    named = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    git("init", "-q", "-b", "main", "work")
    git("-C", "work", *named, "commit", "-q", "--allow-empty", "-m", "first")
    git("clone", "-q", "--bare", "work", str(directory))
    git("-C", str(directory), "update-server-info")


class Site:
    """A mirror behind the proxy, over HTTP and over TLS with the site's own authority."""

    def __init__(self, root: Path) -> None:
        self.files = root / "files"
        wheel(self.files / "simple/metalray-probe")
        repository(self.files / "trainer.git", root)
        debs = self.files / "debian"
        debs.mkdir()
        (debs / "Packages").write_text(
            "Package: metalray-probe\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nFilename: ./x.deb\n"
            f"Size: 1\nSHA256: {hashlib.sha256(b'x').hexdigest()}\nDescription: x\n\n"
        )
        self.ca = root / "site.pem"
        key, certificate = root / "key.pem", root / "server.pem"
        openssl = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]
        authority = root / "ca.key"
        run = partial(subprocess.run, check=True, capture_output=True)
        run([*openssl, "-subj", "/CN=The site's authority", "-keyout", authority, "-out", self.ca])
        run(
            [*openssl, "-subj", "/CN=mirror.test", "-addext", "subjectAltName=DNS:mirror.test", "-addext",
             "basicConstraints=critical,CA:FALSE", "-CA", self.ca, "-CAkey", authority, "-keyout", key, "-out", certificate]
        )  # fmt: skip
        handler = partial(Quiet, directory=str(self.files))
        self.plain = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.secure = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.secure.socket = context.wrap_socket(self.secure.socket, server_side=True)
        self.proxy = Proxy(self.plain.server_port, self.secure.server_port)
        self.servers: list[socketserver.BaseServer] = [self.plain, self.secure, self.proxy]
        for server in self.servers:
            threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture(params=["http", "https"])
def through(request: pytest.FixtureRequest, world: Site) -> tuple[str, Proxy]:
    """The mirror's address, and its proxy with nothing noted yet."""
    world.proxy.forwarded.clear()
    return f"{request.param}://mirror.test", world.proxy


def tool(command: list[object], values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A tool with nothing of this machine's own settings but where programs are."""
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/nonexistent", **values}
    return subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def passed(proxy: Proxy, address: str, path: str) -> bool:
    """Whether a request went through the proxy. Within TLS it sees the name alone."""
    if address.startswith("https:"):
        return "CONNECT mirror.test:443" in proxy.forwarded
    return any(line.startswith(f"GET {address}{path}") for line in proxy.forwarded)


def site_values(world: Site) -> dict[str, str]:
    return site_environment({}, proxy=world.proxy.address(), ca_bundle=str(world.ca))


def test_pip_and_uv_reach_an_index(through: tuple[str, Proxy], world: Site, tmp_path: Path) -> None:
    address, proxy = through
    values = site_values(world)
    index = f"{address}/simple/"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    done = tool(
        [
            UV,
            "pip",
            "install",
            "--no-cache",
            "--python",
            tmp_path / "venv/bin/python",
            "--default-index",
            index,
            "metalray-probe",
        ],
        {**values, "UV_NO_CONFIG": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert passed(proxy, address, "/simple/metalray-probe/")
    proxy.forwarded.clear()
    pip = [
        tmp_path / "venv/bin/python",
        "-m",
        "pip",
        "download",
        "-q",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    done = tool([*pip, "--index-url", index, "-d", tmp_path, "metalray-probe"], {**values, **trusted_hosts([index])})
    assert done.returncode == 0, done.stderr
    assert passed(proxy, address, "/simple/metalray-probe/") and list(tmp_path.glob("metalray_probe*.whl"))


def test_git_clones_with_its_file_and_no_address_in_its_environment(
    through: tuple[str, Proxy], world: Site, tmp_path: Path
) -> None:
    address, proxy = through
    url = f"{address}/trainer.git"
    file = tmp_path / "git.conf"
    file.write_text(git_file(site_values(world), url))
    left = site_environment({}, addresses=False, proxy=proxy.address(), ca_bundle=str(world.ca))
    assert "s3cr" not in json.dumps(left)
    done = tool(["git", "clone", "-q", url, tmp_path / "clone"], {**left, "GIT_CONFIG_GLOBAL": str(file)})
    assert done.returncode == 0, done.stderr
    assert passed(proxy, address, "/trainer.git/info/refs") and (tmp_path / "clone/.git/HEAD").is_file()


def test_the_account_s_own_settings_of_git_still_count(world: Site, tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Somebody\n")
    (tmp_path / "git.conf").write_text(git_file(site_values(world), "http://mirror.test/x"))
    values = {"HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": str(tmp_path / "git.conf")}
    assert tool(["git", "config", "--includes", "--get", "user.name"], values).stdout == "Somebody\n"


def apt(root: Path, configuration: str, *command: str) -> subprocess.CompletedProcess[str]:
    """apt with directories of its own, and as much of this machine's configuration as it always reads."""
    for name in ("lists/partial", "cache/archives/partial", "none"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    own = f'Dir::State::status "{root}/status"; Dir::Cache "{root}/cache";'
    own += f'Dir::Etc::Parts "{root}/none"; Dir::Etc::Main "{root}/none.conf";'
    (root / "apt.conf").write_text(f'{configuration}{own}\nAPT::Sandbox::User "root";\nAcquire::Retries 0;\n')
    return tool(["apt-get", *command], {"APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C"})


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
def test_apt_reads_its_list_alone_and_through_the_proxy(
    through: tuple[str, Proxy], world: Site, tmp_path: Path
) -> None:
    address, proxy = through
    sources = tmp_path / "site.list"
    sources.write_text(f"deb [trusted=yes] {address}/debian ./\n")
    done = apt(tmp_path, apt_configuration(site_values(world), str(sources)), "update")
    assert done.returncode == 0 and "W:" not in done.stderr, done.stdout + done.stderr
    assert passed(proxy, address, "/debian/./Packages")
    assert {urlsplit(line.split()[1]).hostname or "mirror.test" for line in proxy.forwarded} == {"mirror.test"}
    shown = apt(
        tmp_path, apt_configuration(site_values(world), str(sources)), "install", "--simulate", "metalray-probe"
    )
    assert "Inst metalray-probe (1 " in shown.stdout, shown.stderr


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
def test_without_the_authority_nobody_is_trusted(world: Site, tmp_path: Path) -> None:
    """The other half of what the tests above show: the certificates come from the file."""
    values = site_environment({}, proxy=world.proxy.address())
    sources = tmp_path / "site.list"
    sources.write_text("deb [trusted=yes] https://mirror.test/debian ./\n")
    done = apt(tmp_path, apt_configuration(values, str(sources)), "update")
    assert "certificate" in done.stdout + done.stderr
    (tmp_path / "git.conf").write_text(git_file(values, "https://mirror.test/trainer.git"))
    done = tool(
        ["git", "ls-remote", "https://mirror.test/trainer.git"], {"GIT_CONFIG_GLOBAL": str(tmp_path / "git.conf")}
    )
    assert done.returncode != 0 and "certificate" in done.stderr


@pytest.mark.parametrize("no_proxy", [["mirror.local"], [".local"]])
def test_what_is_reached_without_the_proxy(world: Site, no_proxy: list[str]) -> None:
    values = site_environment({}, proxy=world.proxy.address(), no_proxy=no_proxy, direct=["10.0.0.1"])
    assert values["no_proxy"].split(",")[-2:] == ["10.0.0.1", no_proxy[0]]


def test_a_role_s_own_setting_goes_before_the_site_s() -> None:
    values = site_environment({"HTTPS_PROXY": "http://own:1", "X": 1}, proxy="http://site:1", ca_bundle="/ca")
    assert (
        "https_proxy" not in values
        and values["HTTPS_PROXY"] == "http://own:1"
        and values["http_proxy"] == "http://site:1"
    )
    assert values["X"] == "1" and values["GIT_SSL_CAINFO"] == "/ca"
    assert 'Acquire::https::Proxy "http://own:1";' in apt_configuration(values)
    assert site_environment({}) == {} and apt_configuration({}) == "" and git_file({}, "https://x/y") == ""


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="needs dpkg")
def test_the_module_hands_apt_its_configuration_and_shows_no_account(run_module) -> None:
    values = site_environment({"X": "1"}, proxy=f"http://{ACCOUNT}@proxy.test:3128")
    answer = run_module("package_state", check=True, names=["no-such-package"], environment=values)
    assert answer["environment"]["APT_CONFIG"] == "/run/metalray-apt/apt.conf" and answer["environment"]["X"] == "1"
    assert "s3cr" not in json.dumps(answer)
    assert run_module("package_state", check=True, names=["dpkg"], environment=values)["environment"] == {}


def test_a_message_of_a_failed_build_shows_no_account(run_module, tmp_path: Path) -> None:
    lock = f"metalray-probe==1.0 --hash=sha256:{'0' * 64}\n"
    # uv as it is left by an earlier run.
    (tmp_path / "root/uv-0.13.9/bin").mkdir(parents=True)
    (tmp_path / "root/uv-0.13.9/bin/uv").symlink_to(UV)
    (tmp_path / "root/uv-0.13.9" / RECORD_FILE).write_text("{}")
    answer = run_module(
        "python_env", lock=lock, uv_version="0.13.9", uv_lock=f"uv==0.13.9 --hash=sha256:{'0' * 64}\n", timeout=60,
        root=str(tmp_path / "root"), venv=str(tmp_path / "venv"), python=os.path.realpath(sys.executable),
        index_url="http://us:hidden@127.0.0.1:9/simple",
        environment={"http_proxy": f"http://{ACCOUNT}@127.0.0.1:9", "UV_HTTP_RETRIES": "0"},
    )  # fmt: skip
    assert answer["failed"] and "the package index cannot be reached" in answer["msg"], answer
    assert "s3cr" not in json.dumps(answer) and "hidden" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"cluster_proxy": "proxy.example.com:3128"},
            "cluster_proxy is 'proxy.example.com:3128'. Allowed is an address with",
        ),
        ({"cluster_proxy": "me:secret@proxy:3128"}, "cluster_proxy is '***@proxy:3128'"),
        ({"cluster_proxy": "socks5://proxy:1080"}, "cluster_proxy is 'socks5://proxy:1080'"),
        ({"cluster_proxy": "http://proxy:port"}, "cluster_proxy is 'http://proxy:port'"),
        ({"cluster_no_proxy": ["http://10.0.0.1"]}, "cluster_no_proxy holds 'http://10.0.0.1'"),
        ({"cluster_no_proxy": ["a,b"]}, "cluster_no_proxy holds 'a,b'"),
        ({"cluster_ca_bundle": "/etc/site.pem"}, "cluster_ca_bundle is '/etc/site.pem', and there is no such file"),
        ({"python_env_ca_bundle": "/etc/empty.pem"}, "there is no certificate in that file"),
        ({"python_env_index_url": "mirror/simple"}, "python_env_index_url is 'mirror/simple'"),
        ({"python_env_extra_index_urls": ["https://a/simple", "b"]}, "python_env_extra_index_urls is 'b'"),
        ({"python_env_environment": {"HTTPS_PROXY": "p:1"}}, "HTTPS_PROXY in python_env_environment is 'p:1'"),
    ],
)
def test_what_preflight_refuses(values: dict, said: str) -> None:
    problems = check_access("gpu1", values, {"/etc/empty.pem": 0})
    assert len(problems) == 1 and problems[0].startswith("gpu1: ") and said in problems[0], problems


def test_what_preflight_lets_pass() -> None:
    values = {
        "cluster_proxy": "http://me:secret@proxy.example.com:3128",
        "cluster_no_proxy": ["mirror", ".example.com", "10.0.0.0/8", "fd00::/8", "10.0.0.1"],
        "cluster_ca_bundle": "/etc/site.pem",
        "python_env_ca_bundle": "/etc/ssl/certs/ca-certificates.crt",
        "python_env_index_url": "file:///srv/simple",
        "python_env_environment": {"X": "1"},
    }
    assert check_access("gpu1", values, {"/etc/site.pem": 3}) == []


def test_certificates_are_counted(world: Site, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----\n")
    assert count_certificates(str(world.ca)) == 1
    assert count_certificates(str(tmp_path / "key")) == 0
    assert count_certificates(str(tmp_path / "none")) is None


def test_masked() -> None:
    assert masked("cannot reach http://me:x@p:1/ or 'https://q/'") == "cannot reach http://***@p:1/ or 'https://q/'"
