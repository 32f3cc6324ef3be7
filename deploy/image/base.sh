#!/bin/sh
# Make a stand-in for debian:trixie-slim with debootstrap and buildah, as root, where no image
# registry can be reached:
#   deploy/image/base.sh && deploy/image/build.sh --build-arg BASE=localhost/debian:trixie
set -eu
suite=${1:-trixie}
for tool in debootstrap buildah; do
  command -v $tool >/dev/null || { echo "$tool is missing: apt-get install $tool" >&2; exit 1; }
done

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase "$suite" "$root/rootfs"
# As the official image has it: no package files, no lists.
rm -rf "$root"/rootfs/var/cache/apt/archives/*.deb "$root"/rootfs/var/lib/apt/lists/*

container=$(buildah from scratch)
buildah add --quiet "$container" "$root/rootfs" /
buildah config --cmd bash "$container"
buildah commit --quiet --rm "$container" "localhost/debian:$suite"
