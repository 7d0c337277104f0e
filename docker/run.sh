#!/usr/bin/env bash
# Runs something in the image, on this folder's results/ and datasets/, as the user who calls it:
#
#   docker/run.sh ARGS              python src/main.py ARGS
#   docker/run.sh -- COMMAND ARGS   any other command:
#       docker/run.sh -- python src/dataset.py download cfcql/5m_vs_6m
#       docker/run.sh -- python src/reproduce.py table4
#       docker/run.sh -- python docker/check.py
#       docker/run.sh -- bash
#
# From the environment:
#   INSPO_IMAGE  the image (default: inspo:sc2-4.10)
#   INSPO_GPUS   what docker's --gpus gets, as all or device=1; none: the CPU.
#                Default: all, if this machine has NVIDIA GPUs and docker can pass them
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
image=${INSPO_IMAGE:-inspo:sc2-4.10}

if [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
fi
command -v docker >/dev/null || {
    echo "error: docker is not installed (https://docs.docker.com/engine/install)" >&2
    exit 2
}
if ! docker image inspect "$image" >/dev/null 2>&1; then
    echo "error: there is no image $image (or docker does not answer: try docker info)." \
        "docker/build.sh builds one; INSPO_IMAGE=NAME takes another." >&2
    exit 2
fi

can_pass_gpus() { # whether docker knows NVIDIA's runtime or its hook is installed
    docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q nvidia \
        || command -v nvidia-container-runtime-hook >/dev/null
}

gpus=${INSPO_GPUS:-}
if [ -z "$gpus" ]; then
    gpus=none
    if nvidia-smi --list-gpus >/dev/null 2>&1; then
        if can_pass_gpus; then
            gpus=all
        else
            echo "note: docker cannot pass this machine's GPU (NVIDIA's container toolkit is not" \
                "installed); running on the CPU. INSPO_GPUS=none silences this." >&2
        fi
    fi
fi

# --init passes signals on and clears away games that lost their parent. A stopped run saves first.
options=(--rm --init --stop-timeout 120 --user "$(id -u):$(id -g)")
if [ "$gpus" != none ]; then options+=(--gpus "$gpus"); fi
if [ -t 0 ] && [ -t 1 ]; then options+=(--interactive --tty); fi
for folder in results datasets; do
    mkdir -p "$root/$folder" # made by docker, it would belong to root
    options+=(--mount "type=bind,source=$root/$folder,target=/inspo/$folder")
done

if [ "$1" = -- ]; then
    shift
    [ $# -gt 0 ] || {
        echo "error: -- is followed by a command, as in: docker/run.sh -- bash" >&2
        exit 2
    }
else
    set -- python src/main.py "$@"
fi
exec docker run "${options[@]}" "$image" "$@"
