#!/bin/sh
# Build a kubelet from Debian 12's source package of Kubernetes, with Debian's Go: build.sh OUTPUT.
# Nothing is installed, and root is not needed: all that it downloads is put into a directory of its
# own. It takes some minutes, and 2 GB meanwhile.
set -eu
output=$(realpath --canonicalize-missing "$1")

# shellcheck source=/dev/null
. /etc/os-release
if [ "${VERSION_CODENAME:-}" != bookworm ]; then
  echo "This builds on Debian 12 alone, and this is ${PRETTY_NAME:-something else}." >&2
  echo "Set USBPLUGIN_KUBELET to a kubelet that you have." >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"
mkdir -p sources lists/partial archives/partial source/k8s.io go

# The machine's own sources of this release, and what they say of source packages.
for file in /etc/apt/sources.list.d/*.sources; do
  if grep -qs '^Suites:.*\<bookworm\>' "$file"; then
    sed 's/^Types:.*/Types: deb deb-src/' "$file" > "sources/${file##*/}"
  fi
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  if [ -f "$file" ]; then
    sed -n 's/^deb \(.* bookworm main.*\)/deb \1\ndeb-src \1/p' "$file"
  fi
done > sources/lines.list

cat > apt.conf << END
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/sources";
Dir::State::lists "$work/lists";
Dir::Cache "$work";
APT::Sandbox::User "";
END
export APT_CONFIG="$work/apt.conf"
apt-get --quiet=2 update
# Debian's patches are about kubectl.
apt-get --quiet=2 source --download-only kubernetes
apt-get --quiet=2 download golang-1.19-go golang-1.19-src
for package in golang-*.deb; do
  dpkg --extract "$package" go
done
tar --extract --gzip --file kubernetes_*.orig.tar.gz --directory source/k8s.io
version=$(cd source/k8s.io && echo kubernetes-*)
mv "source/k8s.io/$version" source/k8s.io/kubernetes
ln -s . source/src

# Not as a module: this Go finds fault with a go.mod that old.
cd source/src/k8s.io/kubernetes
export GO111MODULE=off GOPATH="$work/source" GOPROXY=off GOFLAGS='' CGO_ENABLED=0
export GOCACHE="$work/cache" GOTMPDIR="$work"
"$work/go/usr/lib/go-1.19/bin/go" build -o "$work/kubelet" -ldflags \
  "-s -w -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v${version#kubernetes-}" \
  ./cmd/kubelet
mkdir -p "$(dirname "$output")"
mv "$work/kubelet" "$output"
"$output" --version
