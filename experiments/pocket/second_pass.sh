#!/usr/bin/env bash
# Goes on with the UNet of a base that is there, on pictures of which more show two subjects, and makes the other pocket
# models (identity, blip, motion) beside it. One host with two GPUs; FOLDER/weights holds the base of make_base.sh.
#
#   experiments/pocket/second_pass.sh FOLDER [SECONDS [SETTING ...]]
#
#   GPU 0   unet ................... | scores
#   GPU 1   identity, blip, motion . |
#   CPU     pictures and clips
# STAGES=motion makes only the motion adapter beside the UNet, and gives it all of the time.
# Logs are FOLDER/log/STAGE.txt, measured scores FOLDER/log/scores.txt. With a single GPU: make_rest.sh, then the unet.
set -u
folder=${1:?usage: second_pass.sh FOLDER [SECONDS [SETTING ...]]}
total=${2:-1380}
start=$(date +%s)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=("pretrain.settings.pictures.pair=0.3" "${@:3}")
[ -f "$folder/weights/base/unet/config.json" ] || { echo "$folder/weights holds no unet to go on from" >&2; exit 2; }
mkdir -p "$folder/log"
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1

CUDA_VISIBLE_DEVICES=1 "$here/make_rest.sh" "$folder" $((total * 85 / 100)) "${settings[@]}" &
until [ -f "$folder/pictures/pictures.json" ]; do
    kill -0 $! 2>/dev/null || { echo "no pictures: see $folder/log/pictures.txt" >&2; exit 1; }
    sleep 1
done
CUDA_VISIBLE_DEVICES=0 python3 -m cdiff task=pretrain pretrain.stage=unet pretrain.folder="$folder" \
    pretrain.settings.unet.warm_start=true pretrain.settings.unet.learning_rate=6e-4 \
    pretrain.deadline=$((start + total * 85 / 100)) "${settings[@]}" >"$folder/log/unet.txt" 2>&1 ||
    echo "stage unet failed: see $folder/log/unet.txt"
wait
CUDA_VISIBLE_DEVICES=0 python3 -m cdiff task=pretrain pretrain.stage=scores pretrain.folder="$folder" \
    "${settings[@]}" >"$folder/log/scores.txt" 2>&1 || echo "stage scores failed: see $folder/log/scores.txt"
echo "made in $(($(date +%s) - start)) s"
