#!/usr/bin/env bash
# Installs Chromium from Debian or Ubuntu, for tests/unit/test_report.py, which opens pages in it.
#
#     bash scripts/install_chromium.sh        (as root; does nothing if it is installed)
set -euo pipefail

if command -v chromium >/dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Chromium is not installed, and installing it takes root and apt-get" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null || {
    echo "apt-get could not install Chromium" >&2
    exit 1
}
