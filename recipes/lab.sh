#!/usr/bin/env bash
# The whole of R-PRM in the lab: world, base model, cold start and classifier at five sizes, preference rounds,
# inference-time scaling, types of error, guidance, out of distribution; then one page with the paper's numbers beside
# ours. Three seeds take hours on two cores; SEEDS=1 a third of it; SIZE=small, one seed of less of everything, less
# than one. Killed at any moment, it goes on from there.
# On a GPU, say, JOBS=12 ROWS=128: as many stages as it has room for. 22 with 512 rows each were too many for 140 GB.
set -euo pipefail
LAB=${1:-lab}
rprm lab run --output "$LAB" --size "${SIZE:-laptop}" \
    ${SEEDS:+--seeds "$SEEDS"} ${JOBS:+--jobs "$JOBS"} ${ROWS:+--rows "$ROWS"}
rprm lab report "$LAB"
