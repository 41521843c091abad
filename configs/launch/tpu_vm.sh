#!/bin/bash
# One worker of a TPU slice of several VMs. The same command on all of them starts the run, and
# continues it after a preemption:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command="cd jaxdpo && bash configs/launch/tpu_vm.sh configs/llama-8b.yaml training.folder=/mnt/runs/1"
#
# The metadata server tells each VM its number and the addresses of all. A slice of one VM needs
# nothing of this: python -m jaxdpo.train … is enough.
set -euo pipefail
metadata=${METADATA:-http://metadata.google.internal/computeMetadata/v1/instance/attributes}

attribute() {
  curl --silent --fail --header 'Metadata-Flavor: Google' "$metadata/$1"
}

# Workers are listed in the order of their numbers, each as STATE:ID:ADDRESS.
IFS=, read -r -a workers <<<"$(attribute worker-network-endpoints)"
export JAX_PROCESS_ID=$(attribute agent-worker-number)
export JAX_NUM_PROCESSES=${#workers[@]}
export JAX_COORDINATOR_ADDRESS=${workers[0]##*:}:8476

# exec, so that the signals of a preemption reach the run.
exec ${PYTHON:-python3} -m jaxdpo.train "$@"
