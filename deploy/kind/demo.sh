#!/bin/sh
# The whole story on a laptop: a kind cluster, usbplugin, a virtual tty, a pod that reads from it.
# docs/quickstart-kind.md tells it. Run it again at any time: what is there already is used again.
set -eu
cd "$(dirname "$0")/../.."

CLUSTER=usbplugin
BUS=/run/usbplugin-virtual
IMAGE=usbplugin:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' usbplugin/__init__.py)

kube() { kubectl --context "kind-$CLUSTER" "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '    $ %s\n' "$*"; "$@"; }

need() {
  command -v "$1" >/dev/null || { echo "$1 is missing: $2" >&2; missing=1; }
}

check_tools() {
  missing=
  need docker "https://docs.docker.com/engine/install (Linux), or: brew install docker colima"
  need kind "https://kind.sigs.k8s.io/docs/user/quick-start, or: brew install kind"
  need kubectl "https://kubernetes.io/docs/tasks/tools, or: brew install kubectl"
  [ -z "$missing" ] || exit 1
  docker info >/dev/null 2>&1 || {
    echo "docker is here, but no engine answers: start it (macOS: colima start; Linux: systemctl" \
      "start docker), and see that you may use it (docker info)" >&2
    exit 1
  }
}

make_cluster() {
  say "A cluster named $CLUSTER"
  kind get clusters 2>/dev/null | grep -qx "$CLUSTER" ||
    show kind create cluster --config deploy/kind/cluster.yaml --wait 120s
}

load_image() {
  say "The image, built here and loaded into the cluster: no registry takes part"
  ENGINE=docker deploy/image/build.sh
  show kind load docker-image "$IMAGE" --name "$CLUSTER"
}

label_nodes() {
  say "The nodes that shall run the plugin get its label"
  show kube label node --all --overwrite usbplugin/serial-capable=true
}

deploy() {
  say "The plugin, and on the same node two virtual ttys"
  show kube apply --kustomize deploy/kustomize/overlays/kind
  show kube rollout status --namespace usbplugin daemonset/usbplugin --timeout 120s
  show kube rollout status --namespace usbplugin daemonset/virtual-ttys --timeout 120s
}

# What the node says it can give to pods; the kubelet updates it every few seconds.
wait_for_allocatable() {
  show kube wait node --all --timeout 60s \
    --for "jsonpath={.status.allocatable['usbplugin/serial']}=$1"
}

see_devices() {
  say "What the plugin sees, and what the node offers"
  show kube exec --namespace usbplugin daemonset/usbplugin -- usbplugin list
  wait_for_allocatable 2
}

run_reader() {
  say "A pod asks for usbplugin/serial: 1, and prints what it reads"
  kube delete pod reader --ignore-not-found
  show kube apply --filename deploy/kind/reader.yaml
  show kube wait pod/reader --for condition=Ready --timeout 120s
  sleep 3
  show kube logs reader --tail 3
}

# Which of the two the pod got: the name in the container is the one on the bus.
held_tty() { kube exec reader -- printenv USBPLUGIN_SERIAL_DEVICES | sed 's,^/dev/,,'; }

play() { show kube exec --namespace usbplugin daemonset/virtual-ttys -- usbplugin virtual --dir "$BUS" "$@"; }

unplug() {
  say "Somebody pulls the cable of $TTY"
  play --unplug "$TTY"
  wait_for_allocatable 1
  show kube exec --namespace usbplugin daemonset/usbplugin -- usbplugin list
  say "The pod's container has ended, and does not start without its device (Kubernetes 1.36 and" \
    "newer also tell the device's health)"
  sleep 5
  show kube get pod reader
  kube get pod reader --output \
    'jsonpath={.status.containerStatuses[0].allocatedResourcesStatus}{"\n"}'
}

replug() {
  say "It is plugged in again, and comes up as ttyUSB7"
  play --plug "$TTY" --as ttyUSB7
  wait_for_allocatable 2
  say "The waiting container starts with the same device; to it, nothing has changed its name"
  show kube wait pod/reader --for condition=Ready --timeout 120s
  sleep 3
  show kube logs reader --tail 3
}

check_tools
make_cluster
load_image
label_nodes
deploy
see_devices
run_reader
TTY=$(held_tty)
unplug
replug
say "Done. Look around with kubectl --context kind-$CLUSTER; the end of it: kind delete cluster --name $CLUSTER"
