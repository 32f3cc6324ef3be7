#!/bin/sh
# Build the image usbplugin:VERSION. Arguments go to the engine's build command, for example
#   --build-arg BASE=...                  another base image
#   --secret id=pip.conf,src=FILE         PyPI through a mirror
#   --secret id=ca-certificates,src=FILE  its certificates: cert = /run/secrets/ca-certificates
set -eu
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/image/engine.sh
. deploy/image/engine.sh

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' usbplugin/__init__.py)
revision=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)

"$ENGINE" build --tag "usbplugin:$version" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" .
echo "usbplugin:$version is built."
