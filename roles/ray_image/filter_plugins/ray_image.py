"""Relations between the inputs of ray_image."""

from __future__ import annotations

import re
from typing import Any


def ray_image_problems(reference: str, prefix: str) -> list[dict[str, Any]]:
    """Problems of an image's name, and of the ``prefix`` of Python in it; both empty for one that is built."""
    found = []
    here = {"variable": "ray_image_reference", "value": reference}
    if reference and not re.search(r"(@sha256:[0-9a-f]{64}|:[\w][\w.-]*)$", reference.rpartition("/")[2]):
        found.append({**here, "problem": "has neither tag nor digest", "do": "name one version of it: name:tag"})
    if reference.endswith(":latest"):
        found.append({**here, "problem": "is another image tomorrow", "do": "name one version of it: name:tag"})
    if bool(reference) != bool(prefix):
        here = {"variable": "ray_node_image_prefix", "value": prefix}
        text = "an image of your own, and where Ray is in it, belong together"
        do = "set it to the prefix, as /home/ray/anaconda3" if reference else "set ray_image_reference, or remove it"
        found.append({**here, "problem": text, "do": do})
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"ray_image_problems": ray_image_problems}
