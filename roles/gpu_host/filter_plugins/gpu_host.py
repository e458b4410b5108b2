"""Relations between the inputs of gpu_host."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

# Sockets live in <state>/ray/session_<time>_<pid>/sockets/: 107 bytes in all are what the kernel takes.
STATE_DIR_LENGTH_MAX = 30
RESERVE_PERCENT_MAX = 50


def gpu_host_problems(user: str, directories: dict[str, str], reserve_percent: float) -> list[dict[str, Any]]:
    """Problems of the service user's name, of the directories (variable -> path), and of the reserve of a disk."""
    found = []
    if not 0 <= reserve_percent <= RESERVE_PERCENT_MAX:
        variable, do = "cluster_disk_reserve_percent", f"write 0 to {RESERVE_PERCENT_MAX}"
        found.append({"variable": variable, "value": reserve_percent, "problem": "is out of bounds", "do": do})
    if user == "root":
        text = "services never run as root, and teardown ends every process of this user"
        found.append({"variable": "cluster_user", "value": user, "problem": text, "do": "name a dedicated user"})
    for variable, path in directories.items():
        parts = PurePosixPath(path).parts
        if not path.startswith("/") or ".." in parts or len(parts) < 3:
            text = "must be an absolute path at least two levels deep, since teardown removes it"
            found.append(
                {"variable": variable, "value": path, "problem": text, "do": "use something like /opt/raymetal"}
            )
    state = directories["gpu_host_state_dir"]
    if len(state) > STATE_DIR_LENGTH_MAX:
        text = f"longer than {STATE_DIR_LENGTH_MAX} characters: Ray's sockets below it would have too long a path"
        found.append({"variable": "gpu_host_state_dir", "value": state, "problem": text, "do": "use a shorter path"})
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"gpu_host_problems": gpu_host_problems}
