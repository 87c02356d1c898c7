#!/usr/bin/env bash
# Trains pocket for some minutes on a machine with a GPU and brings its weights back; one call:
#   bash gpu/pocket.sh MINUTES
# It continues from the packaged weights. The wheels that the machine lacks lie in .whl (see
# CONTRIBUTING.md); the state of the training stays in /tmp/pocket-work there, so that the next call
# on the same machine continues. Weights come back as pieces of $OUT/weights.tar (cat them, untar
# into src/pinxit/pocket).
source "$(dirname "$0")/environment.sh"
[ -d /tmp/pocket-work ] || "$python" lab/pocket/from_weights.py src/pinxit/pocket/weights /tmp/pocket-work
"$python" -m pinxit.pocket train --work /tmp/pocket-work --minutes "${1:-7}" --threads 8
"$python" -m pinxit.pocket package --work /tmp/pocket-work
tar -C src/pinxit/pocket -c weights | split -b 15M - "$out/weights.tar."
