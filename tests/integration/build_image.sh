#!/bin/sh
# Builds the Dockerfile without a container engine and without a registry, as image localhost/timeline-ranker:test.
#
# The base is Debian bookworm with its own Python 3.11, made here: it stands in for python:3.11-slim, so what is proved
# is the Dockerfile's steps, not the official image. Exit status 77: there is no base to be had here, with the reason
# on stderr.
#
# Usage: build_image.sh DIRECTORY [CONTEXT]    images go below DIRECTORY; CONTEXT: the checkout (default: this one)
set -eu
directory=$1
context=${2:-$(cd "$(dirname "$0")/../.." && pwd)}
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

b() { buildah --root "$directory/store" --runroot "$directory/run" "$@"; }
no_base() {
  echo "$1" >&2
  exit 77
}

for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || no_base "$tool is not installed"
done
[ "$(id -u)" = 0 ] || no_base "debootstrap needs root"

mkdir -p "$directory"
debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$directory/base" \
  >"$directory/debootstrap.log" 2>&1 || no_base "debootstrap: $(tail -1 "$directory/debootstrap.log")"
container=$(b from scratch)
b add -q "$container" "$directory/base" / >/dev/null
b config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
b commit -q --rm "$container" localhost/base:test >/dev/null
rm -rf "$directory/base"

# Where HTTPS is signed by somebody the base does not know, pip in the build must know them too.
set --
if [ -n "${PIP_CERT:-}" ]; then
  printf '[global]\ncert = %s\n' "$PIP_CERT" >"$directory/pip.conf"
  set -- -v "$PIP_CERT:$PIP_CERT:ro" -v "$directory/pip.conf:/etc/pip.conf:ro"
fi
# The docker format keeps the health check, which OCI's does not have.
b bud --pull-never --format docker --build-arg BASE=localhost/base:test "$@" -t localhost/timeline-ranker:test "$context"
