#!/bin/sh
# Sends the first of the sample digits, a 0, and prints every layer and why two neurons have their activations, in JSON:
# output 0 (layer 3) and the first neuron of the first hidden layer.
set -eu
samples=../../samples/digits-100-images-idx3-ubyte
address=${HTTP_ADDRESS:-localhost:8000}

row=$(od -An -v -tu1 -j16 -N784 "$samples" | tr -s ' \n' ',' | sed 's/^,//; s/,$//')
printf '{"pixels": [[%s]], "neurons": [{"layer": 3, "index": 0}, {"layer": 1, "index": 0}]}' "$row" |
    curl --silent --show-error --fail-with-body --max-time 5 --header 'content-type: application/json' --data @- \
        "http://$address/v1/explain"
