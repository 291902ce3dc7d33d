#!/usr/bin/env bash
# Makes the pocket base and its judge (vae, clip, probe, unet) from nothing on one host with two GPUs, within a fixed time.
#
#   experiments/pocket/make_base.sh FOLDER [SECONDS [SETTING ...]]
#
# Every stage starts as early as it can and has a deadline, so that a slow compilation shortens one stage and not the whole:
#   GPU 0   vae ........... | unet, on both
#   GPU 1   clip, probe ... |
#   CPU     pictures, and the judge's pictures
# Logs are FOLDER/log/STAGE.txt, weights FOLDER/weights. Afterwards: make_rest.sh, stages scores and card.
set -u
folder=${1:?usage: make_base.sh FOLDER [SECONDS [SETTING ...]]}
total=${2:-1330}
start=$(date +%s)
cores=$(getconf _NPROCESSORS_ONLN)
launch=${LAUNCH:---multi_gpu --num_processes 2 --mixed_precision no --dynamo_backend no}
mkdir -p "$folder/log"
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1

at() { echo $((start + total * $1 / 1000)); } # thousandths of the whole, as unix time
stage() { # GPU STAGE [SETTING ...]
    CUDA_VISIBLE_DEVICES=$1 python3 -m cdiff task=pretrain pretrain.stage="$2" pretrain.folder="$folder" "${@:3}" \
        >"$folder/log/$2.txt" 2>&1 || echo "stage $2 failed: see $folder/log/$2.txt"
}
settings=("${@:3}")

nice -n 10 bash -c "$(declare -f stage); folder=$folder; stage '' pictures pretrain.workers=$((cores / 2)) ${settings[*]}" &
nice -n 10 bash -c "$(declare -f stage); folder=$folder; stage '' judge pretrain.workers=$((cores / 4)) ${settings[*]}" &
rendering=$!
until [ -f "$folder/pictures/pictures.json" ] && [ -f "$folder/judge/pictures.json" ]; do
    kill -0 $rendering 2>/dev/null || break
    sleep 1
done

stage 0 vae pretrain.deadline="$(at 350)" "${settings[@]}" &
{
    stage 1 clip pretrain.deadline="$(at 205)" "${settings[@]}"
    stage 1 probe pretrain.settings.probe.wait=true pretrain.settings.probe.patience="$total" \
        pretrain.deadline="$(at 350)" "${settings[@]}"
} &
# shellcheck disable=SC2086
python3 -m accelerate.commands.launch $launch -m cdiff task=pretrain pretrain.stage=unet pretrain.folder="$folder" \
    pretrain.settings.unet.wait=true pretrain.settings.unet.patience="$total" pretrain.deadline="$(at 1000)" \
    "${settings[@]}" >"$folder/log/unet.txt" 2>&1 || echo "stage unet failed: see $folder/log/unet.txt"
wait
echo "made in $(($(date +%s) - start)) s"
