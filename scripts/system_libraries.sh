#!/usr/bin/env bash
# Make sure that a software OpenGL library and Python's venv module are there; installs only what is missing.
set -euo pipefail

have() { ldconfig -p | grep -q "$1"; }

missing=()
# MuJoCo draws through EGL or OSMesa; one of them is enough.
if ! { have libEGL.so.1 && have libGL.so.1; } && ! have libOSMesa.so; then
    missing+=(libegl1 libgl1 libgl1-mesa-dri)
fi
python3 -c "import ensurepip" 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "Missing: ${missing[*]} (Debian names). Install them with your distribution's package manager." >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    run=()
elif command -v sudo >/dev/null; then
    run=(sudo)
else
    echo "Missing: ${missing[*]}. Ask an administrator to run: apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "Installing system libraries: ${missing[*]}"
"${run[@]}" apt-get update -qq
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
