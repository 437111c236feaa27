#!/usr/bin/env bash
# Regenerates src/onnx/file/gen/onnx_pb.ts from the proto2 schema that the `onnx` Python wheel ships (onnx/onnx.proto, Apache-2.0).
# Needs: pip, unzip, npx. Works in a scratch folder; only the generated file is written to the checkout.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
pip download onnx --no-deps --only-binary :all: -q
unzip -q onnx*.whl onnx/onnx.proto
printf 'version: v2\nmodules:\n  - path: onnx\n' >buf.yaml
printf 'version: v2\nplugins:\n  - local: protoc-gen-es\n    out: gen\n    opt: [target=ts, ts_nocheck=true]\n' >buf.gen.yaml
npm init -y >/dev/null
npm install --silent @bufbuild/buf @bufbuild/protoc-gen-es @bufbuild/protobuf
PATH="$scratch/node_modules/.bin:$PATH" buf generate
npx --prefix "$root" tsx "$root/scripts/onnx-proto.ts" gen/onnx_pb.ts "$root/src/onnx/file/gen/onnx_pb.ts" "$root/test/oracle/onnx-proto.ts"
