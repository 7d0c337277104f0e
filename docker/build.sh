#!/usr/bin/env bash
# Builds the image inspo:sc2-VERSION:
#
#   docker/build.sh --accept-licence [--sc2 4.10|4.6.2] [--torch-index URL]
#                   [--tag NAME] [-- ARGS OF docker build]
#
#   --accept-licence  you have read Blizzard's AI and Machine Learning License and accept it
#   --sc2 VERSION     the game: 4.10 (the default) or 4.6.2, whose win rates are not comparable
#   --torch-index URL the package index that torch comes from: PyTorch's own one of CPU builds (its
#                     page "Get started" says where) makes an image that is several GB smaller
#   --tag NAME        the image's name (default: inspo:sc2-VERSION; run.sh takes INSPO_IMAGE=NAME)
#
# What follows -- goes to docker build: -- --build-arg SC2_URL=http://…/SC2.4.10.zip --network host
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^#/p}' "$0"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
accepted=no version=4.10 torch_index="" tag=""
while [ $# -gt 0 ]; do
    case $1 in
        --accept-licence | --accept-license) accepted=yes ;;
        --sc2 | --tag | --torch-index)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case $1 in
                --sc2) version=$2 ;;
                --tag) tag=$2 ;;
                --torch-index) torch_index=$2 ;;
            esac
            shift ;;
        --help | -h)
            usage
            exit 0 ;;
        --)
            shift
            break ;;
        *)
            usage >&2
            fail "$1: no such option" ;;
    esac
    shift
done
case $version in
    4.10) ;;
    4.6.2) echo "WARNING: results on StarCraft II 4.6.2 are not comparable with those on 4.10, which" \
        "CFCQL's data were recorded on." >&2 ;;
    *) fail "--sc2 $version: there are 4.10 and 4.6.2" ;;
esac
[ "$accepted" = yes ] || fail "the image contains StarCraft II, which comes under Blizzard's AI and" \
    "Machine Learning License (https://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html)." \
    "If you have read and accept it, add --accept-licence."
command -v docker >/dev/null || fail "docker is not installed (https://docs.docker.com/engine/install)"

commit=$(git -C "$root" describe --always --dirty --abbrev=40 2>/dev/null || true)
tag=${tag:-inspo:sc2-$version}
DOCKER_BUILDKIT=1 docker build \
    --file "$root/docker/Dockerfile" \
    --tag "$tag" \
    --build-arg ACCEPT_BLIZZARD_LICENCE=yes \
    --build-arg SC2_VERSION="$version" \
    --build-arg TORCH_INDEX="$torch_index" \
    --build-arg COMMIT="$commit" \
    "$@" \
    "$root"
echo "built $tag; try it: INSPO_IMAGE=$tag docker/run.sh -- python docker/check.py"
