# Runs in a new host. $1: the user who may log in with the public key on standard input; not root: with sudo.
user=$1
if ! id -u "$user" >/dev/null 2>&1; then
    # Debian has groups named like possible users (operator), without the user.
    getent group "$user" >/dev/null || groupadd "$user"
    useradd --create-home --shell /bin/bash --gid "$user" "$user"
    printf '%s ALL=(ALL) NOPASSWD:ALL\n' "$user" >/etc/sudoers.d/molecule
    chmod 0440 /etc/sudoers.d/molecule
fi
ssh_dir=$(getent passwd "$user" | cut -d: -f6)/.ssh
if [ ! -e "$ssh_dir/authorized_keys" ]; then
    install -d -m 0700 -o "$user" -g "$user" "$ssh_dir"
    cat >"$ssh_dir/authorized_keys"
    chown "$user:" "$ssh_dir/authorized_keys"
    echo admitted
fi
