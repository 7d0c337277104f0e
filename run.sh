#!/usr/bin/env bash
# ./run.sh            the main job: data, training, test, a table and a curve
# ./run.sh ARGS ...   src/main.py with these arguments (./run.sh --help)
set -u
. "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
make_environment requirements.txt || exit 1
if [ "$#" -eq 0 ]; then
    exec "$venv/bin/python" "$project_root/src/reproduce.py" main_job
fi
exec "$venv/bin/python" "$project_root/src/main.py" "$@"
