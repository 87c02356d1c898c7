#!/usr/bin/env bash
# Measures everything that needs a GPU in one call of ten minutes:
#   bash gpu/device.sh
# See docs/results/performance.md, "On a GPU". The wheels that the machine lacks (those of
# gpu/speed.sh; pytest, pluggy and iniconfig for the accelerator tests) lie in .whl. Results come
# back in $OUT as JSON, which is written again after every part, and as a log.
source "$(dirname "$0")/environment.sh"
timeout 590 "$python" -m lab.speed.device --work "${WORK:-/tmp/bases}" \
  --json "$out/device.json" "$@" 2>&1 | tee "$out/device.log"
