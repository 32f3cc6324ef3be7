#!/bin/sh
# Try the image that build.sh made: in the engine, and, as root on Linux with runc or crun, as the
# pods that the manifests make of it, beside an embedded kubelet.
set -eu
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/image/engine.sh
. deploy/image/engine.sh

image=usbplugin:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' usbplugin/__init__.py)

run_in_engine() {
  "$ENGINE" run --rm --read-only --cap-drop ALL --security-opt no-new-privileges --network none \
    --tmpfs /tmp "$image" "$@"
}

# Prints a directory with the image's files; what it takes is given back by clean_up.
unpack() {
  if [ "$ENGINE" = buildah ]; then
    container=$(buildah from --pull-never "$image")
    root=$(buildah mount "$container")
  else
    container=$("$ENGINE" create "$image")
    root=$(mktemp -d)
    "$ENGINE" export "$container" | tar -x -C "$root"
  fi
}

clean_up() {
  "$ENGINE" rm "$container" >/dev/null
  [ "$ENGINE" = buildah ] || rm -rf "$root"
}

if [ "$ENGINE" != buildah ]; then
  run_in_engine --version
  run_in_engine list
  run_in_engine demo
fi
if [ "$(id -u)" = 0 ] && { command -v runc || command -v crun; } >/dev/null; then
  unpack
  trap clean_up EXIT
  # In a mount namespace of its own, so that nothing that is mounted here outlives the tests.
  USBPLUGIN_IMAGE_ROOT=$root unshare --mount .venv/bin/pytest tests/deploy/test_image.py
elif [ "$ENGINE" = buildah ]; then
  echo "Nothing was tried: without docker or podman, this takes root and runc or crun." >&2
  exit 1
else
  echo "The pods were not tried: that takes Linux, root, and runc or crun."
fi
