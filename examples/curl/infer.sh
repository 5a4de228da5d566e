#!/bin/sh
# Sends the first three of the sample digits by the Open Inference Protocol, as a binary tensor, and prints the reply.
# Its bytes follow a JSON header, whose length is in an HTTP header; as JSON the pixels are 4 times as long.
set -eu
samples=../../samples/digits-100-images-idx3-ubyte
address=${HTTP_ADDRESS:-localhost:8000}
images=3
bytes=$((images * 784))

tensor='{"name": "pixels", "datatype": "UINT8", "shape": ['$images', 784], "parameters": {"binary_data_size": '$bytes'}}'
header='{"inputs": ['$tensor'], "outputs": [{"name": "digit"}]}'
{
    printf %s "$header"
    tail -c +17 "$samples" | head -c "$bytes"
} | curl --silent --show-error --fail-with-body --max-time 5 --data-binary @- \
    --header 'content-type: application/octet-stream' --header "Inference-Header-Content-Length: ${#header}" \
    "http://$address/v2/models/digits/infer"
