#!/usr/bin/python
# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: training_dataset
short_description: Make the dataset of terminal-bench-rl, all of it
version_added: 0.1.0
description:
  - Runs the repository's own converter until every row of its table is a whole task, judged by the task's files and not by
    the converter's exit status, which is 0 after failures too. Then it writes the Parquet files and checks their rows and
    columns.
  - Each task is made in a directory of its own and moved among the others when it is whole. A task that lacks something, or
    was made from an older row, is made again. An interrupted run goes on where it was.
  - The tool C(tb) is told beforehand what it would ask at its first start, and runs from the given environment. C(uv) is kept
    from changing that environment and from making another one.
  - The controller runs the module in short rounds and prints how many tasks are done.
author:
  - The metalray contributors (@metalray)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and say what it would make.
  diff_mode:
    support: none
    description: The tasks are thousands of files; their number is told.
  idempotent:
    support: full
    description: A finished dataset costs one look at its files.
  async:
    support: none
    description: The rounds are short.
options:
  source:
    description: The checkout of the repository.
    type: path
    required: true
  venv:
    description: The virtual environment, which has C(tb), pandas and pyarrow.
    type: path
    required: true
  csv:
    description: The table of tasks. By default C(dataset/latest_verified.csv) of the source.
    type: path
  workers:
    description: How many tasks are made at the same time. V(0) is one a CPU, and 16 at most.
    type: int
    default: 0
  attempts:
    description: How often a task is tried before it counts as failed.
    type: int
    default: 3
  timeout:
    description: Seconds for one task, and for the Parquet files.
    type: int
    default: 300
  reconnect_timeout:
    description: How many seconds in a row the host may be out of reach between two rounds.
    type: int
    default: 600
  follow:
    description: Where to go on. For the action plugin, which runs the module again and again. Not for playbooks.
    type: dict
    suboptions:
      skip:
        description: Tasks that failed in this run.
        type: list
        elements: str
        default: []
      seconds:
        description: How long to begin new tasks.
        type: float
        default: 10
notes:
  - Run it as the account that owns the source.
"""

EXAMPLES = r"""
- name: Make the dataset
  become: true
  become_user: ray
  metalray.cluster.training_dataset:
    source: /mnt/shared/src/terminal-bench-rl
    venv: /opt/metalray/venv
"""

RETURN = r"""
done:
  description: How many rows are whole tasks.
  returned: success
  type: int
  sample: 331
total:
  description: How many rows there are.
  returned: success
  type: int
  sample: 331
rows:
  description: Rows of each Parquet file.
  returned: when they are there
  type: dict
  sample: {data/train.parquet: 331, data/val.parquet: 1}
"""

import os
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._training_dataset import DatasetError, Settings, failure, one_round


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "venv": {"type": "path", "required": True},
            "csv": {"type": "path"},
            "workers": {"type": "int", "default": 0},
            "attempts": {"type": "int", "default": 3},
            "timeout": {"type": "int", "default": 300},
            "reconnect_timeout": {"type": "int", "default": 600},
            "follow": {
                "type": "dict",
                "options": {
                    "skip": {"type": "list", "elements": "str", "default": []},
                    "seconds": {"type": "float", "default": 10},
                },
            },
        },
        supports_check_mode=True,
    )
    options = module.params
    follow = options["follow"] or {"skip": [], "seconds": 10}
    source = Path(options["source"])
    for name, least in (("workers", 0), ("attempts", 1), ("timeout", 1)):
        if options[name] < least:
            module.fail_json(msg=f"training_dataset_{name} is {options[name]}, and must be {least} or more")
    settings = Settings(
        source,
        Path(options["venv"]),
        Path(options["csv"] or source / "dataset/latest_verified.csv"),
        options["workers"] or min(16, os.cpu_count() or 1),
        options["attempts"],
        follow["seconds"],
        options["timeout"],
    )
    if module.check_mode and not source.is_dir():
        module.exit_json(changed=True, finished=True, done=0, total=0, msg=f"would make the dataset in {source}")
    try:
        result = one_round(settings, follow["skip"], module.check_mode)
    except (DatasetError, OSError) as error:
        module.fail_json(msg=str(error))
    told = {name: value for name, value in asdict(result).items() if value or name in ("changed", "done", "finished")}
    if result.finished and result.unmade:
        module.fail_json(**{**told, "msg": failure(result.done, result.total, result.unmade, settings.attempts)})
    module.exit_json(**told)


if __name__ == "__main__":
    main()
