"""Ray's own checks of what playbooks/export.yml wrote into the directory that is the argument."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema


def main(directory: Path) -> None:
    cluster = yaml.safe_load((directory / "ray-up.yml").read_text())
    # As `ray up` does: what is left out is filled in first.
    validate_config(prepare_config(cluster))
    service = yaml.safe_load((directory / "rayservice.yml").read_text())
    for text in ((directory / "serve.yml").read_text(), service["spec"]["serveConfigV2"]):
        ServeDeploySchema.model_validate(yaml.safe_load(text))
    print("accepted")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
