#!/usr/bin/env bash
# ./test.sh            lint, format, types, then all the tests
# ./test.sh -k name    arguments go to pytest, and the tests alone are run
set -u
. "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
make_environment requirements-dev.txt || exit 1
cd "$project_root" || exit 1
python="$venv/bin/python"

check() { # the code itself: style, who imports whom, the list of keys, types
    local packages=(-p inspo)
    if [ -d paper ]; then packages+=(-p paper); fi
    "$python" -m ruff check --quiet . \
        && "$python" -m ruff format --quiet --check . \
        && PYTHONPATH=package:. "$venv/bin/lint-imports" --no-logo --no-cache \
        && "$python" scripts/settings_stub.py --check \
        && MYPYPATH=package:. "$python" -m mypy "${packages[@]}"
}

if [ "$#" -gt 0 ]; then exec "$python" -m pytest "$@"; fi
check || exit 1
# A process takes a gigabyte at most; the tests of a file share what they have prepared.
exec "$python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
