#!/usr/bin/env bash
#SBATCH --job-name=lowbit
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --output=lowbit-%A-%a.log
# SHARDS=8 ./slurm.sh MODEL OUT OPTIONS...
# Started by hand it submits itself as a job array and, behind it, the merge. A task that is preempted or whose node dies is requeued and goes on from
# its journal. The working folder must be on a file system that all nodes see.
set -euo pipefail
read -ra lowbit <<<"${LOWBIT:-npx lowbit}"
if [ -z "${SLURM_JOB_ID:-}" ]; then
  if [ $# -lt 3 ]; then
    echo "usage: SHARDS=N $0 MODEL OUT OPTIONS..." >&2
    exit 2
  fi
  shards=${SHARDS:-8}
  array=$(sbatch --parsable --array="1-$shards" --export=ALL,SHARDS="$shards" "$0" "$@")
  merge=$(sbatch --parsable --dependency="afterok:$array" --kill-on-invalid-dep=yes --export=ALL,SHARDS="$shards" "$0" "$@")
  echo "array $array, merge $merge"
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  model=$1 out=$2
  shift 2
  srun "${lowbit[@]}" quantize "$model" -o "$out" "$@" --resume --shard "$SLURM_ARRAY_TASK_ID/$SHARDS"
else
  "${lowbit[@]}" merge "$1" "$2"
fi
