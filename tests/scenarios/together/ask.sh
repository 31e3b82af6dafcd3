#!/bin/sh
# Asks until the server says that it is enough, and counts the pages.
pages=0
until curl -sf -o /dev/null http://subject/enough; do
  curl -sf -o /dev/null http://subject/ || exit 1
  pages=$((pages + 1))
  curl -s -o /dev/null http://subject/begun-asking
done
echo "$pages pages"
test "$pages" -gt 0
