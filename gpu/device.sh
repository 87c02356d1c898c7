#!/usr/bin/env bash
# Measures everything that needs a GPU in one call of ten minutes:
#   bash gpu/device.sh
# See docs/results/performance.md, "On a GPU". The wheels that the machine lacks (those of
# gpu/speed.sh; pytest, pluggy and iniconfig for the accelerator tests) lie in .whl. Results come
# back in $OUT as JSON, which is written again after every part, and as a log.
set -euo pipefail
cd "$(dirname "$0")/.."
if compgen -G ".whl/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target /tmp/site .whl/*.whl
  export PYTHONPATH="/tmp/site:src:."
else
  export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
out="${OUT:-/tmp}"
timeout 590 "${PYTHON:-python3}" -m lab.speed.device --work "${WORK:-/tmp/bases}" \
  --json "$out/device.json" "$@" 2>&1 | tee "$out/device.log"
