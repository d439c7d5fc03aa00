#!/bin/sh
# Generates messages, gRPC code and type stubs from proto/ into a directory (by default service/generated).
#
# Imports are rewritten to the package that the code lives in. The names that the files register under stay as in
# proto/, so that reflection serves them as timelines/ranking/v1/ranking.proto.
#
# Usage: proto/generate.sh [OUTDIR]      PYTHON: an interpreter with the dev extra (by default .venv/bin/python)
set -eu
cd "$(dirname "$0")/.."
out="${1:-service/generated}"
python="${PYTHON:-.venv/bin/python}"
PATH="$(dirname "$(command -v "$python")"):$PATH" # where protoc looks for the mypy plugins

rm -rf "$out"
mkdir -p "$out"
# Only the services file gets gRPC code: the others have no services.
"$python" -m grpc_tools.protoc -I proto --python_out="$out" --mypy_out=quiet:"$out" $(find proto -name '*.proto')
"$python" -m grpc_tools.protoc -I proto --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
  proto/timelines/ranking/v1/ranking.proto
find "$out" -name '*.py*' -exec sed -i -E \
  's/^(from|import) timelines\b/\1 service.generated.timelines/; s/^( *)from timelines\b/\1from service.generated.timelines/' {} +
find "$out" -type d | while read -r directory; do
  echo '"""Generated from proto/ by proto/generate.sh."""' >"$directory/__init__.py"
done
