#!/usr/bin/env bash
# SHARDS=8 JOBS=4 ./parallel.sh MODEL OUT OPTIONS...
# Shards with GNU parallel (or xargs where there is none), then the merge. Shards that are done already are left; one that dies is tried twice more.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: SHARDS=N JOBS=N $0 MODEL OUT OPTIONS..." >&2
  exit 2
fi
model=$1 out=$2
shift 2
shards=${SHARDS:-8} jobs=${JOBS:-$(nproc)}
read -ra lowbit <<<"${LOWBIT:-npx lowbit}"
if command -v parallel >/dev/null && parallel --version 2>/dev/null | grep -q GNU; then
  seq "$shards" | parallel --retries 3 --halt soon,fail=1 -j "$jobs" "${lowbit[@]@Q}" quantize "${model@Q}" -o "${out@Q}" "${@@Q}" --resume --shard "{}/$shards"
else
  seq "$shards" | xargs -P "$jobs" -I '{}' "${lowbit[@]}" quantize "$model" -o "$out" "$@" --resume --shard "{}/$shards"
fi
"${lowbit[@]}" merge "$model" "$out" ${FORCE:+--force}
