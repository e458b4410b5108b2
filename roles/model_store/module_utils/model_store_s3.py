"""A model in a bucket of S3 or of what speaks like it, by rclone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from ansible.module_utils.model_store_job import Problem

if TYPE_CHECKING:
    from ansible.module_utils.model_store_job import Job

REMOTE = "store"
OPTIONS = [
    "--contimeout=30s",
    "--timeout=60s",
    "--retries=1",  # here they are counted by patience
    "--low-level-retries=3",
    "--checksum",  # of what an earlier run left, the bytes are compared too
    "--multi-thread-streams=0",  # a file grows from its beginning: that is how progress is seen
    "--config=/dev/null",
    "--use-json-log",
]
# What rclone says when trying again does not help -> what is wrong, what to do.
FINAL = {
    "NoSuchBucket": ("there is no such bucket", "correct s3.bucket or s3.endpoint"),
    "directory not found": ("there is no such bucket or prefix", "correct s3.bucket, s3.prefix or s3.endpoint"),
    "AccessDenied": ("access is denied", "name a file with keys that may read it in model_store_s3_credentials_file"),
    "Forbidden": ("access is denied", "name a file with keys that may read it in model_store_s3_credentials_file"),
    "InvalidAccessKeyId": ("the key is not known", "correct the file of model_store_s3_credentials_file"),
    "SignatureDoesNotMatch": ("the secret key is wrong", "correct the file of model_store_s3_credentials_file"),
    "no space left on device": ("the disk is full", "free some space, or set model_store_root to a larger file system"),
    "permission denied": ("no permission on the host's disk", "see to the file system of model_store_root"),
}


def environment(source: dict[str, Any], secret: dict[str, str]) -> dict[str, str]:
    """rclone's configuration: in the memory of its process, in no file and no command line."""
    endpoint = source.get("endpoint") or ""
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other" if endpoint else "AWS",
        "ENDPOINT": endpoint,
        "REGION": source.get("region") or "",
        "ACCESS_KEY_ID": secret.get("access_key_id", ""),
        "SECRET_ACCESS_KEY": secret.get("secret_access_key", ""),
        "SESSION_TOKEN": secret.get("session_token", ""),
        "NO_CHECK_BUCKET": "true",
        "FORCE_PATH_STYLE": "true" if endpoint else "",
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RCLONE_", "AWS_"))}
    return {**plain, **{f"RCLONE_CONFIG_{REMOTE.upper()}_{key}": value for key, value in settings.items() if value}}


def fetch(job: Job, source: dict[str, Any], secret: dict[str, str], **_more: Any) -> str:
    """Copy the prefix, then compare sizes and, where the server knows them, MD5 sums."""
    place = "/".join(part.strip("/") for part in (source["bucket"], source.get("prefix") or "") if part)
    settings = environment(source, secret)

    def rclone(*arguments: str) -> str:
        """What it prints; tried again while patience lasts."""
        while True:
            try:
                done = subprocess.run(
                    ["rclone", *arguments, *OPTIONS],
                    env=settings,
                    capture_output=True,
                    text=True,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[job.lock],  # for as long as it lives, nobody else begins
                )
            except FileNotFoundError as error:
                raise Problem("the host has no rclone. To do: apt install rclone") from error
            if done.returncode == 0:
                return str(done.stdout)
            words = said(done.stderr)
            for sign, (text, do) in FINAL.items():
                if sign.lower() in words.lower():
                    raise Problem(f"s3 {place}: {text}. To do: {do}")
            job.wait(f"s3 {place}: {words[:300]}")

    size: dict[str, int] = json.loads(rclone("size", "--json", f"{REMOTE}:{place}"))
    if not size["count"]:
        raise Problem(f"s3 {place}: there is nothing. To do: correct s3.bucket, s3.prefix or s3.endpoint")
    job.need(size["bytes"])
    job.begin("fetching", size["bytes"])
    # sync: what is left of another state of the prefix goes.
    rclone("sync", f"{REMOTE}:{place}", job.partial)
    job.begin("verifying")
    rclone("check", f"{REMOTE}:{place}", job.partial)
    for folder, _, names in os.walk(job.partial):
        os.chmod(folder, 0o755)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)
    return str(job.partial)


def said(log: str) -> str:
    """The errors in rclone's log, the last one last."""
    words = []
    for line in log.splitlines():
        entry: Any = {"level": "error", "msg": line}
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
        if entry.get("level") in ("error", "critical", "fatal"):
            words.append(" ".join(str(entry.get("msg", "")).split()))
    return "; ".join(dict.fromkeys(words)) or "rclone failed without a word"
