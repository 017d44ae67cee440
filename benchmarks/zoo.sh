#!/usr/bin/env bash
# Datasets like the zoo/…-v0 of the results, from the same policies of the RL Zoo; other episodes, so
# they are v1. Medium: SAC (Hopper), PPO (HalfCheetah), 100,000 steps of sampled actions;
# medium-expert: 50,000 of these and 50,000 of TQC. Two minutes.
#     git clone https://github.com/DLR-RM/rl-trained-agents
#     bash benchmarks/zoo.sh rl-trained-agents        (from the repository's root)
#     sed 's/-v0/-v1/' benchmarks/locomotion.toml > mine.toml
set -euo pipefail
zoo=${1:?expected the folder of rl-trained-agents, see above}
collect() {  # dataset, environment, steps, seed, policy, …
    python scripts/collect.py --dataset-id "zoo/$1-v1" --env-id "$2" --n-steps "$3" --seed "$4" \
        --policy "$zoo/$5" "${@:6}"
}
medium_and_expert() {  # name, environment, medium policy, expert policy, …
    collect "$1/medium" "$2" 100000 0 "$3" "${@:5}"
    collect "$1/medium-half" "$2" 50000 1 "$3" "${@:5}"
    collect "$1/expert-half" "$2" 50000 2 "$4"
    python scripts/data.py combine "zoo/$1/medium-half-v1" "zoo/$1/expert-half-v1" \
        --dataset-id "zoo/$1/medium-expert-v1"
}
medium_and_expert hopper Hopper-v5 sac/Hopper-v3_1/Hopper-v3.zip tqc/Hopper-v3_1/Hopper-v3.zip
medium_and_expert halfcheetah HalfCheetah-v5 ppo/HalfCheetah-v3_1/HalfCheetah-v3.zip \
    tqc/HalfCheetah-v3_1/HalfCheetah-v3.zip \
    --vecnormalize "$zoo/ppo/HalfCheetah-v3_1/HalfCheetah-v3/vecnormalize.pkl"
