# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import environments
import pytest
from ansible_collections.metalray.cluster.plugins.module_utils import _parity as parity
from ansible_collections.metalray.cluster.plugins.module_utils import _versions as versions

ROOT = Path(__file__).resolve().parents[2]


def node(python: str = "3.11.2", system: dict[str, str] | None = None, **packages: str) -> dict[str, Any]:
    below = {"os": "Debian", "kernel": "6.1", "glibc": "2.36", "driver": "580.1", "cuda": "13.0", "nccl": ""}
    return {
        "python": python,
        "packages": {"ray": "2.60.0", "torch": "2.13.0", **{k.replace("_", "-"): v for k, v in packages.items()}},
        "system": {**below, **(system or {})},
    }


# --- comparing ---------------------------------------------------------------------------------------------------


def test_equal_hosts_and_single_ones() -> None:
    assert parity.compare({"n1": node(), "n2": node()}).differences == []
    assert parity.compare({"n1": node()}).differences == []
    assert parity.compare({}).hosts == []


def test_the_odd_host_is_named() -> None:
    facts = {f"n{number}": node() for number in range(1, 5)}
    facts["n3"] = node(torch="2.12.0")
    found = parity.compare(facts)
    (item,) = found.differences
    assert (item.item, item.kind, item.strict) == ("torch", "package", True)
    assert (item.expected, item.expected_on) == ("2.13.0", 3)
    assert (item.odd, item.tie) == ({"2.12.0": ["n3"]}, "")
    assert parity.failure(found).splitlines() == [
        "version mismatch: n3 of 4 nodes differs from the rest in torch; training across them would fail or go wrong:",
        "  item   expected  found   on",
        "  -----  --------  ------  --",
        "  torch  2.13.0    2.12.0  n3",
        "Mend: ansible-playbook -i INVENTORY metalray.cluster.site --tags python_env,ray --limit n3",
    ]


def test_the_majority_is_right_even_against_the_head() -> None:
    facts = {"head": node(torch="2.12.0"), "w1": node(), "w2": node()}
    assert parity.compare(facts, reference="head").differences[0].odd == {"2.12.0": ["head"]}


def test_another_build_of_the_same_version_differs() -> None:
    facts = {"n1": node(torch="2.13.0+cu130"), "n2": node(torch="2.13.0+cu130"), "n3": node(torch="2.13.0+cpu")}
    assert parity.compare(facts).differences[0].odd == {"2.13.0+cpu": ["n3"]}


def test_a_patch_level_of_python_differs() -> None:
    facts = {"n1": node(), "n2": node(), "n3": node(python="3.11.3")}
    assert parity.compare(facts).differences[0].item == "python"
    assert parity.compare(facts, packages=["ray"]).differences == []
    assert parity.compare(facts, packages=["ray", "python"]).differences[0].odd == {"3.11.3": ["n3"]}


def test_a_missing_and_an_extra_package() -> None:
    facts = {"n1": node(six="1"), "n2": node(six="1"), "n3": node(extra_thing="2")}
    found = {item.item: (item.expected, item.odd) for item in parity.compare(facts).differences}
    assert found == {"six": ("1", {"missing": ["n3"]}), "extra-thing": ("missing", {"2": ["n3"]})}


def test_a_tie_goes_to_the_reference_and_says_so() -> None:
    facts = {"w1": node(torch="2.12.0"), "head": node()}
    (item,) = parity.compare(facts, reference="head").differences
    assert (item.expected, item.odd, item.tie) == ("2.13.0", {"2.12.0": ["w1"]}, "head")
    told = parity.failure(parity.compare(facts, reference="head")).splitlines()
    assert told[3:5] == [
        "  torch  2.13.0 *  2.12.0  w1",
        "  * as many nodes have the one as the other; what head has is taken to be right",
    ]
    assert parity.compare(facts).differences[0].tie == "w1"
    # The reference is alone, two pairs tie: the first host of a pair decides.
    facts = {host: node(torch=version) for host, version in zip(["head", "a", "b", "c", "d"], "12332")}
    (item,) = parity.compare(facts, reference="head").differences
    assert (item.expected, item.tie) == ("2", "a")


def test_what_stops_and_what_warns() -> None:
    facts = {"n1": node(), "n2": node(), "n3": node(system={"kernel": "6.2", "driver": ""})}
    found = parity.compare(facts)
    assert [item.item for item in found.strict] == ["driver"]
    assert parity.warnings(found) == ["Nodes differ in kernel: n3: 6.2; the other 2 nodes: 6.1"]
    message = parity.failure(found)
    assert "  driver  580.1     missing  n3" in message
    assert "Mend: bring driver on n3 to 580.1" in message
    assert "--tags python_env" not in message
    swapped = parity.compare(facts, strict=["kernel"], warned=["driver"])
    assert [item.item for item in swapped.strict] == ["kernel"]


def test_nccl_is_named_once() -> None:
    facts = {
        name: node(system={"nccl": version}, nvidia_nccl_cu13=version)
        for name, version in (("n1", "2.29.7"), ("n2", "2.29.7"), ("n3", "2.28.3"))
    }
    assert [item.item for item in parity.compare(facts).differences] == ["nvidia-nccl-cu13"]
    assert [item.item for item in parity.compare(facts, packages=["ray"]).differences] == ["nccl"]


def test_many_differences_are_summarised() -> None:
    many = {f"package{number}": "1" for number in range(100)}
    facts = {f"n{number}": node(**many) for number in range(6)} | {"n9": node(ray="1.0")}
    found = parity.compare(facts)
    assert len(found.differences) == 101
    lines = parity.failure(found).splitlines()
    assert len(lines) == 25
    assert lines[23] == "  ... and 81 more in the list 'differences' of this result"


def test_two_hundred_hosts() -> None:
    packages = {f"package{number}": "1.0" for number in range(200)}
    facts = {f"gpu{number}": node(**packages) for number in range(1, 201)}
    for host in ("gpu7", "gpu8", "gpu9", "gpu120"):
        facts[host] = node(**packages, ray="1.0")
    found = parity.compare(facts)
    (item,) = found.differences
    assert (item.expected_on, item.odd) == (196, {"1.0": ["gpu7", "gpu8", "gpu9", "gpu120"]})
    assert parity.failure(found).startswith("version mismatch: gpu[7-9,120] of 200 nodes differ from the rest in ray;")
    assert [len(group) for group in found.groups] == [196, 4]


@pytest.mark.parametrize(
    ("hosts", "short"),
    [
        (["gpu1", "gpu2", "gpu3", "gpu4", "gpu7"], "gpu[1-4,7]"),
        (["gpu10", "gpu9"], "gpu[9,10]"),
        (["gpu07", "gpu08", "gpu09", "gpu10"], "gpu[07-10]"),
        (["gpu1"], "gpu1"),
        (["login", "gpu1", "gpu2"], "login, gpu[1,2]"),
        (
            ["r1-gpu1.example.org", "r1-gpu2.example.org", "r2-gpu1.example.org"],
            "r1-gpu[1,2].example.org, r2-gpu1.example.org",
        ),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1, 10.0.0.2"),
        ([], ""),
    ],
)
def test_hosts_in_short(hosts: list[str], short: str) -> None:
    assert parity.abbreviated(hosts) == short


def test_the_table_fits_a_terminal() -> None:
    facts = {f"compute-node-{number:03d}": node(python="3.12.9") for number in range(1, 40)}
    for number in range(1, 40, 3):
        facts[f"compute-node-{number:03d}"] = node(
            python="3.12.3", a_package_with_a_long_name="1.0.0.dev20261125+cu130.abi"
        )
    lines = parity.table(parity.compare(facts).differences)
    assert len(lines) == 4 and all(len(line) <= 80 for line in lines)
    assert "compute-node-[001,00" in lines[2] and "…" in lines[2]


# --- what a comparison of real environments catches ------------------------------------------------------------------

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as python_env leaves one: packages, an editable source in a repository, a record."""
    place = tmp_path_factory.mktemp("built")
    environments.repository(place / "src")
    made = environments.make(place / "env")
    wheels = [environments.wheel(place / "wheels", name, version) for name, version in PACKAGES.items()]
    environments.install(made, *wheels, "-e", place / "src")
    record = {"hash": "1f" * 32, "lock": "smoke.txt", "entries": versions.fingerprint(made)}
    (made / versions.RECORD_FILE).write_text(json.dumps(record))
    return made


PACKAGES = {"click": "8.1.8", "torch": "2.7.0+cu128", "ray": "2.60.0"}


@pytest.fixture
def cluster(built: Path, tmp_path: Path) -> Callable[..., parity.Comparison]:
    """Three nodes with the same environment, of which the second was changed; on real files."""

    def compared(change: Change, recorded: bool = True) -> parity.Comparison:
        facts = {}
        for host in ("node1", "node2", "node3"):
            environment = environments.copy(built, tmp_path / host / "env")
            source = environments.copy(built.parent / "src", tmp_path / host / "src")
            for path in place_of(environment).glob("*trainer*"):
                for file in [path / "direct_url.json"] if path.is_dir() else [path]:
                    file.write_text(file.read_text().replace(str(built.parent), str(tmp_path / host)))
            record = json.loads((environment / versions.RECORD_FILE).read_text())
            # The path of the copy is in the list of the .pth file, too.
            (place_of(environment) / "trainer-1.0.dist-info" / "RECORD").write_text("")
            record["entries"] = versions.fingerprint(environment)
            (environment / versions.RECORD_FILE).write_text(json.dumps(record))
            if not recorded:
                (environment / versions.RECORD_FILE).unlink()
            if host == "node2":
                change(source if change.__name__.startswith("source") else environment)
            facts[host] = versions.read_versions(environment)
        return parity.compare(facts, reference="node1")

    return compared


def place_of(environment: Path) -> Path:
    found = versions.site_packages(environment)
    assert found is not None
    return found


def other_patch_level() -> str:
    """A Python of this one's minor version and another patch, or a stand-in that says that it is one."""
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in [
        Path(f"/usr/bin/python{minor}"),
        Path(f"/usr/local/bin/python{minor}"),
        *pyenv.glob(f"{minor}.*/bin/python"),
    ]:
        if path.exists() and versions.python_version(path) != versions.python_version(Path(sys.executable)):
            return str(path)
    return ""


def python_of_another_patch_level(environment: Path) -> None:
    python = environment / "bin" / "python"
    python.unlink()
    if other_patch_level():
        python.symlink_to(other_patch_level())
    else:
        python.write_text("#!/bin/sh\necho 3.11.99\n")
        python.chmod(0o755)


def edited(environment: Path) -> None:
    (place_of(environment) / "click" / "part.py").write_text("one = 2\n")


def reinstalled(environment: Path) -> None:
    other = environments.wheel(environment.parent, "click", "8.1.8", {"click/part.py": "one = 2\n"})
    environments.install(environment, other)


def removed(environment: Path) -> None:
    subprocess.run(
        [environments.UV, "pip", "uninstall", "--quiet", "--python", environment / "bin" / "python", "click"],
        check=True,
        capture_output=True,
    )


def torch_for_cpus(environment: Path) -> None:
    environments.install(environment, environments.wheel(environment.parent, "torch", "2.7.0+cpu"))


def another_lock(environment: Path) -> None:
    record = {"hash": "2e" * 32, "lock": "mine.txt", "entries": versions.fingerprint(environment)}
    (environment / versions.RECORD_FILE).write_text(json.dumps(record))


def stray(environment: Path) -> None:
    (place_of(environment) / "sitecustomize.py").write_text("")


def source_at_another_commit(source: Path) -> None:
    environments.commit(source, "two")


def source_edited(source: Path) -> None:
    (source / "trainer.py").write_text("steps = 2\n")


STAGE = "Mend: ansible-playbook -i INVENTORY metalray.cluster.site --tags python_env,ray --limit node2"


@pytest.mark.parametrize(
    ("change", "item", "told", "mend"),
    [
        (python_of_another_patch_level, "python", "", ""),
        (edited, "click", "8.1.8 edited", STAGE),
        (reinstalled, "click", "8.1.8 reinstalled", STAGE),
        (removed, "click", "missing", STAGE),
        (torch_for_cpus, "torch", "2.7.0+cpu", STAGE),
        (another_lock, "lock", "2e2e2e2e2e2e mine.txt", STAGE),
        (stray, "sitecustomize.py", "there", STAGE),
        (source_at_another_commit, "source trainer", "", "Mend: on node2: git -C {node2}/src fetch, then git -C {node2}/src checkout"),
        (source_edited, "source trainer, edits", "edited", "Mend: on node2: git -C {node2}/src stash"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_differs_on_one_node_is_named(
    cluster: Callable[..., parity.Comparison], tmp_path: Path, change: Change, item: str, told: str, mend: str
) -> None:
    found = cluster(change)
    (difference,) = found.strict
    assert (difference.item, difference.hosts) == (item, ["node2"])
    (value,) = difference.odd
    assert value.startswith(told) and value != difference.expected
    message = parity.failure(found)
    assert message.startswith(f"version mismatch: node2 of 3 nodes differs from the rest in {item};")
    assert mend.format(node2=tmp_path / "node2") in message
    assert found.groups == [["node1", "node3"], ["node2"]]


def test_equal_environments_in_other_places_do_not_differ(cluster: Callable[..., parity.Comparison]) -> None:
    assert cluster(lambda _environment: None).differences == []


def test_what_was_changed_by_hand_is_never_right() -> None:
    """The mend would be of no use: the stage leaves a node alone that is as locked."""
    facts = {host: node() for host in ("n1", "n2", "n3")}
    for host in ("n1", "n2"):
        facts[host].update(
            changed={"ray": {"how": "edited", "digest": "12345678", "files": ["ray/x.py"]}}, strays=["x.py"]
        )
    found = parity.compare(facts, reference="n1")
    assert [(item.item, item.expected, item.expected_on, item.hosts) for item in found.strict] == [
        ("ray", "2.60.0", 1, ["n1", "n2"]),
        ("x.py", "not there", 1, ["n1", "n2"]),
    ]
    assert parity.failure(found).endswith("--tags python_env,ray --limit n1,n2")
    # Where all have it, they are the same.
    facts["n3"] = facts["n1"]
    assert parity.compare(facts).differences == []


def test_the_edited_file_is_named(cluster: Callable[..., parity.Comparison]) -> None:
    assert "  edited on node2: click/part.py" in parity.failure(cluster(edited)).splitlines()


def test_other_files_under_the_same_version_stop_where_nobody_recorded_what_was_installed(
    cluster: Callable[..., parity.Comparison],
) -> None:
    (difference,) = cluster(reinstalled, recorded=False).strict
    assert (difference.item, difference.kind, difference.hosts) == ("click, its files", "files", ["node2"])


def test_other_files_that_were_installed_so_only_warn() -> None:
    facts = {f"n{number}": {**node(), "hash": "1f", "contents": {"ray": "aa", "torch": "bb"}} for number in range(3)}
    facts["n1"]["contents"] = {"ray": "cc", "torch": "bb"}
    found = parity.compare(facts)
    assert found.strict == []
    assert parity.warnings(found) == ["Nodes differ in ray, its files: n1: cc; the other 2 nodes: aa"]


def test_edits_that_nobody_can_tell_of_are_no_difference() -> None:
    """Git is installed on the head only, where the source was cloned."""
    facts = {}
    for host, edits in {"head": "12345678", "w1": None, "w2": None}.items():
        facts[host] = {**node(), "sources": {"trainer": {"path": "/src", "commit": "1a" * 20, "edits": edits}}}
    assert parity.compare(facts).differences == []


def test_the_distributions_python_is_mended_by_its_packages() -> None:
    facts = {host: {**node(python="3.11.2"), "interpreter": "/usr/bin/python3.11"} for host in ("a", "b", "c")}
    facts["c"]["python"] = "3.11.9"
    assert "Mend: bring the distribution's Python on c to 3.11.2" in parity.failure(parity.compare(facts))


# --- the action, in a play without any connection ------------------------------------------------------------------

PLAY = """
- name: Compare
  hosts: all
  gather_facts: false
  tasks:
    - name: Take the facts
      ansible.builtin.set_fact:
        package_versions: "{{ versions }}"
        cacheable: true
      when: versions is defined
    - name: Compare
      metalray.cluster.version_parity:
      run_once: true
"""


def play(tmp_path: Path, hosts: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "play.yml").write_text(PLAY)
    unreachable = {"ansible_connection": "ssh", "ansible_host": "192.0.2.1"}
    inventory = {
        "all": {
            "hosts": {name: {**unreachable, **({"versions": value} if value else {})} for name, value in hosts.items()},
            "children": {"head": {"hosts": {"n2": {}}}},
        }
    }
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml"]
    command = [str(tmp_path / word) if word.endswith(".yml") else word for word in command]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_action_passes_equal_hosts_and_warns(tmp_path: Path) -> None:
    done = play(tmp_path, {"n1": node(), "n2": node(system={"kernel": "6.2"}), "n3": None})
    assert done.returncode == 0, done.stdout
    assert "(a tie: n2 is taken to be right)" in " ".join((done.stdout + done.stderr).split())


def test_the_action_stops_every_host(tmp_path: Path) -> None:
    done = play(tmp_path, {"n1": node(), "n2": node(), "n3": node(torch="2.12.0")}, "--check")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "torch 2.13.0 2.12.0 n3" in said
    assert "--tags python_env,ray --limit n3" in said
    assert "Traceback" not in done.stdout + done.stderr
