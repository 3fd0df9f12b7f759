# A stand-in: see README.md two directories above.
"""Overwrites a file of the submodule: the tree is dirty from then on."""

from pathlib import Path

path = Path(__file__).parent / "../external/rllm/rllm/trainer/env_agent_mappings.py"
backup = path.with_suffix(".py.backup")
if not backup.exists():
    backup.write_text(path.read_text())
path.write_text('NAMES = ["terminal_bench"]\n')
