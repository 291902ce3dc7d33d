#!/usr/bin/env bash
# The whole claim: experiment=claim with a process an arm, spread over the GPUs there are; without one, PARALLEL=1 takes
# them in turn.
#
#   experiments/claim/run.sh [SETTING ...]      # 6 arms x 6 concepts x 5 seeds x 3 step counts = 540 jobs
#   experiments/claim/run.sh concept=dog,rabbit seed=1,2 train.steps=1000
#
# Sent again, it goes on with what is not done. Ends in experiments/claim/results/claim.md.
set -u
mkdir -p outputs/sweeps
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
count=0

arm() { # ARM [SETTING ...]
    python3 -m cdiff -m experiment=claim arm="$1" name="claim_$1" logger=none "${@:2}" \
        >"outputs/sweeps/claim_$1.txt" 2>&1 || echo "$1: see outputs/sweeps/claim_$1.txt"
}

for name in plain spl_01 spl_1 spl_10 prior adjust; do
    [ "$gpus" -eq 0 ] || export CUDA_VISIBLE_DEVICES=$((count++ % gpus))
    arm "$name" "$@" &
    [ "${PARALLEL:-6}" -gt 1 ] || wait
done
wait
python3 experiments/claim/analyse.py outputs/sweeps/claim_* --out experiments/claim/results
