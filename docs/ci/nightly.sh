#!/usr/bin/env bash
# What docs/ci/crontab calls: brings the checkout to the newest main, gates it, keeps the results by date.
# Environment: COGBENCH_CHECKOUT and COGBENCH_RESULTS (folders), COGBENCH_RECIPES (default: the four below).
set -euo pipefail
cd "${COGBENCH_CHECKOUT:?set it to the checkout}"
results=${COGBENCH_RESULTS:?set it to a folder for results}/$(date -u +%Y-%m-%d)

git fetch --quiet origin main
git checkout --quiet --detach origin/main
if [ -f /usr/local/Ascend/ascend-toolkit/set_env.sh ]; then
  set +u # the vendor's script reads variables that are not set
  source /usr/local/Ascend/ascend-toolkit/set_env.sh
  set -u
fi
python3.11 -m venv .venv
.venv/bin/pip install --quiet -e .
export COGBENCH="$PWD/.venv/bin/cogbench"

read -r -a recipes <<<"${COGBENCH_RECIPES:-recipes/ascend910/encode_text.yaml \
recipes/ascend910/generate_768x1360x81.yaml recipes/ascend910/lora_768x1360x81.yaml \
recipes/ascend910/sft_768x1360x77_8p.yaml}"
exec docs/ci/gate_pool.sh "$results" "${recipes[@]}"
