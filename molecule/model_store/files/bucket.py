#!/usr/bin/env python3
"""Put the model of the tests into a bucket that wants its keys.

usage: bucket.py ENDPOINT DIRECTORY
"""

import sys
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-not-found]


def main() -> None:
    endpoint, directory = sys.argv[1], Path(sys.argv[2])
    client: Any = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="models")
    for name in ("config.json", "model.safetensors"):
        client.upload_file(str(directory / name), "models", f"m/1/{name}")


if __name__ == "__main__":
    main()
