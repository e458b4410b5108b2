# Start a host unless it is there, let its user in, wait until systemd is up, and print the host's public key.
#   start.sh CONTAINER USER ARGUMENT…    arguments of `podman run`; the user's public key on standard input.
# A user who is not root gets sudo.
set -eu
container=$1 user=$2
shift 2

if ! podman container exists "$container"; then
    podman run --detach --name "$container" "$@" </dev/null >/dev/null
    echo started >&2
fi
podman exec -i "$container" sh -euc '
    if ! id -u "$1" >/dev/null 2>&1; then
        # Debian has groups named like possible users (operator), without the user.
        getent group "$1" >/dev/null || groupadd "$1"
        useradd --create-home --shell /bin/bash --gid "$1" "$1"
        printf "%s ALL=(ALL) NOPASSWD:ALL\n" "$1" >/etc/sudoers.d/molecule
        chmod 0440 /etc/sudoers.d/molecule
    fi
    ssh_dir=$(getent passwd "$1" | cut -d: -f6)/.ssh
    install -d -m 0700 -o "$1" -g "$1" "$ssh_dir"
    cat >"$ssh_dir/authorized_keys"
    chown "$1:" "$ssh_dir/authorized_keys"
' admit "$user"
# Right after the start its bus may not be there yet; without systemd only the key is waited for.
for _ in $(seq 60); do
    state=$(podman exec "$container" sh -c '
        case $(readlink /proc/1/exe) in */systemd) systemctl is-system-running --wait || true ;; *) echo running ;; esac
    ') || state=failed
    case $state in running | degraded)
        if podman exec "$container" cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null; then
            exit 0
        fi
        ;;
    esac
    sleep 1
done
echo "$container is not up: systemd says '$state'" >&2
exit 1
