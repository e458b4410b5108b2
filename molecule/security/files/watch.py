"""Look at the command lines of all processes, again and again, for words that must not be there.

    watch.py STOP-FILE < words, one a line

Prints what it found and how often it looked, as JSON, when STOP-FILE is there.
"""

import json
import sys
import time
from pathlib import Path


def main(stop: Path) -> None:
    words = [line.strip().encode() for line in sys.stdin if line.strip()]
    found: set[str] = set()
    looks = 0
    while not stop.exists():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:
                continue
            if any(word in command for word in words):
                found.add(command.replace(b"\0", b" ").decode(errors="replace"))
        looks += 1
        time.sleep(0.05)
    print(json.dumps({"found": sorted(found), "looks": looks}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
