#!/bin/sh
# Requests the front page again and again over one connection and says how many a second it got.
# Every single answer must be 200: a server that is fast because it fails is not fast.
set -eu

command -v curl >/dev/null || { echo "curl is not installed"; exit 77; }

url=http://127.0.0.1/
count=20

start=$(date +%s.%N)
# curl reuses the connection for all addresses of one call; [1-N] makes the calls.
codes=$(curl --silent --output /dev/null --max-time 60 --write-out '%{http_code}\n' "$url?[1-$count]")
end=$(date +%s.%N)

good=$(printf '%s\n' "$codes" | grep -c '^200$' || true)
if [ "$good" -ne "$count" ]; then
    echo "$good of $count requests were answered with 200" >&2
    exit 1
fi
awk -v n="$count" -v s="$start" -v e="$end" 'BEGIN { t = e - s; if (t <= 0) t = 0.001; printf "%.1f req/s\n", n / t }'
