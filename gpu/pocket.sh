#!/usr/bin/env bash
# Trains pocket for some minutes on a machine with a GPU and brings its weights back; one call:
#   bash gpu/pocket.sh MINUTES
# It goes on from the packaged weights. The wheels that the machine lacks lie in .whl (see CONTRIBUTING.md); the training's state stays in
# /tmp/pocket-work there, so the next call on the same machine goes on. Weights come back as
# pieces of $OUT/weights.tar (cat them, untar into src/pinxit/pocket).
set -euo pipefail
cd "$(dirname "$0")/.."
if compgen -G ".whl/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target /tmp/site .whl/*.whl
fi
export PYTHONPATH="/tmp/site:src" PYTHONUNBUFFERED=1
[ -d /tmp/pocket-work ] || python3 lab/pocket/from_weights.py src/pinxit/pocket/weights /tmp/pocket-work
python3 -m pinxit.pocket train --work /tmp/pocket-work --minutes "${1:-7}" --threads 8
python3 -m pinxit.pocket package --work /tmp/pocket-work
tar -C src/pinxit/pocket -c weights | split -b 15M - "${OUT:-/tmp}/weights.tar."
