#!/usr/bin/env bash
# Make sure that a software OpenGL library and Python's venv module are there; installs only what is missing.
set -euo pipefail

missing=()
for library in libEGL.so.1 libGL.so.1 libOSMesa.so.8; do
    if ! ldconfig -p | grep -q "$library"; then
        case "$library" in
            libEGL.so.1) missing+=(libegl1 libgl1-mesa-dri) ;;
            libGL.so.1) missing+=(libgl1) ;;
            libOSMesa.so.8) missing+=(libosmesa6) ;;
        esac
    fi
done
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
