"""Make a wheel that has a name and a version and nothing else, in DIRECTORY; prints its line for a lock.

    name_only_wheel.py NAME VERSION DIRECTORY URL

A stand-in for vLLM, of which the check of the pair reads only these two: 600 MB less in each environment.
"""

import hashlib
import sys
import zipfile

name, version, directory, url = sys.argv[1:]
stem = f"{name.replace('-', '_')}-{version}"
info = f"{stem}.dist-info"
wheel = f"{stem}-py3-none-any.whl"
with zipfile.ZipFile(f"{directory}/{wheel}", "w") as archive:
    archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    archive.writestr(f"{info}/RECORD", "".join(f"{info}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")))
with open(f"{directory}/{wheel}", "rb") as file:
    print(f"{name} @ {url}/{wheel} --hash=sha256:{hashlib.sha256(file.read()).hexdigest()}")
