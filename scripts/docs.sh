#!/usr/bin/env bash
# Builds the documentation as a site in site/. Warnings are errors. Open site/index.html; it needs no network.
#
#     bash scripts/docs.sh
#
# Environment variables: KJKO_VENV is the virtual environment to create or use (default: .venv in the checkout), and
# PYTHON is the interpreter to create it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${KJKO_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"

bash scripts/environment.sh "$venv" docs
# not with --quiet: then mkdocs does not count its warnings
NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --strict --clean --site-dir site
echo "Site: $root/site/index.html"
