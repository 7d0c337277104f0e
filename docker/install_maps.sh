#!/usr/bin/env bash
# Copies SMAC's maps, which a pip installation of smac leaves out:
#
#   docker/install_maps.sh ~/StarCraftII/Maps/SMAC_Maps
#
# They come from the commit that requirements-sc2.txt pins: git names content by its hash, so what
# arrives is what was pinned, and the package and its maps are of one version. Except 1c3s5z, which
# came later, they are as they were when SMAC was first published. Needs git.
set -euo pipefail

WANTED="2s3z 3s_vs_5z 5m_vs_6m 6h_vs_8z" # the paper's; there are 19 more
IN_SMAC=smac/env/starcraft2/maps/SMAC_Maps
PAUSE=${PAUSE:-5}

fail() {
    echo "error: $*" >&2
    exit 1
}

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
fi
folder=$1
requirements=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/requirements-sc2.txt
pin=$(grep -oE 'git\+[^ ]*smac(\.git)?@[0-9a-f]{40}' "$requirements") \
    || fail "$requirements pins no smac by a commit (git+https://…/smac@COMMIT)"
commit=${pin##*@}
address=${pin#git+}
address=${address%@*}

checkout=$(mktemp -d)
trap 'rm -rf "$checkout" "$folder.partial"' EXIT
git -C "$checkout" init --quiet
for attempt in 1 2 3 4 5; do
    if git -C "$checkout" fetch --quiet --depth 1 "$address" "$commit"; then break; fi
    [ "$attempt" -lt 5 ] || fail "$address: the commit $commit cannot be fetched"
    sleep "$((PAUSE * attempt))"
done
git -C "$checkout" checkout --quiet "$commit" -- "$IN_SMAC"
for name in $WANTED; do
    [ -f "$checkout/$IN_SMAC/$name.SC2Map" ] || fail "$address at $commit has no map $name"
done

mkdir -p "$(dirname "$folder")"
rm -rf "$folder.partial"
cp -R "$checkout/$IN_SMAC" "$folder.partial"
chmod -R u=rwX,go=rX "$folder.partial"
{
    echo "smac $commit"
    (cd "$folder.partial" && sha256sum ./*.SC2Map)
} >"$folder.partial/installed.txt"
rm -rf "$folder"
mv "$folder.partial" "$folder"
echo "$(find "$folder" -name '*.SC2Map' | wc -l) maps of smac $commit in $folder"
