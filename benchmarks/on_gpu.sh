#!/usr/bin/env bash
# Every check that waits for a GPU, in pieces of under ten minutes. Call it again until it says that all is done: a
# finished piece is not run twice, an unfinished one goes on where it was.
#
#   benchmarks/on_gpu.sh OUT [WHEELS]
#
# OUT receives small results only. WHEELS is a folder with wheels for what the machine lacks; nothing is downloaded.
# DEVICE=cpu rehearses on a CPU. DATA_ROOT names a folder with CIFAR-10, for the study of detectors.
set -uo pipefail
out=${1:?"usage: benchmarks/on_gpu.sh OUT [WHEELS]"}
device=${DEVICE:-cuda}
work=${WORK:-$out/work}
piece_seconds=${PIECE_SECONDS:-560}
cd "$(dirname "$0")/.."
mkdir -p "$out" "$work"

if [ -n "${2:-}" ] && [ ! -e "$work/site" ]; then
  python3 -m pip install --quiet --no-index --no-deps --target "$work/site" "$2"/*.whl || exit 1
  python3 -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$work/site" . || exit 1
fi
[ -e "$work/site" ] && export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"

missing=$(python3 - <<'PY'
from importlib.util import find_spec
needed = "torch numpy qtorch torch_pruning sklearn safetensors pydantic ruamel.yaml typer rich matplotlib filelock lowprec_eb"
print(*[name for name in needed.split() if find_spec(name.split(".")[0]) is None])
PY
)
if [ -n "$missing" ]; then
  echo "this machine lacks: $missing; give a folder of wheels as the second argument" >&2
  exit 1
fi

started=$SECONDS
piece() {  # NAME COMMAND...: run unless finished, within what is left of this call's time
  local name=$1; shift
  [ -e "$work/$name.done" ] && return 0
  local left=$((piece_seconds - (SECONDS - started)))
  [ "$left" -gt 20 ] || { echo "$name: waits for the next call"; return 1; }
  if timeout --signal=INT --kill-after=20 "$left" "$@" >"$out/$name.log" 2>&1; then
    touch "$work/$name.done"
    echo "$name: done"
  else
    local status=$?
    echo "$name: stopped with status $status, see $name.log (124: out of time, call again)"
    return 1
  fi
}

piece machine python3 -c "
import json, torch
from lowprec_eb.versions import versions
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({'gpu': gpu, **versions()}))" || exit 1
git rev-parse HEAD >"$out/commit" 2>/dev/null || echo unknown >"$out/commit"
if python3 -c 'import pytest' 2>/dev/null; then
  piece gpu_tests python3 -m pytest -m gpu tests/lowprec_eb/test_gpu.py || exit 1
else
  echo "gpu_tests: pytest is missing"
fi
if [ "$device" = cuda ]; then
  if python3 -c 'import pytest, triton' 2>/dev/null; then
    piece triton_tests env -u TRITON_INTERPRET python3 -m pytest tests/interop/test_triton.py || exit 1
  fi
  piece quantizers_gpu python3 benchmarks/quantizers_gpu.py "$out/quantizers_gpu.json" || exit 1
fi
sensors=() ; [ "$device" = cpu ] && sensors=(--quick --seconds 0.5)
piece energy_sensors python3 benchmarks/energy_sensors.py --device "$device" "${sensors[@]}" \
  --json "$out/energy_sensors.json" --windows "$out/energy_windows.jsonl" || exit 1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor  # what one call has compiled the next one need not
steps=(--device cuda --against "plain torch") models=(resnet18 gpt vit)
[ "$device" = cpu ] && steps=(--quick --against "plain torch" --threads 2 --rounds 2) models=(mlp)
step_overhead() {  # NAME OPTIONS...
  local name=$1; shift
  piece "$name" python3 benchmarks/step_overhead.py "${steps[@]}" "$@" --json "$out/$name.json" --picture "$out/$name.png"
}
for model in "${models[@]}"; do
  step_overhead "steps_$model" --models "$model" || exit 1
done
bounded=(--recipes swalp8 --recipes bfp8 --recipes int8 --recipes fp8)
step_overhead "steps_${models[0]}_compiled" --models "${models[0]}" --compile "${bounded[@]}" || exit 1
piece digits python3 benchmarks/compare_energy.py --config configs/digits.yaml --device "$device" \
  --set workers=1 --out "$work/runs" || exit 1
cp "$work"/runs/digits-*/{summary.json,summary.csv,report.txt,*.png} "$out"/
if [ -n "${DATA_ROOT:-}" ]; then
  studies=(paper_vgg16 paper_preresnet101) ; [ "$device" = cpu ] && studies=(digits)
  for study in "${studies[@]}"; do
    piece "study_$study" python3 benchmarks/ticket_study.py "configs/studies/$study.yaml" --device "$device" \
      --data-root "$DATA_ROOT" --out "$work/runs" || exit 1
    mkdir -p "$out/study_$study" && cp "$work/runs/study-$study"/* "$out/study_$study"/
  done
else
  echo "study of detectors: DATA_ROOT is not given"
fi
echo "all pieces are done"
