#!/usr/bin/env bash
# Makes the remaining pocket models (identity, blip, motion) on one GPU, beside the base that make_base.sh made.
#
#   experiments/pocket/make_rest.sh FOLDER [SECONDS [SETTING ...]]
#   STAGES=motion experiments/pocket/make_rest.sh FOLDER [...]     # of the three only these, in equal shares of the time
set -u
folder=${1:?usage: make_rest.sh FOLDER [SECONDS [SETTING ...]]}
total=${2:-540}
start=$(date +%s)
mkdir -p "$folder/log"
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1

at() { echo $((start + total * $1 / 1000)); } # thousandths of the whole, as unix time
stage() { # STAGE [SETTING ...]
    python3 -m cdiff task=pretrain pretrain.stage="$1" pretrain.folder="$folder" "${@:2}" \
        >"$folder/log/$1.txt" 2>&1 || echo "stage $1 failed: see $folder/log/$1.txt"
}
settings=("${@:3}")
read -ra stages <<<"${STAGES:-identity blip motion}"

{
    stage pictures pretrain.workers=$(($(getconf _NPROCESSORS_ONLN) * 3 / 8)) "${settings[@]}"
} &
{
    stage clips pretrain.workers=$(($(getconf _NPROCESSORS_ONLN) * 3 / 8)) "${settings[@]}"
} &
rendering=$!
until [ -f "$folder/pictures/pictures.json" ] && [ -f "$folder/clips/clips.json" ]; do
    kill -0 $rendering 2>/dev/null || break
    sleep 1
done
count=0
for name in "${stages[@]}"; do
    count=$((count + 1))
    stage "$name" pretrain.deadline="$(at $((1000 * count / ${#stages[@]})))" "${settings[@]}"
done
wait
echo "made in $(($(date +%s) - start)) s"
