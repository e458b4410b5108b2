#!/bin/sh
# Install the Debian packages that the test hosts need on this machine; quick when they are there.
set -eu
packages="podman runc mmdebstrap netavark aardvark-dns iptables openssh-client debian-archive-keyring"

if ! command -v apt-get >/dev/null; then
    echo "molecule/shared/setup.sh: the test hosts need a Debian or Ubuntu machine with: $packages" >&2
    exit 1
fi
missing=
for package in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    sudo=
elif sudo -n true 2>/dev/null; then
    sudo=sudo
else
    echo "molecule/shared/setup.sh: run as root or with passwordless sudo, or install:$missing" >&2
    exit 1
fi
# shellcheck disable=SC2086 # a list of packages, and an empty or one-word prefix
{
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes $missing
}
