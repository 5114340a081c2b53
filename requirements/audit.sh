#!/bin/sh
# Known vulnerabilities of exactly what the files name: audit.sh PIP-AUDIT FILE…  Exit status 1 where there are some, 2
# where that could not be found out, which is no clean bill.
set -eu
audit=$1
shift
status=0
for file in "$@"; do
    if told=$("$audit" --strict --no-deps --disable-pip --progress-spinner off -r "$file" 2>&1); then
        echo "$file: no known vulnerability"
        continue
    fi
    echo "$told"
    if echo "$told" | grep -q '^Found .* known vulnerabilit'; then
        echo "$file: has known vulnerabilities, listed above"
        status=1
    else
        echo "$file: NOT audited: the service that knows of vulnerabilities could not be asked, or does not know a package"
        [ "$status" = 1 ] || status=2
    fi
done
exit "$status"
