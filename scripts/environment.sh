# Sourced by run.sh and test.sh: the project's own Python environment, .venv/, made when it is
# missing or stale. Packages are the only thing that is fetched.
#
# A marker beside the packages holds the checksum of the requirements that were installed. It is
# written last: an installation that was interrupted has none, and is simply gone on with.

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$project_root/.venv"
needed_version="3.11"

version_of() { # PYTHON: prints its version, as 3.11; nothing if it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() { # prints the first Python of the needed version, or says what was tried
    local candidate version tried=""
    for candidate in python3.11 python3 python; do
        if ! command -v "$candidate" >/dev/null 2>&1; then
            tried="$tried  $candidate: not found"$'\n'
            continue
        fi
        version=$(version_of "$candidate")
        if [ "$version" = "$needed_version" ]; then
            command -v "$candidate"
            return 0
        fi
        tried="$tried  $candidate: ${version:-does not run}"$'\n'
    done
    {
        echo "error: Python $needed_version is needed, with pip and venv. Tried:"
        printf '%s' "$tried"
        echo "Install Python $needed_version and run this again."
    } >&2
    return 1
}

requirements_sum() { # FILE: a checksum of it and of the requirements that it includes
    case "$1" in
        requirements.txt) cat "$project_root/requirements.txt" | cksum ;;
        *) cat "$project_root/requirements.txt" "$project_root/$1" | cksum ;;
    esac
}

is_installed() { # FILE: whether exactly these requirements were installed to the end
    [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(requirements_sum "$1")" ]
}

make_environment() { # FILE: the requirements to install
    local requirements=$1 python
    if [ "$(version_of "$venv/bin/python")" = "$needed_version" ] && is_installed "$requirements"
    then
        return 0
    fi
    # Two commands started together must not install into each other.
    if command -v flock >/dev/null 2>&1; then
        exec 9<"$project_root/requirements.txt"
        flock 9
        is_installed "$requirements" && [ -x "$venv/bin/python" ] && { exec 9>&-; return 0; }
    fi
    if [ "$(version_of "$venv/bin/python")" != "$needed_version" ] \
        || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1
    then
        python=$(find_python) || return 1
        rm -rf "$venv"
        if ! "$python" -m venv "$venv"; then
            rm -rf "$venv"
            echo "error: $python cannot make a virtual environment; it needs its venv and pip" \
                "modules (on Debian and Ubuntu: the package python$needed_version-venv)" >&2
            return 1
        fi
    fi
    echo "Installing the packages of $requirements into .venv (once; some minutes) ..." >&2
    rm -f "$venv"/.installed-*
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        -r "$project_root/$requirements"
    then
        echo "error: the installation of $requirements failed (see above);" \
            "run this again to go on with it" >&2
        return 1
    fi
    # The larger set contains the smaller one.
    requirements_sum requirements.txt >"$venv/.installed-requirements.txt"
    requirements_sum "$requirements" >"$venv/.installed-$requirements"
    if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
}
