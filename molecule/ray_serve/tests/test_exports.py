"""What playbooks/export.yml writes, judged by the Ray of the environment."""

import io
import os
import tarfile
from pathlib import Path

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])


def test_ray_accepts_what_is_exported(host, container, podman, playbook, tmp_path):
    inventory = PROJECT / "inventories/example"
    written = playbook("playbooks/export.yml", variables={"export_dir": str(tmp_path)}, inventory=inventory)
    assert written.returncode == 0, written.stdout
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tmp_path, "files")
        archive.add(PROJECT / "tests/head/accept_exports.py", "accept_exports.py")
    host.run_expect([0], "rm -rf /srv/exports && mkdir /srv/exports")
    podman("exec", "-i", container, "tar", "-x", "-C", "/srv/exports", input=packed.getvalue())
    result = host.run("cd /srv/exports && /opt/raymetal/env/current/bin/python -B accept_exports.py files")
    assert result.stdout.endswith("accepted\n"), result.stderr
