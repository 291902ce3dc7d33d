#!/usr/bin/env bash
# Makes every pocket model from nothing on one host with two GPUs, within a fixed time (27 minutes by default).
#
#   experiments/pocket/make.sh FOLDER [SECONDS]
#
# Each phase has a deadline, so that a slow compilation shortens one stage and not the whole:
#   GPU 0   vae ................... | unet (both GPUs) .......... | motion
#   GPU 1   clip, probe, identity   |                             | blip
#   CPU     pictures, then clips
# Logs are FOLDER/log/STAGE.txt, weights FOLDER/weights. Afterwards: stages scores and card.
set -u
folder=${1:?usage: make.sh FOLDER [SECONDS]}
total=${2:-1620}
start=$(date +%s)
workers=$(($(nproc) - 6))
mkdir -p "$folder/log"
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1

at() { echo $((start + total * $1 / 1000)); } # thousandths of the whole, as unix time
stage() { # GPU STAGE [SETTING ...]
    CUDA_VISIBLE_DEVICES=$1 python3 -m cdiff task=pretrain pretrain.stage="$2" pretrain.folder="$folder" "${@:3}" \
        >"$folder/log/$2.txt" 2>&1 || echo "stage $2 failed: see $folder/log/$2.txt"
}
both() { # STAGE [SETTING ...]
    python3 -m accelerate.commands.launch --multi_gpu --num_processes 2 --mixed_precision no --dynamo_backend no -m cdiff \
        task=pretrain pretrain.stage="$1" pretrain.folder="$folder" "${@:2}" \
        >"$folder/log/$1.txt" 2>&1 || echo "stage $1 failed: see $folder/log/$1.txt"
}

{
    stage "" pictures pretrain.workers="$workers"
    stage "" clips pretrain.workers="$workers"
} &
while [ ! -f "$folder/pictures/pictures.json" ]; do sleep 1; done

{
    stage 1 clip pretrain.deadline="$(at 190)"
    stage 1 probe pretrain.deadline="$(at 270)"
    stage 1 identity pretrain.deadline="$(at 355)"
} &
judges=$!
stage 0 vae pretrain.deadline="$(at 360)"
wait $judges

both unet pretrain.deadline="$(at 840)"

stage 0 motion pretrain.deadline="$(at 990)" &
motion=$!
stage 1 blip pretrain.deadline="$(at 980)"
wait $motion
echo "made in $(($(date +%s) - start)) s"
