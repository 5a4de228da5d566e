#!/bin/sh
# Writes pb/ from ../../proto, with the generators that go.mod pins.
#
#   ./generate.sh     PROTOC="python -m grpc_tools.protoc" takes the compiler of grpcio-tools
set -eu
cd "$(dirname "$0")"
package=digitserve/examples/go
mkdir -p pb
${PROTOC:-protoc} -I ../../proto \
    --plugin="protoc-gen-go=$(go tool -n protoc-gen-go)" --go_out=. \
    --go_opt="module=$package,Mdigits/v1/digits.proto=$package/pb" \
    --plugin="protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc)" --go-grpc_out=. \
    --go-grpc_opt="module=$package,Mdigits/v1/digits.proto=$package/pb" \
    digits/v1/digits.proto
