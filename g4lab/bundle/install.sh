#!/bin/sh
# install.sh [DEST]: install this bundle into the folder DEST (default: ./g4lab-node) on a machine without a network.
#   PYTHON=/path/to/python chooses the interpreter that has torch (default: python3).
# Run again, it installs the same over what is there. Afterwards: . DEST/env.sh
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
dest=${1:-g4lab-node}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

field() {
    "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$here/manifest.json" "$1"
}

check() { # FOLDER SUMS WHAT: every file of the list is there and has its hash
    while read -r _ name; do
        [ -f "$1/$name" ] || fail "missing $3 $name: copy it again"
    done <"$2"
    bad=$(cd "$1" && sha256sum -c "$2" 2>/dev/null | sed -n 's/: FAILED.*//p')
    [ -z "$bad" ] || fail "wrong hash of $3 $(echo $bad): copy it again"
}

for tool in "$python" sha256sum tar gzip; do
    command -v "$tool" >/dev/null || fail "no $tool on this machine (PYTHON=... chooses the interpreter)"
done
for file in manifest.json parcels.sha256 files.sha256; do
    [ -f "$here/$file" ] || fail "missing file $file: it belongs beside install.sh"
done
want=$(field python)
have=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$have" = "$want" ] || fail "$python is Python $have, this bundle is for $want: set PYTHON"
want=$(field torch)
have=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null) || have=none
case $have in "$want" | "$want".*) ;; *) fail "$python has torch $have, this bundle is for $want: set PYTHON" ;; esac
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip"

check "$here" "$here/parcels.sha256" parcel
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
work=$dest/.unpacked
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir "$work"
while read -r _ parcel; do
    tar -xf "$here/$parcel" -C "$work"
done <"$here/parcels.sha256"
for first in "$work"/*.part-001 "$work"/*/*.part-001; do
    [ -f "$first" ] || continue
    whole=${first%.part-001}
    cat "$whole".part-* >"$whole"
    rm "$whole".part-*
done
check "$work" "$here/files.sha256" file

install() { # FOLDER: the wheels of one folder into DEST/FOLDER
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-index --no-deps \
        --no-compile --no-cache-dir --upgrade --target "$dest/$1" "$work/$1"/*.whl
}
install site
install g4lab
tar -xzf "$work/checkout.tar.gz" -C "$dest/g4lab"
mkdir -p "$dest/model"
tar -xzf "$work/model.tar.gz" -C "$dest/model"
cp "$here/manifest.json" "$dest/"

# SGLang's JIT kernels are linked with -lcudart: the runtime that torch brought gets that plain name.
mkdir -p "$dest/lib"
runtime=$("$python" -c '
import glob, sys
print(next((f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib/libcudart.so.*")), ""))')
[ -z "$runtime" ] || ln -sf "$runtime" "$dest/lib/libcudart.so"

cat >"$dest/env.sh" <<END
# Source this: . $dest/env.sh
case ":\${PYTHONPATH:-}:" in
*":$dest/site:"*) ;;
*)
    export PYTHONPATH="$dest/g4lab:$dest/site\${PYTHONPATH:+:\$PYTHONPATH}"
    export PATH="$dest/g4lab/bin:$dest/site/bin:$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):\$PATH"
    export LIBRARY_PATH="$dest/lib\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
    ;;
esac
export SGLANG_IS_FLASHINFER_AVAILABLE=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export TVM_FFI_CACHE_DIR="$dest/cache/tvm-ffi" G4LAB_CACHE="$dest/cache/g4lab"
END
. "$dest/env.sh"

cd "$dest/g4lab"
echo "installed $(field commit | cut -c1-9) in $dest; checking"
"$python" -m g4lab.bundle "$dest/manifest.json"
g4lab doctor
