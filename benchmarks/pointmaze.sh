#!/usr/bin/env bash
# PointMaze from end to end: data of the noisy waypoint controller, the laptop preset, success rates
# of 100 episodes at w = 0 and 1. The raw returns are kept in benchmarks/pointmaze.
#     bash benchmarks/pointmaze.sh        (from the repository's root)
set -euo pipefail
export MINARI_DATASETS_PATH="${MINARI_DATASETS_PATH:-$PWD/runs/pointmaze/datasets}"
measure() {  # maze, environment, steps of data
    [ -d "$MINARI_DATASETS_PATH/mine/pointmaze/$1-v0" ] || python scripts/collect.py --env-id "$2" --policy waypoints --n-steps "$3" --seed 0 \
        --dataset-id "mine/pointmaze/$1-v0"
    python scripts/train.py --dataset-id "mine/pointmaze/$1-v0" --preset laptop --seed 0 \
        --run-dir "runs/pointmaze/$1" --overwrite --threads 1
    cp "runs/pointmaze/$1/evaluation.json" "benchmarks/pointmaze/$1-s0.json"
}
mkdir -p benchmarks/pointmaze
measure umaze PointMaze_UMaze-v3 50000
measure medium PointMaze_Medium-v3 100000
python -c 'from pathlib import Path; from qgpo.experiments.packing import pack
pack(Path("benchmarks/pointmaze"))'
