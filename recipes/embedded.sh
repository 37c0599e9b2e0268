#!/usr/bin/env bash
# The judge that ships with `rprm`: the lab's base model, trained on with longer chains, larger numbers and words at
# random, then on the analyses of a teacher without faults; measured in distribution and out of it. The defaults are
# meant for a GPU (WORKERS=8 writes the texts), where they have not been run yet; on two cores, BASE_STEPS=0 ROWS=16 is
# less than what the model in the package had (its card). Killed at any moment, it goes on from there.
#
#     recipes/embedded.sh runs/embedded && python recipes/ship.py runs/embedded/sft/model judge
set -euo pipefail
OUT=${1:-embedded}
BASE=$(python -c "from rprm_lab import BASE; print(BASE)")
BASE_STEPS=${BASE_STEPS:-3000}
SFT_STEPS=${SFT_STEPS:-4000}
ROWS=${ROWS:-64}
JUDGED=${JUDGED:-500}
VALIDATED=${VALIDATED:-100}
THRESHOLD=${THRESHOLD:-$(python -c "from rprm.presets import judge_settings; print(judge_settings('embedded').threshold)")}
LABELLED=$((SFT_STEPS * ROWS))

rprm lab world --output "$OUT/world" --wide --steps "$LABELLED"
{
    rprm data analyses "$OUT/world/train/steps.jsonl" --output "$OUT/analyses" -n 1 --prompt "$OUT/world/prompt.toml" \
        --model "lab:$OUT/world?split=train&reading=0&slip=0&verdict=0"
    rprm data cold-start "$OUT/analyses" --output "$OUT/cold-start" --per-step 1 --prompt "$OUT/world/prompt.toml"
} &
ANALYSES=$!
if [ "$BASE_STEPS" -gt 0 ]; then
    rprm lab base "$OUT/world" --from "$BASE" --output "$OUT/base" --max-steps "$BASE_STEPS" --batch-size "$((2 * ROWS))" \
        --learning-rate 4e-3 --workers "${WORKERS:-0}"
    BASE=$OUT/base/model
fi
wait "$ANALYSES"
rprm train sft "$OUT/cold-start" --output "$OUT/sft" --model "$BASE" --preset cpu --max-steps "$SFT_STEPS" \
    --learning-rate 1e-3 --batch-size "$ROWS" --device-batch-size "$ROWS" --precision auto --warmup-ratio 0.03 \
    --eval-steps 1000 --save-steps 500
JUDGE="transformers:$OUT/sft/model?max_rows=64&concurrency=64&dtype=float32"

# Where to call a step wrong: an analysis slips far more often than it calls a wrong step right, so that one Yes of ten is
# enough. The table of F1 by threshold, on solutions of another wide world, tells whether that holds for this judge too.
rprm lab world --output "$OUT/validation" --wide --steps 1500 --test 10 --seed 77
rprm bench processbench --data "$OUT/validation/train/solutions.jsonl" --output "$OUT/judged-validation" --allow-missing \
    --limit "$VALIDATED" --model "$JUDGE" -k 10 --max-tokens 400 --curve
for SPLIT in test ood; do
    rprm bench processbench --data "$OUT/world/$SPLIT/solutions.jsonl" --output "$OUT/judged-$SPLIT" --allow-missing \
        --limit "$JUDGED" --model "$JUDGE" -k 10 --max-tokens 400 --threshold "$THRESHOLD"
done
