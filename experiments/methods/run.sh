#!/usr/bin/env bash
# experiment=methods with a process a method, spread over the GPUs there are; without one, PARALLEL=1 takes them in turn.
#
#   experiments/methods/run.sh [SETTING ...]         # 5 methods x 3 concepts x 3 seeds = 45 jobs; sent again, it goes on
#   python experiments/methods/table.py outputs/sweeps --out experiments/methods/results
#
# The same in one process: python -m cdiff -m experiment=methods name=methods
set -u
mkdir -p outputs/sweeps
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
count=0

for method in class_diffusion custom_diffusion textual_inversion dreambooth lora; do
    [ "$gpus" -eq 0 ] || export CUDA_VISIBLE_DEVICES=$((count++ % gpus))
    python3 -m cdiff -m experiment=methods method="$method" name="methods_$method" logger=none "$@" \
        >"outputs/sweeps/methods_$method.txt" 2>&1 || echo "$method: see outputs/sweeps/methods_$method.txt" &
    [ "${PARALLEL:-5}" -gt 1 ] || wait
done
wait
