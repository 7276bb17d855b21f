#!/usr/bin/env bash
# Every check that waits for a GPU, then the early-bird paper's cells on CIFAR-10, in calls of under ten minutes. Call it
# again until it says that nothing is left: a finished piece is not run twice, an unfinished one goes on where it was.
#
#   benchmarks/on_gpu.sh OUT [SUPPLIES [EARLIER]]
#
# OUT       receives small files: report.md, results.tar.gz and a few pictures.
# SUPPLIES  a folder with CIFAR-10 (binary or Python layout, or cifar-10-jpeg.tar.gz) and, in it or in its folder wheels,
#           wheels of what the machine lacks (make gpu-wheels). Nothing is downloaded.
# EARLIER   OUT of an earlier call, on a machine that is gone: what is finished there is not run again. Of no use where
#           OUT has results already, which are gone on with.
#
# DEVICE=cpu rehearses on a CPU with small stand-ins. WORK: folder for checkpoints, build/on_gpu. PIECE_SECONDS: of a
# call, 560. PIECES="gpu_tests cells_*": only these. CELLS: another list of cells. COMMIT: for the record, without git.
# Exit status: 0 all is done, 1 all is done but something failed or was left out, 75 call again, 2 nothing could run.
set -euo pipefail
: "${1:?"usage: benchmarks/on_gpu.sh OUT [SUPPLIES [EARLIER]]"}"
export STARTED; STARTED=$(date +%s)  # what comes before the first piece is part of a call's time
root=$(cd "$(dirname "$0")/.." && pwd)
export WORK=${WORK:-$root/build/on_gpu}
export PYTHONPATH=$WORK/site:$root${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
"$python" "$root/benchmarks/gpu_supplies.py" "$WORK/site" "${2:-}" || exit 2
exec "$python" "$root/benchmarks/on_gpu.py" "$@"
