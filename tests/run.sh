#!/usr/bin/env bash
# Runs the test suite, after the same set-up as for a job: tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

export MLLIB_EXT_EXTRAS=test
export SPARK_LOCAL_IP=127.0.0.1 # tests are reached from nowhere else
exec ./spark-submit.sh --python -m pytest "$@"
