#!/usr/bin/env bash
# The same search for every method on the pocket base: learning rate (three, around the method's own) x steps x share of
# the views that shrink x concept.
#
#   experiments/recipes/search.sh [SETTING ...]      # 5 methods x 3 x 2 x 2 x 2 = 120 jobs; sent again, it goes on
#   python experiments/recipes/choose.py outputs/sweeps --out experiments/recipes/results
#
# A process a method, all on one GPU; without one, PARALLEL=1 takes them one after the other. Batch, schedule, views and
# prompts are the same for all; concepts of the search are dog and teapot, so that cat stays for the comparison.
set -u
mkdir -p outputs/sweeps
declare -A centre=([class_diffusion]=3e-4 [custom_diffusion]=3e-4 [textual_inversion]=2e-3 [dreambooth]=2e-5 [lora]=5e-4)

search() { # METHOD [SETTING ...]
    local rates
    rates=$(python3 -c "print(','.join(f'{${centre[$1]} * 2.0**k:.2e}' for k in (-1, 0, 1)))")
    python3 -m cdiff -m method="$1" concept=dog,teapot optimizer.learning_rate="$rates" train.steps=200,400 \
        name="recipe_$1" train.batch_size=2 optimizer.scale_learning_rate=true lr_schedule=cosine augment.views=128 \
        augment.shrink_probability=0,0.25 protocol=pocket train.then=[evaluate] probes.every=0 logger=none "${@:2}" \
        >"outputs/sweeps/recipe_$1.txt" 2>&1 || echo "$1: see outputs/sweeps/recipe_$1.txt"
}

for method in "${!centre[@]}"; do
    search "$method" "$@" &
    [ "${PARALLEL:-5}" -gt 1 ] || wait
done
wait
