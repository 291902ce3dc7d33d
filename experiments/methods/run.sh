#!/usr/bin/env bash
# experiment=methods with a process a method and concept, spread over the GPUs there are; without one, PARALLEL=1 takes
# them in turn.
#
#   experiments/methods/run.sh [SETTING ...]         # 5 methods x 3 concepts x 3 seeds = 45 jobs; sent again, it goes on
#   METHODS="lora dreambooth" experiments/methods/run.sh
#   python experiments/methods/table.py outputs/sweeps --out experiments/methods/results
#
# The same in one process, but for where class_diffusion's token starts: python -m cdiff -m experiment=methods name=methods
set -u
mkdir -p outputs/sweeps
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
count=0

compare() { # METHOD CONCEPT [SETTING ...]; all that train a token start it from the class word
    [ "$1" != class_diffusion ] || set -- "$1" "$2" method.initializer=class_word "${@:3}"
    python3 -m cdiff -m experiment=methods method="$1" concept="$2" name="methods_$1_$2" logger=none "${@:3}" \
        >"outputs/sweeps/methods_$1_$2.txt" 2>&1 || echo "$1, $2: see outputs/sweeps/methods_$1_$2.txt"
}

for method in ${METHODS:-class_diffusion custom_diffusion textual_inversion dreambooth lora}; do
    for concept in dog cat teapot; do
        [ "$gpus" -eq 0 ] || export CUDA_VISIBLE_DEVICES=$((count++ % gpus))
        compare "$method" "$concept" "$@" &
        [ "${PARALLEL:-15}" -gt 1 ] || wait
    done
done
wait
