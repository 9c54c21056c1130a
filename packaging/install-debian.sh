#!/bin/sh
# Install Debian packages that are missing: packaging/install-debian.sh NAME...
# Servers among them are neither started nor enabled, because the tests start their own.
set -eu
missing=""
for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing="$missing $name"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "please install:$missing" >&2
    exit 1
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
# If there is this file, packages ask it before they start a server. 101: no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
$as_root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing
command -v systemctl >/dev/null || exit 0
for name in $missing; do
    for unit in $(dpkg-query -L "$name" | sed -nE 's#^(/usr)?/lib/systemd/system/([^/@]+\.(service|timer))$#\2#p'); do
        $as_root systemctl disable --quiet "$unit"
    done
done
