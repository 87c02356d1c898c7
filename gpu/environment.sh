# Sourced by the scripts beside it: the packages in .whl that the machine lacks, and the paths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if compgen -G ".whl/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target /tmp/site .whl/*.whl
  export PYTHONPATH="/tmp/site:src:."
else
  export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
out="${OUT:-/tmp}"
python="${PYTHON:-python3}"
