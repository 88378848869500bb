#!/usr/bin/env bash
# Installs the Debian packages that the build, the tests and the devnet need, or says which are missing and how to get them.
# Usage: tools/debian-packages.sh [python interpreter]
set -euo pipefail

python=${1:-python3}
missing=()

have_header() { echo "#include <$1>" | cc -E - >/dev/null 2>&1; }

command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v pkg-config >/dev/null || missing+=(pkg-config)
have_header secp256k1_recovery.h || missing+=(libsecp256k1-dev)
have_header openssl/evp.h || missing+=(libssl-dev)
command -v cpio >/dev/null || missing+=(cpio) # reads what the image builder writes, in its tests
command -v npm >/dev/null || missing+=(nodejs npm)

if ! command -v "$python" >/dev/null; then
  missing+=(python3 python3-venv python3-dev)
else
  "$python" - <<'PY' || { echo "nova-kms needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -e "$include/Python.h" ] || missing+=(python3-dev)
fi

if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

install=(apt-get install -y --no-install-recommends "${missing[@]}")
echo "Installing Debian packages: ${missing[*]}"
if [ "$(id -u)" -eq 0 ]; then as_root=(); elif command -v sudo >/dev/null; then as_root=(sudo); else
  echo "These Debian packages are missing; run as root: ${install[*]}" >&2
  exit 1
fi
"${as_root[@]}" apt-get update -q
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" "${install[@]}"
