"""Make a directory that is a model by its form, with a configuration and weights. usage: make_tiny.py PATH"""

import json
import struct
import sys
from pathlib import Path

path = Path(sys.argv[1])
path.mkdir(parents=True, exist_ok=True)
(path / "config.json").write_text('{"model_type": "llama"}')
weights = bytes(range(256)) * 4096
header = json.dumps({"w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}).encode()
(path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
