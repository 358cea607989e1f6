#!/usr/bin/env bash
# Run the quick suite in a fresh environment: tests/versions.sh lowest|highest [pytest's arguments]
# lowest: Python 3.11 and the lowest version of every dependency that pyproject.toml allows; highest: Python 3.13 and the
# newest. PYTHON: another interpreter. TORCH: another version than constraints-cpu.txt has, or `own`, the interpreter's own,
# such as Debian's python3-torch. FOLDER: where to leave the environment; without it, it is removed.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
lowest) python=${PYTHON:-python3.11} ;;
highest) python=${PYTHON:-python3.13} ;;
*)
    echo "tests/versions.sh needs lowest or highest first, got '${1:-}'" >&2
    exit 2
    ;;
esac
end=$1
shift

if [ -z "${FOLDER:-}" ]; then
    FOLDER=$(mktemp -d)
    trap 'rm -rf "$FOLDER"' EXIT
fi
torch=${TORCH:-$(sed -n 's/^torch==//p' constraints-cpu.txt)}
if [ "$torch" = own ]; then
    torch=$("$python" -c "from importlib.metadata import version; print(version('torch'))")
    "$python" -m venv --system-site-packages "$FOLDER"
else
    "$python" -m venv "$FOLDER"
fi

bin=$FOLDER/bin
echo "torch==$torch" >"$FOLDER/constraints.txt"
if [ "$end" = lowest ]; then
    "$bin/python" tests/lowest.py | grep -v ^torch== >>"$FOLDER/constraints.txt"
fi
"$bin/python" -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager -c "$FOLDER/constraints.txt" -e '.[test]'

found=0
"$bin/python" -m pytest -q -m "not slow and not nightly and not commands" "$@" || found=$?
"$bin/python" - "$end" <<'EOF'
import platform
import sys
from importlib.metadata import version

names = "torch transformers pytorch-lightning hydra-core lm-eval datasets huggingface-hub numpy numba".split()
print(f"{sys.argv[1]}: Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in names))
EOF
exit $found
