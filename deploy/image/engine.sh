# shellcheck shell=sh
# Sourced: sets ENGINE to the first of docker, podman and buildah that works here.

engine_works() {
  # The docker command without a running engine is of no use.
  case $1 in
    docker) command -v docker >/dev/null && docker info >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

if [ -z "${ENGINE:-}" ]; then
  for candidate in docker podman buildah; do
    if engine_works "$candidate"; then
      ENGINE=$candidate
      break
    fi
  done
fi
if [ -z "${ENGINE:-}" ]; then
  echo "No docker engine is running, and neither podman nor buildah is here: install one of them." >&2
  exit 1
fi
