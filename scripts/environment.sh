# Sourced by run.sh and test.sh: the project's own Python environment, .venv/, made when it is
# missing or stale. Packages (and Python itself, where uv has to provide it) are all that is fetched.
#
# PYTHON=python3.13 names the Python that a new environment is made with; otherwise the first one
# that fits. A marker beside the packages holds the checksum of the requirements that were
# installed. It is written last: an installation that was interrupted has none, and is gone on with.

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$project_root/.venv"
versions="3.11 3.12 3.13" # the first is what most was tried with, and what uv is asked for

version_of() { # PYTHON: prints its version, as 3.11; nothing if it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

fits() { # PYTHON: whether it has one of the versions
    local version
    version=$(version_of "$1") && [ -n "$version" ] && [[ " $versions " == *" $version "* ]]
}

find_python() { # prints the first Python that fits, or lists on stderr what was tried
    local candidate version candidates
    read -ra candidates <<<"${versions//3./python3.} python3 python"
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if ! command -v "$candidate" >/dev/null 2>&1; then
            echo "  $candidate: not found" >&2
        elif fits "$candidate"; then
            command -v "$candidate"
            return 0
        else
            version=$(version_of "$candidate")
            echo "  $candidate: ${version:-does not run}" >&2
        fi
    done
    return 1
}

make_venv() { # an empty environment with pip
    local python tried
    rm -rf "$venv"
    # What was tried is of interest only if nothing fits and nothing can be done about it.
    if python=$(find_python 2>/dev/null); then
        "$python" -m venv "$venv" && return 0
        echo "error: $python cannot make a virtual environment; it needs its venv and pip" \
            "modules (on Debian and Ubuntu: the package python$(version_of "$python")-venv)" >&2
    elif [ -z "${PYTHON:-}" ] && command -v uv >/dev/null 2>&1; then
        uv venv --quiet --seed --python "${versions%% *}" "$venv" && return 0
        echo "error: uv could not provide Python ${versions%% *} (see above)" >&2
    else
        tried=$(find_python 2>&1)
        {
            echo "error: Python 3.11, 3.12 or 3.13 is needed, with pip and venv. Tried:"
            echo "$tried"
            echo "Install one of them, or uv, which brings its own, and run this again."
        } >&2
    fi
    rm -rf "$venv"
    return 1
}

requirements_sum() { # FILE: a checksum of it and of the requirements that it includes
    case "$1" in
        requirements.txt) cat "$project_root/requirements.txt" | cksum ;;
        *) cat "$project_root/requirements.txt" "$project_root/$1" | cksum ;;
    esac
}

is_installed() { # FILE: whether exactly these requirements were installed to the end
    fits "$venv/bin/python" \
        && [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(requirements_sum "$1")" ]
}

install() { # FILE: its requirements into the environment, which is made if it is missing
    local requirements=$1
    is_installed "$requirements" && return 0 # by the command that was waited for
    if ! fits "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        make_venv || return 1
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
}

make_environment() { # FILE: the requirements to install
    is_installed "$1" && return 0
    # Two commands started together must not install into each other.
    if command -v flock >/dev/null 2>&1; then
        (flock 9 && install "$1") 9<"$project_root/requirements.txt"
    else
        install "$1"
    fi
}
