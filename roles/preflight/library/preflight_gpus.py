#!/usr/bin/python
"""Ask the GPUs of a host how they are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_gpus
short_description: Read what nvidia-smi knows of the health of the GPUs
description:
  - Errors of the memory since the driver was loaded, memory that waits to be retired or remapped, a reset that is
    wanted, and what slows the clocks. Xid errors are not among it - the driver tells them to the kernel's log only.
  - Changes nothing.
options: {}
author: Raymetal
"""
EXAMPLES = r"""
- name: Ask the GPUs
  preflight_gpus:
"""
RETURN = r"""
gpus:
  description: >-
    One dict each, with name, uuid, ecc_uncorrectable (count or null), retirement_pending, remapping_pending,
    remapping_failed, reset_required (bool), and slowdowns (list of reasons).
  type: list
  elements: dict
  returned: always
error:
  description: Why there is nothing; or empty.
  type: str
  returned: always
"""

import subprocess
from typing import Any
from xml.etree import ElementTree

from ansible.module_utils.basic import AnsibleModule

SECONDS = 60
# Reasons that mean heat or power, not load. Drivers before 535 say throttle where newer ones say event.
SLOWDOWNS = {
    "hw_thermal_slowdown": "too hot (hardware)",
    "sw_thermal_slowdown": "too hot (driver)",
    "hw_power_brake_slowdown": "power brake",
    "hw_slowdown": "hardware slowdown",
}


def uncorrectable(gpu: ElementTree.Element) -> int | None:
    """Errors since the driver was loaded; null where the GPU does not count them."""
    found = gpu.find("ecc_errors/volatile")
    texts = [
        (count.text or "").strip() for count in (found if found is not None else ()) if "uncorrectable" in count.tag
    ]
    counts = [int(text) for text in texts if text.isdigit()]
    return sum(counts) if counts else None


def parse_health(text: str) -> list[dict[str, Any]]:
    """The GPUs of the output of ``nvidia-smi -q -x``."""

    def says_yes(gpu: ElementTree.Element, path: str) -> bool:
        return (gpu.findtext(path) or "").strip() == "Yes"

    def slowed(gpu: ElementTree.Element, name: str) -> bool:
        kinds = ("event", "throttle")
        texts = (gpu.findtext(f"clocks_{kind}_reasons/clocks_{kind}_reason_{name}") for kind in kinds)
        return "Active" in texts

    return [
        {
            "name": gpu.findtext("product_name"),
            "uuid": gpu.findtext("uuid"),
            "ecc_uncorrectable": uncorrectable(gpu),
            "retirement_pending": says_yes(gpu, "retired_pages/pending_retirement"),
            "remapping_pending": says_yes(gpu, "remapped_rows/remapped_row_pending"),
            "remapping_failed": says_yes(gpu, "remapped_rows/remapped_row_failure"),
            "reset_required": says_yes(gpu, "gpu_reset_status/reset_required"),
            "slowdowns": [text for name, text in SLOWDOWNS.items() if slowed(gpu, name)],
        }
        for gpu in ElementTree.fromstring(text).iter("gpu")
    ]


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    found: list[dict[str, Any]] = []
    error = ""
    try:
        done = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode == 0:
            found = parse_health(done.stdout)
        else:
            error = (done.stdout + done.stderr).strip()[:500]
    except subprocess.TimeoutExpired:
        error = f"nvidia-smi did not answer within {SECONDS} s"
    except (OSError, ElementTree.ParseError) as wrong:
        error = f"nvidia-smi: {wrong}"
    module.exit_json(changed=False, gpus=found, error=error)


if __name__ == "__main__":
    main()
