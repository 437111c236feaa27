#!/usr/bin/env bash
# A real Slurm on this one machine, two nodes of one processor each, and the job array of examples/cluster/slurm.sh on it: 8 shards, one of them
# killed with SIGKILL while it works and the array started again; the merged file is compared with that of one run, byte by byte; then the array once
# more from the beginning with one node and with two, for the time. Debian: apt-get install slurmctld slurmd slurm-client munge; needs `npm run build`.
# Ratios need a quiet machine and work that outlasts Slurm's own pace and the merge: bnb4 and stored formats take some 35 s a GiB of one processor, q4 3.
# TIMED is a command that long runs are started through, such as one that pauses what else the machine does.
#   [GIB=4] [SHARDS=8] [PARTS=kill,time] [TIMED=] [FOLDER=/tmp/lowbit-slurm] scripts/slurm-check.sh [OPTIONS of lowbit quantize...]; default --dtype q4
# All daemons run as the user who starts this, from files in FOLDER, and are stopped at the end; what the system has of Slurm is not touched.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
gib=${GIB:-4} shards=${SHARDS:-8} parts=${PARTS:-kill,time} folder=${FOLDER:-/tmp/lowbit-slurm}
PATH=$PATH:/usr/sbin
[ $# -gt 0 ] || set -- --dtype q4
for tool in munged slurmctld slurmd sbatch srun squeue taskset; do
  command -v $tool >/dev/null || { echo "expected $tool, got none. apt-get install slurmctld slurmd slurm-client munge" >&2; exit 2; }
done
[ -f "$root/dist/esm/cli.js" ] || { echo "expected dist/, got none. npm run build" >&2; exit 2; }
[ ! -e "$folder" ] || { echo "expected a new folder, got $folder. Name another (FOLDER=), or remove it" >&2; exit 2; }
mkdir -p "$folder"/{state,spool1,spool2,work}
chmod 700 "$folder"
me=$(id -un) host=$(hostname -s)
pids=()
stop() {
  trap - EXIT
  scancel --user="$me" >/dev/null 2>&1 || true
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  [ -n "${KEEP:-}" ] || rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

head -c 1024 /dev/urandom >"$folder/munge.key" && chmod 400 "$folder/munge.key"
cat >"$folder/slurm.conf" <<CONF
ClusterName=lowbit
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
CredType=cred/munge
SlurmUser=$me
SlurmdUser=$me
SlurmctldPort=16817
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SlurmdSpoolDir=$folder/spool-%n
StateSaveLocation=$folder/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
NodeName=lb[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=4 RealMemory=8192
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
# every node is one processor, whatever the machine has
cat >"$folder/lowbit" <<RUN
#!/usr/bin/env bash
exec taskset -c "\$(( (\${SLURMD_NODENAME#lb} - 1) % $(nproc) ))" ${NODE:-node} $root/dist/esm/cli.js "\$@"
RUN
chmod +x "$folder/lowbit"
export LOWBIT=$folder/lowbit

munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
  --seed-file="$folder/munge.seed" 2>/dev/null &
pids+=($!)
slurmctld -D >/dev/null 2>&1 &
pids+=($!)
for n in 1 2; do
  mkdir -p "$folder/spool-lb$n"
  slurmd -D -N "lb$n" >/dev/null 2>&1 &
  pids+=($!)
done
for _ in $(seq 60); do
  [ "$(sinfo -h -t idle -N -o %N 2>/dev/null | wc -l)" = 2 ] && break
  sleep 0.5
done
[ "$(sinfo -h -t idle -N -o %N | wc -l)" = 2 ] || { echo "expected two idle nodes, got:" >&2; sinfo -N >&2; tail -3 "$folder"/*.log >&2; KEEP=1 exit 1; }
echo "$(sinfo --version), nodes $(sinfo -h -o %N), $(${NODE:-node} --version), load $(cut -d' ' -f1 /proc/loadavg)"

cd "$folder/work"
(cd "$root" && npx tsx -e 'import("./bench/large-models.ts").then((m) => m.makeChain(process.argv[1], Number(process.argv[2])))' "$folder/work" "$gib") 2>/dev/null
echo "model: $(du -h --apparent-size model.onnx_data | cut -f1)"
${TIMED:-} ${NODE:-node} "$root/dist/esm/cli.js" quantize model.onnx -o whole.onnx "$@" >/dev/null
submit() { SHARDS=$shards "$root/examples/cluster/slurm.sh" model.onnx "$1" "${@:2}"; }
waited() { while [ -n "$(squeue -h 2>/dev/null)" ]; do sleep 0.1; done; }
same() { cmp "whole.onnx" "$1" && if [ -e whole.onnx_data ]; then cmp whole.onnx_data "$1_data"; fi && echo "$1: the same bytes as of one run"; }

if [[ ,$parts, == *,kill,* ]]; then
  submit out.onnx "$@" >/dev/null
  # the third shard, some way into its journal
  third=
  while [ -n "$(squeue -h)" ] && [ -z "$third" ]; do
    for _ in $(seq 100); do
      if [ "$(stat -c %s "out.onnx.3-of-$shards.shard.journal" 2>/dev/null || echo 0)" -gt 1000000 ]; then
        third=$(pgrep -u "$me" -f "cli.js quantize model.onnx -o out.onnx .*--shard 3/$shards" | head -1 || true)
        break
      fi
      sleep 0.01
    done
  done
  [ -n "$third" ] || { echo "expected shard 3 at work, got one that was done before it was seen: a larger model (GIB=) takes longer" >&2; exit 1; }
  kill -KILL "$third"
  waited
  [ ! -e out.onnx ] || { echo "expected no merge behind a shard that died, got out.onnx" >&2; exit 1; }
  echo "killed shard 3 of $shards (process $third) at $(stat -c %s "out.onnx.3-of-$shards.shard.journal") bytes; $(ls out.onnx.*.shard | wc -l) shards whole, no merge"
  submit out.onnx "$@" >/dev/null
  waited
  grep -h "resumed\|whole already" lowbit-*.log | sort | uniq -c
  same out.onnx
fi
if [[ ,$parts, == *,time,* ]]; then
  declare -A seconds array
  cat >"$folder/timed" <<RUN
#!/usr/bin/env bash
start=\$(date +%s.%N)
SHARDS=$shards "$root/examples/cluster/slurm.sh" model.onnx out.onnx "\$@" >/dev/null || exit
while squeue -h -o %i | grep -q _; do sleep 0.1; done
array=\$(date +%s.%N)
while [ -n "\$(squeue -h)" ]; do sleep 0.1; done
echo "\$array - \$start" | bc
echo "\$(date +%s.%N) - \$start" | bc
RUN
  chmod +x "$folder/timed"
  for nodes in 2 1; do
    rm -f out.onnx*
    [ $nodes = 2 ] || scontrol update nodename=lb2 state=drain reason=timing
    { read -r "array[$nodes]" && read -r "seconds[$nodes]"; } < <(${TIMED:-} "$folder/timed" "$@")
    same out.onnx
  done
  # the merge is one job: it gains nothing from a second node
  for what in array seconds; do
    declare -n times=$what
    name="$shards shards and the merge"
    [ $what = seconds ] || name="$shards shards"
    printf '%s: %.1f s with one node, %.1f s with two: %.2fx\n' "$name" "${times[1]}" "${times[2]}" "$(echo "scale=4; ${times[1]} / ${times[2]}" | bc)"
  done
  echo "load $(cut -d' ' -f1 /proc/loadavg)"
fi
