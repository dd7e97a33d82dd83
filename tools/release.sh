#!/usr/bin/env bash
# Builds dist/, has it checked, and runs the wheel in an environment of its own, with nothing of this
# folder on the path: what is published is what was tried.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

rm -rf dist
"$python" -m venv "$room/build"
"$room/build/bin/python" -m pip install --quiet --disable-pip-version-check build twine
"$room/build/bin/python" -m build --outdir dist .
"$room/build/bin/python" -m twine check --strict dist/*

"$python" -m venv "$room/try"
"$room/try/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
cd "$room"
"$room/try/bin/quantgate" --version
"$room/try/bin/quantgate" schema > schema.json
printf 'quantgate: 1\nmodel: {source: reference}\n' > clip.quantgate.yaml
printf 'calibration: {data: scenes/calibration, samples: 32, batch_size: 16}\n' >> clip.quantgate.yaml
printf 'quantize: {recipe: fp8}\ngates: {coverage: {}}\n' >> clip.quantgate.yaml
"$room/try/bin/quantgate" validate clip.quantgate.yaml
"$room/try/bin/python" -m pytest -q --collect-only clip.quantgate.yaml
