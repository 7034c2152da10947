#!/usr/bin/env bash
# Sets up everything the tests need (a virtual environment, a browser), then lints, checks types and runs the tests.
# COVERAGE=1 also prints how much of the code they run. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null || PYTHON=python3
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
wanted=$(cat requirements*.txt | sha256sum)
if [ "$wanted" != "$(cat .venv/installed 2>/dev/null)" ]; then # else pip would need ten seconds to find nothing to do
  .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
  echo "$wanted" >.venv/installed
fi
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then
  as_root=""; [ "$(id -u)" = 0 ] || as_root="sudo"
  $as_root apt-get update -qq && $as_root apt-get install -y -qq chromium >/dev/null
fi
unset PYTHONDONTWRITEBYTECODE # where it is set, each of the many processes would compile the sources anew
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False
export REQUIRE_CHROMIUM=1 # a browser test that cannot run is a failure here, not a skip
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy & # beside the tests: it has one thread
types=$!
coverage=()
[ -z "${COVERAGE:-}" ] || coverage=(--cov --cov-report=term:skip-covered)
failed=0
.venv/bin/python -m pytest tests -q -n 2 --no-loadscope-reorder --durations 15 "${coverage[@]}" "$@" || failed=$?
wait $types || failed=$?
exit $failed
