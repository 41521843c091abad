#!/bin/bash
# A run on machines that ssh reaches, one process each:
#
#   HOSTS="node1 node2" bash configs/launch/ssh.sh configs/lora.yaml training.folder=/shared/runs/1
#
# The project, its environment and the data lie at the same place on all of them, as on a shared home.
# Ctrl-C or SIGTERM here stops the run: all processes save and end.
set -uo pipefail
: "${HOSTS:?names the machines: HOSTS=\"node1 node2\"}"
read -r -a hosts <<<"$HOSTS"
folder=${FOLDER:-$PWD} python=${PYTHON:-python} port=${PORT:-8476}

pids=()
for number in "${!hosts[@]}"; do
  command="cd $(printf %q "$folder") && exec env JAX_COORDINATOR_ADDRESS=${hosts[0]}:$port"
  command+=" JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$number"
  command+=" $python -m jaxdpo.train$(printf ' %q' "$@")"
  # With a terminal (-tt) the remote process is sent SIGHUP when this ssh ends, which it takes as a
  # request to save and stop.
  ${SSH:-ssh -tt -o BatchMode=yes} "${hosts[$number]}" "$command" \
    > >(sed -u "s/^/${hosts[$number]}: /") 2>&1 </dev/null &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP

status=0
for pid in "${pids[@]}"; do
  # A signal ends a wait before the process ends.
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid" || status=$?
done
exit $status
