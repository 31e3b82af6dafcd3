#!/bin/sh
# Reloads once clients ask, as the log shows, and tells them that it is enough.
until grep -q begun-asking /var/log/nginx/access.log; do sleep 0.1; done
systemctl reload nginx && touch /var/www/html/enough
