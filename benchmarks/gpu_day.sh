#!/usr/bin/env bash
# All that is to be seen on a GPU, without a network, in at most eight minutes: benchmarks/gpu_day.sh FOLDER [--dry]
# Needs torch for CUDA and this project installed; PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
# each part is a process: block sizes that one has tuned are kept for the next
export TRITON_CACHE_AUTOTUNING=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
case " $* " in *" --dry "*) export TRITON_INTERPRET=1 ;; esac # read when Triton is imported
exec "${PYTHON:-python}" benchmarks/gpu_day.py "$@"
