#!/bin/sh
# A stand-in: see README.md two directories above.
set -x
export NCCL_DEBUG=WARN
PYTHONPATH="$(pwd):$(pwd)/external/rllm"
export PYTHONPATH
python3 -m rllm.trainer.verl.train_agent_ppo \
  data.train_files=./data/train.parquet \
  trainer.project_name="$PROJECT_NAME" \
  trainer.experiment_name="$EXPERIMENT_NAME" \
  trainer.nnodes="$NNODES" \
  trainer.save_freq="$SAVE_FREQ" \
  "$@"
