#!/bin/sh
# Print the name of the test hosts' image; build it first from Debian packages if it is not there. Root is needed.
# MOLECULE_SUITE: Debian release (bookworm). MOLECULE_MIRROR: a URL ending in /debian (this machine's own mirror).
set -eu
suite=${MOLECULE_SUITE:-bookworm}
packages=systemd,systemd-sysv,dbus,openssh-server,python3,python3-venv,python3-apt,sudo,iproute2,procps,ca-certificates
packages=$packages,aria2,curl,libnuma1,tini,zstd

mirror_of() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 -E "/$1/?\$" || true; }
mirror=${MOLECULE_MIRROR:-$(mirror_of debian)}
mirror=${mirror%/}
security=${MOLECULE_MIRROR:+$mirror-security}
security=${security:-$(mirror_of debian-security)}
# What apt needs to reach its mirror from here: proxies, certificates, tolerance for old indexes.
apt_options=$(apt-config dump | grep -E '^Acquire::(https?::|Retries|Check-|Force)' || true)
for scheme in http https; do
    proxy=$(printenv "${scheme}_proxy" || true)
    [ -z "$proxy" ] || apt_options="$apt_options
Acquire::$scheme::Proxy \"$proxy\";"
done

hash=$({ cat "$0"; echo "$suite $mirror $security $apt_options"; } | sha256sum | cut -c1-12)
image=localhost/raymetal-host:$suite-$hash

exec 9>/run/lock/raymetal-host-image
flock 9 # scenarios that start together build it once
if ! podman image exists "$image"; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    printf '%s\n' "$apt_options" >"$work/apt.conf"
    if [ -n "$mirror" ]; then
        option='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
        printf 'deb %s\n' "$option $mirror $suite main" "$option $mirror $suite-updates main" >"$work/sources.list"
        [ -z "$security" ] || printf 'deb %s\n' "$option $security $suite-security main" >>"$work/sources.list"
    fi
    # Each host makes its own ssh host keys and machine id at its first start.
    cat >"$work/finish" <<'HOOK'
#!/bin/sh
set -eu
rm -f "$1"/etc/ssh/ssh_host_*
: >"$1/etc/machine-id"
mkdir -p "$1/etc/systemd/system/ssh.service.d"
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
    >"$1/etc/systemd/system/ssh.service.d/host-keys.conf"
HOOK
    chmod +x "$work/finish"
    # shellcheck disable=SC2046 # no mirror found: no argument, and mmdebstrap uses its own
    mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" --aptopt="$work/apt.conf" \
        --customize-hook="$work/finish" "$suite" "$work/root.tar" $([ -z "$mirror" ] || echo "$work/sources.list") >&2
    podman import --quiet --change "LABEL molecule.project=${MOLECULE_PREFIX:-raymetal}" "$work/root.tar" "$image" >&2
    echo built >&2
fi
echo "$image"
