#!/usr/bin/python
"""Make the torrents of trees that the host holds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fan_out_offer
short_description: Make the torrents of trees that the host holds
description:
  - Reads every byte of the trees once, and changes nothing. What the hashes of the files must be stands in the
    manifest; the torrent's are for the pieces on their way.
options:
  paths:
    description: The directories, each with its manifest beside it.
    type: list
    elements: path
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Offer a model
  fan_out_offer:
    paths: [/opt/raymetal/models/qwen3-8b/1]
"""
RETURN = r"""
offers:
  description: For each path its torrent (base64; empty where there is no byte to send) and files (name: size, sha256).
  type: dict
  returned: success
"""

import base64
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fan_out_torrent import make
from ansible.module_utils.fan_out_tree import Files, Problem, carried, check_sizes, digest_of, read_manifest, tree_id


def offer(path: str) -> tuple[str, Files]:
    files = read_manifest(path)
    if files is None:
        raise Problem(f"{path} has lost its manifest. To do: run again")
    check_sizes(path, files)
    names = carried(files)
    if not names:
        return "", files
    try:
        name = tree_id(path, digest_of(files))
        torrent = make(name, [os.path.join(path, n) for n in names], [files[n]["size"] for n in names])
    except (OSError, EOFError) as error:
        raise Problem(f"{path} cannot be read whole: {error}. To do: --tags verify") from error
    return base64.b64encode(torrent).decode(), files


def main() -> None:
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "required": True}}, supports_check_mode=True
    )
    offers = {}
    os.nice(10)  # whoever serves on the host goes first
    try:
        for path in module.params["paths"]:
            torrent, files = offer(path)
            offers[path] = {"torrent": torrent, "files": files}
    except Problem as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(changed=False, offers=offers)


if __name__ == "__main__":
    main()
