#!/usr/bin/env bash
# ./test.sh            all the tests
# ./test.sh -k name    arguments go to pytest
set -u
. "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
make_environment requirements-dev.txt || exit 1
cd "$project_root" || exit 1
exec "$venv/bin/python" -m pytest "$@"
