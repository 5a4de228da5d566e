#!/bin/sh
# Sends the first of the sample digits, a 0, as JSON and prints the reply of the server, in JSON.
set -eu
samples=../../samples/digits-100-images-idx3-ubyte
address=${HTTP_ADDRESS:-localhost:8000}

# 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink.
row=$(od -An -v -tu1 -j16 -N784 "$samples" | tr -s ' \n' ',' | sed 's/^,//; s/,$//')
printf '{"pixels": [[%s]]}' "$row" |
    curl --silent --show-error --fail-with-body --max-time 5 --header 'content-type: application/json' --data @- \
        "http://$address/v1/predict"
