#!/usr/bin/env bash
# Make the built-in policy's weights anew: demonstrations by the scripted experts, then cloning. About 10 minutes on
# two cores. How much is cloned decides where reinforcement learning starts; see docs/policy.md for what it measures.
set -euo pipefail
cd "$(dirname "$0")/.."
vlacoach="${VLACOACH:-.venv/bin/vlacoach}"
work="${1:-build/tiny}"

"$vlacoach" demos collect --suite libero_goal --tasks 1,4,6,8 --episodes 30 --noise 0.25 \
    --render-profile coarse --out "$work/demos"
"$vlacoach" sft --demos "$work/demos" --steps 450 --learning-rate 1e-3 --dtype bf16 --out "$work/policy" --overwrite
cp "$work/policy/model.safetensors" "$work/policy/config.json" "$work/policy/dataset_statistics.json" \
    "$work/policy/tokenizer.json" vlacoach/policies/assets/tiny/
