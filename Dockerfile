# Any base with apt and Python 3.11 or newer. Debian's own Python comes without pip, and gets its
# security updates from the place where everything else in the image gets them.
ARG BASE=docker.io/library/debian:trixie-slim

FROM ${BASE} AS build
# arm/v7 has no wheels of msgspec and PyYAML: there, give BUILD_PACKAGES="gcc libc6-dev python3-dev"
# and an empty PIP_ONLY_BINARY. Elsewhere nothing is compiled.
ARG BUILD_PACKAGES=
ARG PIP_ONLY_BINARY=:all:
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3-venv ${BUILD_PACKAGES} \
 && python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/usbplugin
ENV PATH=/opt/build/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /src
COPY requirements.lock deploy/image/requirements-build.lock ./
# The two optional secrets are for those who reach PyPI through a mirror: pip's configuration, and
# the certificates that it names as /run/secrets/ca-certificates.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_NO_CACHE_DIR=1 \
 && pip --python /opt/usbplugin install --no-compile --require-hashes -r requirements.lock \
 && pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY usbplugin usbplugin
# The root file system is read-only at run time, so bytecode is made here, once; unchecked, since
# its source cannot change, and so that the same source gives the same bytes.
RUN pip wheel --no-deps --no-index --no-build-isolation --wheel-dir dist . \
 && pip --python /opt/usbplugin install --no-compile --no-deps --no-index dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/usbplugin/lib

FROM ${BASE}
ARG DEBIAN_FRONTEND=noninteractive
# libc-bin's ldconfig is how Python finds libudev; every Debian has it, distroless images do not.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libudev1 python3 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf /var/cache/ldconfig /var/log/*
COPY --from=build /opt/usbplugin /opt/usbplugin
ENV PATH=/opt/usbplugin/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The kubelet's device plugin directory is root's alone. No capability is needed: see
# docs/security.md.
USER 0:0
ENTRYPOINT ["usbplugin"]
CMD ["serve"]
# Last, for they change with every commit, and would have all layers below them made anew.
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="usbplugin" \
      org.opencontainers.image.description="A Kubernetes device plugin for USB serial ports" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
