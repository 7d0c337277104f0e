#!/usr/bin/env bash
# Installs StarCraft II for Linux, in the image and without it:
#
#   ACCEPT_BLIZZARD_LICENCE=yes docker/install_game.sh ~/StarCraftII
#
# From the environment:
#   ACCEPT_BLIZZARD_LICENCE  yes: the licence was read and is accepted; without it nothing is fetched
#   SC2_VERSION              4.10 (the default; CFCQL's data) or 4.6.2 (the SMAC paper)
#   SC2_URL                  a copy of the archive elsewhere (http, https or file)
#   SC2_SHA256               the archive's hash, in place of the one known here; any: record it only
#   DOWNLOADS                where the archive lies while it comes; a break is gone on from there
#                            (default: FOLDER.download)
#
# Needs curl, unzip and 12 GB of room. FOLDER/installed.txt says at the end what was installed.
set -euo pipefail

LICENCE=https://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html
PASSWORD=iagreetotheeula # Blizzard prints it beside the downloads; to type it is to accept
ATTEMPTS=8               # in a row that bring nothing
PAUSE=${PAUSE:-5}        # seconds after the first of them

fail() {
    echo "error: $*" >&2
    exit 1
}

size_of() { # FILE: its bytes, 0 if it is not there
    if [ -e "$1" ]; then stat -c %s "$1"; else echo 0; fi
}

fetch() { # ADDRESS FILE: fills FILE, going on with what it holds
    local address=$1 file=$2 failures=0 before code status
    while :; do
        before=$(size_of "$file")
        code=0
        status=$(curl --fail --location --silent --show-error --continue-at - \
            --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --output "$file" --write-out '%{http_code}' "$address") || code=$?
        case $code:$status in
            0:*) return ;;
            22:416) return ;; # nothing follows what is there; whether it is whole, the hash tells
            22:408 | 22:425 | 22:429 | 22:5??) ;;
            22:*) fail "$address answers with HTTP status $status. Is there another address?" \
                "SC2_URL takes it." ;;
            23:*) fail "$file cannot be written (is the disk full?); what has come stays" ;;
            33:*) rm -f "$file" ;; # this server cannot go on in the middle
        esac
        if [ "$(size_of "$file")" -gt "$before" ]; then failures=0; fi
        failures=$((failures + 1))
        [ "$failures" -lt "$ATTEMPTS" ] || fail "$address cannot be fetched (curl's status $code," \
            "$ATTEMPTS attempts without success). The same command goes on with what has come."
        echo "broke off at $(size_of "$file") bytes (curl's status $code, HTTP $status);" \
            "trying again in $((PAUSE * failures)) s" >&2
        sleep "$((PAUSE * failures))"
    done
}

check() { # FILE SHA256: refuses what is not the archive; prints its hash
    local file=$1 expected=$2 found
    found=$(sha256sum "$file" | cut -d' ' -f1)
    if [ "$expected" != any ] && [ "$found" != "$expected" ]; then
        rm -f "$file"
        fail "the archive has the SHA-256 $found, expected was $expected: it was removed. Fetch it" \
            "again; if the hash stays, and you trust where it comes from, say SC2_SHA256=$found"
    fi
    # The check sum of every file in it: sees what broke off or is a web page where no hash is known.
    if ! unzip -tqq -P "$PASSWORD" "$file" >&2; then
        rm -f "$file"
        fail "what came is not a whole zip archive; it was removed. Fetch it again."
    fi
    echo "$found"
}

unpack() { # FILE FOLDER: makes FOLDER whole or not at all
    local file=$1 folder=$2 needed free
    needed=$(unzip -l "$file" | awk 'END { print $1 }')
    free=$(df --output=avail --block-size=1 "$(dirname "$folder")" | tail -n 1)
    [ "$free" -gt "$needed" ] || fail "$(dirname "$folder"): $needed bytes are needed, $free are free"
    rm -rf "$folder.partial"
    unzip -q -P "$PASSWORD" "$file" -d "$folder.partial"
    [ -f "$folder.partial/StarCraftII/$executable" ] \
        || fail "the archive holds no StarCraftII/$executable: it is not StarCraft II $version"
    chmod a+x "$folder.partial/StarCraftII/$executable"
    mkdir -p "$folder.partial/StarCraftII/Maps" "$folder.partial/StarCraftII/Replays"
    # Whoever runs the image (run.sh: you) may keep replays; what else the game writes, nobody says.
    chmod -R a+rwX "$folder.partial/StarCraftII"
}

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
fi
folder=$1
version=${SC2_VERSION:-4.10}
# 4.10's hash is the one that a public installation script checks (Harimus/SpinningUpPySc2); of 4.6.2
# none was found. The builds are those of pysc2's table of versions.
case $version in
    4.10) archive=SC2.4.10.zip build=75689
        sha256=1052f249f30a242bf5e17cc3315324919f9689307ca6dbcdb30bb41ea3004884 ;;
    4.6.2) archive=SC2.4.6.2.69232.zip build=69232 sha256=any
        echo "WARNING: StarCraft II 4.6.2 is not the game that CFCQL's data were recorded on (4.10)." \
            "Win rates on it cannot be compared with those on 4.10, nor with the paper's Table 4." >&2 ;;
    *) fail "SC2_VERSION=$version: there are 4.10 and 4.6.2" ;;
esac
executable=Versions/Base$build/SC2_x64
address=${SC2_URL:-https://blzdistsc2-a.akamaihd.net/Linux/$archive}
sha256=${SC2_SHA256:-$sha256}
downloads=${DOWNLOADS:-$folder.download}

if [ "${ACCEPT_BLIZZARD_LICENCE:-no}" != yes ]; then
    fail "StarCraft II comes under Blizzard's AI and Machine Learning License. Read it:
  $LICENCE
If you accept it, say so: docker/build.sh --accept-licence, --build-arg ACCEPT_BLIZZARD_LICENCE=yes
for docker build, or ACCEPT_BLIZZARD_LICENCE=yes in the environment of this script."
fi
if grep -qsxF "StarCraft II $version" "$folder/installed.txt"; then
    echo "$folder holds StarCraft II $version already"
    exit 0
fi
[ ! -e "$folder" ] || fail "$folder exists and was not made by this script (or holds another" \
    "version); name another folder, or remove it"
for program in curl unzip sha256sum; do
    command -v "$program" >/dev/null || fail "$program is needed and is not installed"
done

mkdir -p "$downloads" "$(dirname "$folder")"
echo "fetching $address into $downloads (about 4 GB)" >&2
fetch "$address" "$downloads/$archive"
found=$(check "$downloads/$archive" "$sha256")
unpack "$downloads/$archive" "$folder"
{
    echo "StarCraft II $version"
    echo "archive     $address"
    echo "size        $(size_of "$downloads/$archive")"
    echo "sha256      $found ($([ "$sha256" = any ] && echo "recorded, not checked" || echo checked))"
    echo "executable  $executable"
} | tee "$folder.partial/StarCraftII/installed.txt"
mv "$folder.partial/StarCraftII" "$folder"
rmdir "$folder.partial"
if [ -z "${DOWNLOADS:-}" ]; then rm -r "$downloads"; fi
