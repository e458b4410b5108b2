"""Relations between the inputs of model_store, and which host gets what."""

from __future__ import annotations

import configparser
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOCAL = ("host_path", "controller_path", "package")
REMOTE = ("hub", "archive", "s3")
SOURCES = LOCAL + REMOTE
PASSWORD = re.compile(r"://[^/@\s]*@")
Model = dict[str, Any]
Found = list[tuple[str, Any, str, str]]  # key below the model, value, problem, what to do


def _address(key: str, url: str) -> Found:
    """Problems of an HTTP(S) address; a password in it is not shown."""
    if PASSWORD.search(url):
        do = "leave it out and give the login to root on the hosts in ~/.netrc, mode 0600"
        return [(key, PASSWORD.sub("://***@", url), "carries a login, which logs and process lists would show", do)]
    if not re.match(r"https?://[^/\s]+", url):
        return [(key, url, "is no address", "write it as https://host/path")]
    return []


def _local(model: Model) -> Found:
    if model.get("host_path"):
        path = str(model["host_path"])
        return [] if path.startswith("/") else [(".host_path", path, "is no absolute path", "write it from the root")]
    if model.get("controller_path"):
        folder = Path(model["controller_path"])
        if not folder.is_dir():
            return [(".controller_path", str(folder), "is no directory on the controller", "correct the path")]
        text = "has no config.json: no model that vLLM loads"
        there = (folder / "config.json").is_file()
        return [] if there else [(".controller_path", str(folder), text, "correct the path")]
    lock = model["package"]["requirements"]
    text = "is no file on the controller"
    return [] if Path(lock).is_file() else [(".package.requirements", lock, text, "correct the path")]


def _remote(model: Model) -> Found:
    found: Found = []
    if hub := model.get("hub"):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub["repo"]):
            found.append((".hub.repo", hub["repo"], "is no repository", "write it as owner/name"))
        if not re.fullmatch(r"[0-9a-f]{40}", str(hub["revision"])):
            text = "is no commit: a branch or tag may be other bytes tomorrow, and on another host"
            do = "write the 40 digits of a commit, from 'Files and versions', 'History' on the model's page"
            found.append((".hub.revision", hub["revision"], text, do))
    elif archive := model.get("archive"):
        found += _address(".archive.url", archive["url"])
        if not re.fullmatch(r"[0-9a-fA-F]{64}", archive["sha256"]):
            found.append((".archive.sha256", archive["sha256"], "is no sha256", "write its 64 digits (sha256sum FILE)"))
    elif s3 := model.get("s3"):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", s3["bucket"]):
            do = "write the bucket's name alone; what is below it is s3.prefix"
            found.append((".s3.bucket", s3["bucket"], "is no name of a bucket", do))
        found += _address(".s3.endpoint", s3["endpoint"]) if s3.get("endpoint") else []
    return found


def model_store_problems(models: list[Model], settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Problems of the models: names, sources, and what the controller can see of them.

    ``settings``: hub_endpoint, hub_token_file, s3_credentials_file.
    """
    found = []
    counts = Counter(model["name"] for model in models)
    for index, model in enumerate(models):
        own: Found = []
        if counts[model["name"]] > 1:
            own.append((".name", model["name"], "another model has the same name", "give each its own"))
        for key in ("name", "revision"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(model[key])):
                do = "use letters, digits, dot, dash, underscore"
                own.append((f".{key}", model[key], "is no directory name", do))
        if model.get("digest") and not re.fullmatch(r"[0-9a-f]{64}", model["digest"]):
            own.append(
                (".digest", model["digest"], "is no digest", "copy it from the message of a run, or leave it out")
            )
        given = [source for source in SOURCES if model.get(source)]
        if len(given) != 1:
            do = "give exactly one of " + ", ".join(SOURCES)
            own.append(("", model["name"], f"has {len(given)} sources", do))
        else:
            own += (_local if given[0] in LOCAL else _remote)(model)
        found += [(f"model_store_models[{index}]{key}", *rest) for key, *rest in own]
    found += [(f"model_store_{key}", *rest) for key, *rest in _settings(settings or {})]
    return [dict(zip(("variable", "value", "problem", "do"), entry, strict=True)) for entry in found]


def _settings(settings: dict[str, Any]) -> Found:
    found: Found = []
    endpoint = settings.get("hub_endpoint") or ""
    if endpoint:
        found += _address("hub_endpoint", endpoint)
    for key in ("hub_token_file", "s3_credentials_file"):
        if not (name := settings.get(key)):
            continue
        path = Path(name).expanduser()
        if not path.is_file():
            found.append((key, name, "is no file on the controller", "correct the path, or empty the variable"))
        elif path.stat().st_mode & 0o077:
            found.append((key, name, "may be read by others on the controller", f"chmod 600 {name}"))
        elif key == "hub_token_file" and not re.fullmatch(r"\S+", path.read_text().strip()):
            found.append((key, name, "has not one token in it", "put the token into it, and nothing else"))
        elif key == "s3_credentials_file" and not _has_keys(path):
            do = "write it as ~/.aws/credentials is: [default], aws_access_key_id = ..., aws_secret_access_key = ..."
            found.append((key, name, "has no keys", do))
    local = re.match(r"http://(127\.|localhost[:/]|\[::1\])", endpoint + "/")
    if settings.get("hub_token_file") and endpoint.startswith("http://") and not local:
        do = "use https, or leave model_store_hub_token_file empty"
        found.append(("hub_endpoint", endpoint, "would carry the token unencrypted", do))
    return found


def _has_keys(path: Path) -> bool:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text())
    except configparser.Error:
        return False
    return all(parser.has_option("default", f"aws_{key}") for key in ("access_key_id", "secret_access_key"))


def model_store_kind(model: Model) -> str:
    """The model's source: one of SOURCES."""
    return next(source for source in SOURCES if model.get(source))


def model_store_remote(models: list[Model]) -> list[Model]:
    """The models that come from the network."""
    return [model for model in models if model_store_kind(model) in REMOTE]


def model_store_source(model: Model) -> str:
    """What the bytes of a model follow from, for its manifest; empty where only the bytes themselves say it."""
    if "source" in model:
        return str(model["source"])
    kind = model_store_kind(model)
    if kind == "hub":
        hub = model["hub"]
        patterns = [f" {key}: {', '.join(hub[key])}" for key in ("allow_patterns", "ignore_patterns") if hub.get(key)]
        return f"hub {hub['repo']}@{hub['revision']}" + "".join(patterns)
    if kind == "archive":
        return f"archive {model['archive']['sha256'].lower()}"
    if kind == "s3":
        return f"s3 {model['s3']['bucket']}/{model['s3'].get('prefix') or ''}"
    return ""


def model_store_bundled(models: list[Model], bundle: str) -> list[Model]:
    """The models as they come from the directory ``bundle`` on the controller; as they are where it is empty."""

    def bundled(model: Model) -> Model:
        place = f"{model['name']}/{model['revision']}"
        if [source for source in SOURCES if model.get(source)] in ([], ["host_path"]):
            return model
        if model.get("package"):
            return {**model, "package": {**model["package"], "wheels": f"{bundle}/packages/{place}"}}
        came: Model = {"controller_path": f"{bundle}/models/{place}", "source": model_store_source(model)}
        return {key: model[key] for key in ("name", "revision", "digest") if key in model} | came

    return [bundled(model) for model in models] if bundle else models


def model_store_mine(models: list[Model], host: str, seen: dict[str, Any], once: bool) -> list[Model]:
    """Of the ``models`` of ``host`` those that it is to get by itself.

    ``seen`` is host -> results of a stat for each of its models. With ``once`` a model is got by the first host that
    lacks it, and by none where one holds it: the others take it from there.
    """

    holders, lackers = _parted(seen)
    mine = [model for model in models if host in lackers.get(_key(model), [])]
    if not once:
        return mine
    return [m for m in mine if lackers[_key(m)][0] == host and _key(m) not in holders]


def model_store_offered(models: list[Model], host: str, seen: dict[str, Any], mine: list[Model]) -> list[Model]:
    """Of the ``models`` of ``host`` those that another host lacks, and may take from it."""
    holders, lackers = _parted(seen)
    got = [_key(model) for model in mine]
    return [m for m in models if _key(m) in got or (host in holders.get(_key(m), []) and lackers.get(_key(m)))]


def _key(model: Model) -> str:
    return f"{model['name']}/{model['revision']}"


def _parted(seen: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Model -> hosts that have it, and model -> hosts that lack it; what is linked counts only where it is there."""
    holders: dict[str, list[str]] = {}
    lackers: dict[str, list[str]] = {}
    for name, results in seen.items():
        for result in results:
            where = holders if result.get("stat", {}).get("exists") else lackers
            if where is holders or model_store_kind(result["item"]) != "host_path":
                where.setdefault(_key(result["item"]), []).append(name)
    return holders, lackers


def model_store_bytes(folders: Iterable[str]) -> int:
    """Size in bytes of all files below directories of the controller, links followed."""
    return sum(
        os.stat(os.path.join(folder, name)).st_size
        for top in folders
        for folder, _, names in os.walk(top, followlinks=True)
        for name in names
    )


def model_store_unequal(hosts: dict[str, dict[str, str]]) -> list[str]:
    """Models (`name/revision`) whose digest is not the same on all hosts that hold them, one sentence each."""
    found = []
    for model in sorted({model for digests in hosts.values() for model in digests}):
        holders: dict[str, list[str]] = {}
        for host, digests in hosts.items():
            if digests.get(model):
                holders.setdefault(digests[model], []).append(host)
        if len(holders) > 1:
            groups = "; ".join(f"{', '.join(names)}: {digest[:12]}" for digest, names in holders.items())
            do = "remove it where it is wrong, with its .manifest.json, and run --tags models"
            found.append(f"model_store_models: {model} differs between hosts: {groups}. To do: {do}")
    return found


def model_store_named(config: Any, root: str) -> list[str]:
    """Model directories below ``root`` that a Serve configuration names anywhere in it."""
    if isinstance(config, dict):
        return sorted({path for value in config.values() for path in model_store_named(value, root)})
    if isinstance(config, (list, tuple)):
        return sorted({path for value in config for path in model_store_named(value, root)})
    found = re.match(rf"{re.escape(root.rstrip('/'))}/[^/\s]+/[^/\s]+", config) if isinstance(config, str) else None
    return [found[0]] if found else []


def model_store_of_host(
    paths: list[str], root: str, models: list[dict[str, Any]], everywhere: list[list[dict[str, Any]]]
) -> list[str]:
    """Of the model directories those that must be on a host, in whatever revision.

    Those of its own ``models``, and those of models that no host (``everywhere``: the models of each) names any more.
    """
    own, *all_of_them = ({f"{root.rstrip('/')}/{m['name']}" for m in found} for found in (models, *everywhere))
    known = own.union(*all_of_them)
    return [path for path in paths if path.rpartition("/")[0] in own or path.rpartition("/")[0] not in known]


def model_store_removable(manifests: list[dict[str, Any]], needed: list[str], keep: int) -> list[str]:
    """Staged revisions that may go: not ``needed``, and not among the ``keep`` newest of the others of their model.

    ``manifests`` are results of ansible.builtin.find; a manifest is as old as its revision was staged.
    """
    spare: dict[str, list[tuple[float, str]]] = {}
    for manifest in manifests:
        path = manifest["path"].removesuffix(".manifest.json")
        if path not in needed:
            spare.setdefault(path.rpartition("/")[0], []).append((float(manifest["mtime"]), path))
    return sorted(path for found in spare.values() for _, path in sorted(found, reverse=True)[keep:])


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "model_store_problems": model_store_problems,
            "model_store_kind": model_store_kind,
            "model_store_remote": model_store_remote,
            "model_store_source": model_store_source,
            "model_store_bundled": model_store_bundled,
            "model_store_mine": model_store_mine,
            "model_store_offered": model_store_offered,
            "model_store_bytes": model_store_bytes,
            "model_store_unequal": model_store_unequal,
            "model_store_named": model_store_named,
            "model_store_of_host": model_store_of_host,
            "model_store_removable": model_store_removable,
        }
