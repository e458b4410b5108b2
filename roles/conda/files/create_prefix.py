#!/usr/bin/env python3
"""Make a prefix with conda packages, by the conda program or, with --cache, by py-rattler.

    create_prefix.py --conda=/…/bin/conda [--channel=URL]… (SPEC… | --file=LOCK) --prefix=DIRECTORY
    create_prefix.py --cache=DIRECTORY    [--channel=URL]… (SPEC… | --file=LOCK) --prefix=DIRECTORY

SPEC is a conda match specification, for instance `python=3.11`. LOCK is an explicit lock: `@EXPLICIT`, then one address
with a hash per line; it is installed without a solver, and without repodata. py-rattler leaves the same kind of lock in
DIRECTORY/conda-meta/explicit.lock. A failure is told in one line, with what to do, and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What a failure says, in the words of conda and of rattler, and what to do then; the first that is found.
ADVICE = {
    r"No space left|NoSpaceLeftError": "make room on the file system of {prefix} and of conda_root",
    r"hash mismatch|ChecksumMismatchError": "what the mirror serves is not what the lock or the channel's index names: "
    "empty the mirror's cache, or renew conda_lock from a source that you trust",
    r"Permission denied|Read-only file system|NotWritableError": "let root write to {prefix} and to conda_root",
    r"No candidates were found|nothing provides|PackagesNotFoundError|Unsatisfiable": "set conda_python_version to one "
    "that {channels} has, or name a channel that has it in conda_channels",
    r"certificate|SSLError": "name the CA that signed the mirror's certificate in python_env_ca_bundle",
    r"could not find subdir|\b40[134]\b|UnavailableInvalidChannel": "see that {channels} is a channel, and that this "
    "host may read it; conda_channels, conda_channel_alias and conda_lock name the addresses",
    r"error sending request|Request failed|timed out|CondaHTTPError|ConnectionFailed|ProxyError": "see that this host "
    "reaches {channels}: conda_channel_alias names a mirror, cluster_proxy_environment a proxy",
}


def told(text: str, prefix: str, channels: list[str]) -> str:
    """One line of a failure's text, and what to do."""
    found = (do for marker, do in ADVICE.items() if re.search(marker, text))
    advice = next(found, "read the message; it is conda's own")
    do = advice.format(prefix=prefix, channels=", ".join(channels) or "the lock's addresses")
    return f"no environment at {prefix}: {' '.join(text.split()).rstrip('.')}. To do: {do}"


def locked(lock: str) -> Iterator[tuple[str, bytes]]:
    """Address and hash, MD5 or SHA-256, of each package of an explicit lock, which `validate` has seen."""
    for url, digest in re.findall(r"(?m)^(\w+://[^#\s]+)#(?:sha256:)?([0-9a-f]+)\s*$", lock):
        yield url, bytes.fromhex(digest)


async def make_by_rattler(arguments: argparse.Namespace) -> None:
    """Solve, or read the lock, then fetch and link; raises what rattler raises."""
    import rattler

    client = rattler.Client.default_client()  # tries again, and reads .netrc; without one rattler does neither
    if arguments.file:
        lock = arguments.file.read_text()
        # A cache of its own: rattler takes what is cached under a package's name, whatever MD5 the lock has.
        cache = arguments.cache / hashlib.sha256(lock.encode()).hexdigest()[:12]
        records = []
        for url, digest in locked(lock):
            channel, subdir, file = url.rsplit("/", 2)
            name, version, build = re.sub(r"\.conda$|\.tar\.bz2$", "", file).rsplit("-", 2)
            package = rattler.PackageRecord(name, version, rattler.BuildString(build), 0, subdir)
            if len(digest) == 16:
                package.md5 = digest
            else:
                package.sha256 = digest
            records.append(rattler.RepoDataRecord(package, file, url, channel))
    else:
        cache = arguments.cache / "packages"
        # Fresh each time: rattler 0.28 takes a server's 304 to the index of an earlier run for a failure.
        shutil.rmtree(arguments.cache / "repodata", ignore_errors=True)
        records = await rattler.solve(
            arguments.channel,
            arguments.spec,
            platforms=[rattler.Subdir.current(), rattler.Subdir("noarch")],
            virtual_packages=rattler.VirtualPackage.detect(),
            gateway=rattler.Gateway(cache_dir=arguments.cache / "repodata", client=client),
        )
    await rattler.install(records, target_prefix=arguments.prefix, cache_dir=cache, show_progress=False, client=client)
    lines = [f"{record.url}#{(record.sha256 or record.md5 or b'').hex()}" for record in records]
    platform = f"# platform: {rattler.Subdir.current()}"
    Path(arguments.prefix, "conda-meta/explicit.lock").write_text("\n".join([platform, "@EXPLICIT", *lines, ""]))


def make_by_conda(arguments: argparse.Namespace) -> None:
    """Let conda make it; raises RuntimeError with what it said."""
    # Only the channels that are named: an inherited `defaults` would be one more, with a licence of its own.
    command = [arguments.conda, "create", "--yes", "--quiet", "--override-channels"]
    command += [f"--channel={channel}" for channel in arguments.channel]
    command += [f"--file={arguments.file}"] if arguments.file else arguments.spec
    done = subprocess.run([*command, f"--prefix={arguments.prefix}"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip() or f"conda ended with {done.returncode}")


def main(arguments: argparse.Namespace) -> int:
    try:
        if arguments.conda:
            make_by_conda(arguments)
        else:
            asyncio.run(make_by_rattler(arguments))
    # rattler's errors have no class in common.
    except Exception as error:  # noqa: BLE001
        print(told(str(error), arguments.prefix, arguments.channel), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a prefix with conda packages.")
    parser.add_argument("--conda", help="the conda program; without it py-rattler does it")
    parser.add_argument("--cache", type=Path, help="py-rattler's cache of packages and repodata")
    parser.add_argument("--channel", action="append", default=[], help="address of a channel; no other is asked")
    parser.add_argument("--file", type=Path, help="explicit lock, instead of specifications")
    parser.add_argument("--prefix", required=True, help="the directory to make")
    parser.add_argument("spec", nargs="*", help="match specification, for instance python=3.11")
    code = main(parser.parse_args())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # py-rattler's threads sometimes abort an ordinary end
