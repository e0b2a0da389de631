#!/usr/bin/env bash
# Check the package on several versions of Python.
#
# Usage: tools/pythons.sh [VERSION ...]
#
# Without a VERSION, check every supported version whose interpreter is found: on PATH, or installed by pyenv.
# A VERSION that is named but not found is an error. For each version, make or update the environment .pythons/VERSION,
# import every module, run ruff and mypy for that version, and run the fast tests. A failure does not stop the versions
# that follow. The exit status is 0 if everything passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUPPORTED=(3.11 3.12 3.13)

# Print the path of an interpreter of version $1. It must start, and it must be able to make environments: pyenv puts
# commands on PATH that cannot start, and Debian packages Python without ensurepip.
find_python() {
  local candidate check="import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')"
  while IFS= read -r candidate; do
    if "$candidate" -c "$check" >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done < <(
    type -ap "python$1" || true
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python | sort -rV
  )
  return 1
}

# Import every module of the package with interpreter $1. A warning is an error, except the deprecations of Click that
# typer triggers. The tests ignore them too (pyproject.toml).
import_modules() {
  "$1" -W error - <<'PROGRAM'
import importlib
import pkgutil
import sys
import traceback
import warnings

warnings.filterwarnings("ignore", ".*is deprecated and will be removed in Click", DeprecationWarning)
import fedpgp

count = 0
failures = 0
# The loop imports each package before walk_packages does, and reports its failure; hence the empty onerror.
for module in pkgutil.walk_packages(fedpgp.__path__, "fedpgp.", onerror=lambda name: None):
    if module.name.rpartition(".")[2] == "__main__":  # a program: importing it runs it
        continue
    count += 1
    try:
        importlib.import_module(module.name)
    except Exception:
        failures += 1
        print(f"Importing {module.name} failed:", file=sys.stderr)
        traceback.print_exc()
print(f"{count} modules, {failures} failures")
sys.exit(failures > 0)
PROGRAM
}

# Run the command "${@:2}" and note under the name $1 if it fails.
step() {
  printf '\n== Python %s: %s\n' "$version" "$1"
  "${@:2}" || failures+=("$1")
}

# Run every check with interpreter $1. The names of the checks that fail go into `failures`.
check_version() {
  local environment=".pythons/$version"
  local variables=("PYTHON=$1" "VENV=$environment")
  step environment make "${variables[@]}" "$environment/.installed"
  if ((${#failures[@]})); then
    return
  fi
  step imports import_modules "$environment/bin/python"
  # The rules UP ask for the newest syntax. Every version must read the code, so only the oldest one decides on that.
  step ruff "$environment/bin/ruff" check --target-version "py${version/./}" --ignore UP
  step mypy "$environment/bin/mypy" --python-version "$version"
  step tests make "${variables[@]}" test
}

asked=("$@")
if ((${#asked[@]} == 0)); then
  asked=("${SUPPORTED[@]}")
fi

summary=()
checked=0
status=0
for version in "${asked[@]}"; do
  if python=$(find_python "$version"); then
    failures=()
    check_version "$python"
    checked=$((checked + 1))
    if ((${#failures[@]})); then
      status=1
      printf -v names ', %s' "${failures[@]}"
      summary+=("Python $version: failed: ${names:2}")
    else
      summary+=("Python $version: passed")
    fi
  elif (($#)); then
    status=1
    summary+=("Python $version: no interpreter found. Install Python $version, or leave $version out.")
  else
    summary+=("Python $version: no interpreter found, skipped")
  fi
done

printf '\n'
printf '%s\n' "${summary[@]}"
if ((checked == 0)); then
  status=1
fi
exit "$status"
