#!/usr/bin/env bash
# The whole claim: experiment=claim with a process an arm and concept, two at a time on each GPU; without a GPU,
# PARALLEL=1 takes them one after the other.
#
#   experiments/claim/run.sh [SETTING ...]      # 6 arms x 6 concepts x 5 seeds x 3 step counts = 540 jobs
#   CONCEPTS="dog rabbit" experiments/claim/run.sh seed=1,2 train.steps=1000
#
# Sent again, it goes on with what is not done. GPUS="0 1": only these. Ends in outputs/claim/claim.md.
set -u
mkdir -p outputs/sweeps
read -ra gpus <<<"${GPUS-$(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p' | tr '\n' ' ')}"

part() { # [SETTING ...] ARM CONCEPT
    local arm="${*: -2:1}" concept="${*: -1}" gpus
    read -ra gpus <<<"$DEVICES"
    [ ${#gpus[@]} -eq 0 ] || export CUDA_VISIBLE_DEVICES="${gpus[SLOT % ${#gpus[@]}]}"
    python3 -m cdiff -m experiment=claim arm="$arm" concept="$concept" name="claim_${arm}_$concept" logger=none \
        "${@:1:$#-2}" >"outputs/sweeps/claim_${arm}_$concept.txt" 2>&1 ||
        echo "$arm, $concept: see outputs/sweeps/claim_${arm}_$concept.txt"
}
[ ${#gpus[@]} -gt 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # processes that share cores with threads wait
export -f part
export DEVICES="${gpus[*]}"

for arm in ${ARMS:-plain spl_10 spl_1 spl_01 prior adjust}; do
    for concept in ${CONCEPTS:-dog cat rabbit teapot backpack car}; do echo "$arm $concept"; done
done | xargs -L 1 -P "${PARALLEL:-$((${#gpus[@]} ? 2 * ${#gpus[@]} : 2))}" --process-slot-var=SLOT bash -c 'part "$@"' part "$@"
python3 experiments/claim/analyse.py outputs/sweeps/claim_* --out outputs/claim
