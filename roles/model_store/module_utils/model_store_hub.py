"""A model of the Hugging Face hub or of a mirror of it, by the official client."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

from ansible.module_utils.model_store_job import DISK_ERRORS, Problem, disk_problem

if TYPE_CHECKING:
    from ansible.module_utils.model_store_job import Job

CHUNK_BYTES = 1 << 20
NO_QUERY = re.compile(r"\?\S*")  # where signatures are
ANSWER_SECONDS, READ_SECONDS = 30, 60
# The same model for other programs than vLLM: each is a copy of all weights, or nearly. *.bin and *.pt stay: vLLM reads
# them where a repository has no safetensors.
IGNORED = [
    "original/*",  # as the maker trained it
    "metal/*",
    "*.pth",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
]


def client(endpoint: str, home: str) -> Any:
    """The hub's client, set up before it is loaded: it reads its settings only then."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
        del os.environ[name]
    os.environ.update(
        HF_HOME=home,
        HF_HUB_ETAG_TIMEOUT=str(ANSWER_SECONDS),
        HF_HUB_DOWNLOAD_TIMEOUT=str(READ_SECONDS),
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
        **({"HF_ENDPOINT": endpoint} if endpoint else {}),
    )
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils._http
    except ImportError as error:
        do = "install the environment first (--tags install); its lock has the package"
        raise Problem(f"the Python environment has no huggingface_hub: {error}. To do: {do}") from error
    return huggingface_hub


class Complaints(logging.Handler):
    """What the client warns of, for the message when nothing comes any more."""

    def __init__(self, job: Job) -> None:
        super().__init__(logging.WARNING)
        self.job = job

    def emit(self, record: logging.LogRecord) -> None:
        text = NO_QUERY.sub("", record.getMessage()).splitlines()[0]
        if text.startswith("Rate limited"):  # said after what it is about
            text = f"{self.job.complaint}; {text}"
        if not text.startswith("Retrying"):
            self.job.complaint = text


def refusal(hub: Any, error: Exception, source: dict[str, Any], where: str, token: bool) -> Problem | None:
    """The problem that trying again would not mend, or None."""
    errors, name = hub.errors, f"{source['repo']} at {where}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        given = "the token's account has no access" if token else "no token was given"
        do = f"accept its terms at {where}/{source['repo']}, and name the token's file in model_store_hub_token_file"
        return Problem(f"hub.repo {name} is gated, and {given} ({status}). To do: {do}")
    if isinstance(error, errors.RepositoryNotFoundError):
        do = "correct hub.repo" + (
            "; if it is private, give the token's account access"
            if token
            else "; if it is private, name the file with your token in model_store_hub_token_file"
        )
        return Problem(f"hub.repo {name} does not exist, or is private ({status}). To do: {do}")
    if isinstance(error, errors.RevisionNotFoundError):
        do = "correct hub.revision: 'Files and versions', 'History' on the model's page lists the commits"
        return Problem(f"hub.repo {name} has no commit {source['revision']} ({status}). To do: {do}")
    if status == 401:
        return Problem(
            f"{where} does not accept the token (401). To do: put a valid one into model_store_hub_token_file"
        )
    if status == 403:
        return Problem(f"{where} forbids to read {source['repo']} (403). To do: use a token that may read it")
    if status == 404:
        do = "correct hub.repo and hub.revision, or use a mirror that has all of it (model_store_hub_endpoint)"
        return Problem(f"{where} has not all of {source['repo']} (404). To do: {do}")
    if status is not None and 400 <= status < 500 and status not in (408, 416, 429):
        return Problem(f"{where} refuses to give {source['repo']} ({status}). To do: see {error}")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return disk_problem(error, error.filename or "the model")
    return None


def retry_after(error: BaseException | None) -> tuple[int | None, float | None]:
    """HTTP status and seconds to wait of the answer behind ``error``, each None where unknown."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            text = str(response.headers.get("Retry-After", ""))
            return response.status_code, float(text) if text.isdigit() else None
        error = error.__cause__
    return None, None


def matches(path: str, entry: Any) -> bool:
    """Whether the file has the size and the hash that the hub gave: sha256 of large files, git's sha1 of small ones."""
    if os.path.getsize(path) != entry.size:
        return False
    total = hashlib.sha256() if entry.lfs else hashlib.sha1(f"blob {entry.size}\0".encode())
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            total.update(chunk)
    return bool(total.hexdigest() == (entry.lfs.sha256 if entry.lfs else entry.blob_id))


def wrong_files(folder: str, wanted: dict[str, Any]) -> list[str]:
    """Names of what is not there or has other bytes; such a file is removed, so that it is fetched again."""
    found = []
    for name, entry in wanted.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or not matches(path, entry):
            found.append(name)
            for bad in (path, os.path.join(folder, ".cache/huggingface/download", f"{name}.metadata")):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(bad)
    return found


def clean(folder: str, wanted: dict[str, Any]) -> None:
    """Remove what is not of the model: leftovers of a killed client, files of other patterns."""
    for base, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(base, name)
            inside = os.path.relpath(path, folder)
            if path.endswith(".incomplete") or (inside not in wanted and not inside.startswith(".cache/")):
                os.unlink(path)
        if base != folder and not os.listdir(base):
            os.rmdir(base)


def fetch(job: Job, source: dict[str, Any], secret: dict[str, str], endpoint: str) -> str:
    """Fetch the files of ``source`` (repo, revision, patterns) and compare each with the hub's own hash."""
    hub = client(endpoint, os.path.join(job.partial, ".cache/home"))
    hub.constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES  # what a dropped connection costs, and how progress is seen
    logging.getLogger("huggingface_hub").addHandler(Complaints(job))
    token, where = secret.get("token") or False, endpoint or hub.constants.ENDPOINT
    allow, ignore = source.get("allow_patterns") or None, source.get("ignore_patterns")
    patterns = {"allow_patterns": allow, "ignore_patterns": IGNORED if ignore is None else ignore}
    http = hub.utils._http  # the library below it has had two names
    network = ((getattr(http, "httpx2", None) or http.httpx).HTTPError, OSError, RuntimeError)

    def patiently(step: Any) -> Any:
        while True:
            try:
                return step()
            except network as error:
                if problem := refusal(hub, error, source, where, bool(token)):
                    raise problem from error
                status, seconds = retry_after(error)
                text = f"answers {status}" if status else f"does not answer: {' '.join(str(error).split())[:300]}"
                job.wait(f"{where} {NO_QUERY.sub('', text)}", seconds)

    api = hub.HfApi(endpoint=endpoint or None, token=token)
    tree = patiently(lambda: list(api.list_repo_tree(source["repo"], revision=source["revision"], recursive=True)))
    files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    wanted = {name: files[name] for name in hub.utils.filter_repo_objects(files, **patterns)}
    if not wanted:
        raise Problem(
            f"hub.repo {source['repo']} has {len(files)} files, and the patterns leave none of them. To do: correct"
            " allow_patterns and ignore_patterns"
        )
    clean(job.partial, wanted)
    total = sum(entry.size for entry in wanted.values())
    job.need(total)
    for again in (True, False):
        job.begin("fetching", total)
        patiently(
            lambda: hub.snapshot_download(
                source["repo"],
                revision=source["revision"],
                local_dir=job.partial,
                token=token,
                endpoint=endpoint or None,
                etag_timeout=ANSWER_SECONDS,
                **patterns,
            )
        )
        job.begin("verifying")
        wrong = wrong_files(job.partial, wanted)
        if not wrong:
            break
        if not again:
            do = "see to the mirror or proxy in between, and run again"
            raise Problem(f"{', '.join(wrong[:5])} came with other bytes than {where} says, twice. To do: {do}")
    shutil.rmtree(os.path.join(job.partial, ".cache"), ignore_errors=True)
    return str(job.partial)
