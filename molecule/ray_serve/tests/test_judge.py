"""The judge's own tests, run on the head by the environment's Python: real Ray and vLLM, no cluster."""

import io
import os
import tarfile
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
PYTEST = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "pygments")  # pure Python: the controller's own serve


def test_the_judge_passes_its_tests(host, container, podman):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for package in PYTEST:
            origin = Path(find_spec(package).origin)
            path = origin.parent if origin.name == "__init__.py" else origin
            archive.add(path, f"pytest/{path.name}")
        for path in ("tests/head", "roles/ray_serve/files"):
            archive.add(PROJECT / path, f"project/{path}")
    host.run_expect([0], "rm -rf /srv/judge && mkdir /srv/judge")
    podman("exec", "-i", container, "tar", "-x", "-C", "/srv/judge", input=packed.getvalue())
    wanted = os.environ.get("RAYMETAL_MUTATIONS", "25")
    result = host.run(
        "cd /srv/judge/project && RAYMETAL_MUTATIONS=%s PYTHONPATH=/srv/judge/pytest "
        "/opt/raymetal/env/current/bin/python -m pytest -q -p no:cacheprovider tests/head 2>&1 | tail -40",
        wanted,
    )
    assert " passed" in result.stdout and "failed" not in result.stdout, result.stdout
