#!/usr/bin/env bash
# Every number of the README's results table: train, evaluate, keep the raw returns.
#     bash benchmarks/laptop.sh DATASET_ID...        (from the repository's root)
set -euo pipefail
for dataset in "$@"; do
    for seed in 0 1 2; do
        name="${dataset//\//-}-s$seed"
        python scripts/train.py --dataset-id "$dataset" --preset laptop --seed "$seed" \
            --guidance-scales 0 1 2 3 5 --n-episodes 50 --run-dir "runs/laptop/$name" --threads 1
        cp "runs/laptop/$name/evaluation.json" "benchmarks/laptop/$name.json"
    done
done
