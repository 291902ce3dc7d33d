#!/usr/bin/env bash
# The same search for every method on the pocket base: learning rate (three, around the method's centre) x steps x concept.
#
#   experiments/recipes/search.sh [SETTING ...]      # 5 methods x 3 x 2 x 2 = 60 jobs; sent again, it goes on
#   python experiments/recipes/choose.py outputs/sweeps --out experiments/recipes/results
#
# A process a method and concept, spread over the GPUs there are; without one, PARALLEL=1 takes them one after the other.
# Batch, schedule, views and prompts are the same for all; concepts of the search are dog and teapot, so that cat stays
# for the comparison.
set -u
mkdir -p outputs/sweeps
declare -A centre=([class_diffusion]=3e-4 [custom_diffusion]=3e-4 [textual_inversion]=5e-3 [dreambooth]=4e-5 [lora]=1e-3)
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
count=0

search() { # METHOD CONCEPT [SETTING ...]
    local rates
    [ "$1" != class_diffusion ] || set -- "$1" "$2" method.initializer=class_word "${@:3}" # as the others that train one
    rates=$(python3 -c "print(','.join(f'{${centre[$1]} * 2.0**k:.2e}' for k in (-1, 0, 1)))")
    python3 -m cdiff -m method="$1" concept="$2" optimizer.learning_rate="$rates" train.steps=200,400 \
        name="recipe_$1_$2" train.batch_size=2 optimizer.scale_learning_rate=true lr_schedule=cosine augment.views=128 \
        augment.shrink_probability=0 protocol=pocket train.then=[evaluate] probes.every=0 logger=none "${@:3}" \
        >"outputs/sweeps/recipe_$1_$2.txt" 2>&1 || echo "$1, $2: see outputs/sweeps/recipe_$1_$2.txt"
}

for method in "${!centre[@]}"; do
    for concept in dog teapot; do
        [ "$gpus" -eq 0 ] || export CUDA_VISIBLE_DEVICES=$((count++ % gpus))
        search "$method" "$concept" "$@" &
        [ "${PARALLEL:-10}" -gt 1 ] || wait
    done
done
wait
