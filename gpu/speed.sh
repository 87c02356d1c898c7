#!/usr/bin/env bash
# Measures pinxit against the plain loop on a machine with a GPU, at the shapes of SD 1.5 and
# 512x512 pixels, in one call of less than ten minutes:
#   bash gpu/speed.sh
# The wheels that the machine lacks (diffusers, importlib_metadata, pydantic, pydantic_core,
# annotated_types, typing_inspection; peft if it is older than 0.21) lie in .whl. Results come back
# as JSON in $OUT, after every job anew: one file for one concept, one for eight in a batch.
# To try it where there is no GPU: DEVICE=cpu BASE=some/folder SIZE=32 STEPS=2 bash gpu/speed.sh
source "$(dirname "$0")/environment.sh"
common=(--base "${BASE:-sd15}" --device "${DEVICE:-cuda}" --size "${SIZE:-512}")
common+=(--work "${WORK:-/tmp/bases}")

# Each job is a process of about 20 seconds, most of them loading: 16 jobs, then 4.
timeout 380 "$python" -m lab.speed "${common[@]}" --rounds 2 --steps "${STEPS:-20}" \
  --json "$out/speed-one.json" 2>&1 | tee "$out/speed-one.log"
timeout 180 "$python" -m lab.speed "${common[@]}" --rounds 1 --steps "${STEPS:-20}" \
  --methods textual-inversion lora --concepts 8 \
  --json "$out/speed-eight.json" 2>&1 | tee "$out/speed-eight.log"
