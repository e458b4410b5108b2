"""The same with the real engine: vLLM's CPU build and a real chat model. New ones come to serve, or do not."""

import copy
import json

import pytest

UNITS = ("raymetal.service",)
MODELS, TRIAL = "/opt/raymetal/models", "/opt/raymetal/trial"
FEW = 60  # requests, where what is shown is that the old one serves on
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
QUESTION = {"model": "chat", "temperature": 0, "max_tokens": 12, "messages": ASKED}


@pytest.fixture(scope="module")
def revisions(named):
    """In the shared volume: a revision whose chat template is longer, and one of the right shape with wrong weights."""
    head = named("head")
    head.check_output(
        f"rm -rf {TRIAL} {MODELS}/chat && mkdir -p {TRIAL} "
        f"&& cp -rL {MODELS}/smollm2/1 {TRIAL}/2 && cp -rL {MODELS}/smollm2/1 {TRIAL}/garbage"
    )
    script = """
import os, pathlib
template = pathlib.Path("/opt/raymetal/trial/2/chat_template.jinja")
text = template.read_text()
assert "named SmolLM," in text
template.write_text(text.replace("named SmolLM,", "named SmolLM2,"))
weights = open("/opt/raymetal/trial/garbage/model.safetensors", "r+b")
size = weights.seek(0, os.SEEK_END)
for start in range(size // 4, size, 1 << 20):  # the header, and what comes first, stay
    weights.seek(start)
    weights.write(bytes(min(1 << 20, size - start)))
"""
    head.check_output("python3 -c %s", script)
    yield head
    head.check_output(f"rm -rf {TRIAL} {MODELS}/chat")  # the volume is not the scenario's alone


def models(revision):
    """The models of the inventory, with chat in a revision of /opt/raymetal/trial."""
    return {"model_store_models": [{"name": "chat", "revision": revision, "host_path": f"{TRIAL}/{revision}"}]}


@pytest.fixture
def ask(trial):
    """Return a function that asks the running engine, and gives status and parsed answer."""

    def question(**more):
        body = json.dumps({**QUESTION, **more})
        text = trial.head.check_output(
            "curl -s -m 60 -w '\\n%%{http_code}' -H 'Content-Type: application/json' -d %s "
            "http://127.0.0.1:8000/v1/chat/completions",
            body,
        )
        answer, _, status = text.rpartition("\n")
        return int(status), json.loads(answer)

    return question


@pytest.fixture
def config(trial, llm):
    """Return a function that gives a configuration with one application."""

    def of(source, **engine):
        return {**trial.base(), "applications": [llm(source, **engine)]}

    return of


def prompt_tokens(ask):
    status, answer = ask()
    assert status == 200 and "Paris" in answer["choices"][0]["message"]["content"], answer
    return answer["usage"]["prompt_tokens"]


def test_the_engine_takes_over_from_the_stand_in(trial, revisions, config, ask):
    """Another import path, the same route: an upgrade like any other. (Nothing is measured here.)"""
    result = trial.run(config(f"{MODELS}/smollm2/1"))
    assert result.returncode == 0, result.stdout[-4000:]
    assert prompt_tokens(ask) > 0


@pytest.mark.soak
def test_engine_surge(trial, load, light, witness, config, ask, said):
    """A changed engine argument, in place: the running engine says so."""
    load.start(**light)
    with witness:
        result = trial.run(config(f"{MODELS}/smollm2/1", max_model_len=256), ray_serve_way="surge")
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert "chat: replace by surge" in said(result)
    assert "any change under llm_configs restarts every engine" in said(result)
    load.proven()
    status, answer = ask(max_tokens=400)
    assert status == 400 and "256" in json.dumps(answer), answer


def test_engine_blue_green_to_a_new_revision(trial, load, light, witness, revisions, config, ask, said):
    before = prompt_tokens(ask)
    load.start(**light)
    with witness:
        result = trial.run(config(f"{MODELS}/chat/2", max_model_len=256), tags="upgrade", **models("2"))
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert "chat: replace by blue_green" in said(result)
    load.proven()
    assert prompt_tokens(ask) > before, "the running engine has the template of the new revision"


@pytest.mark.soak
def test_weights_of_the_right_shape_that_answer_nonsense(trial, load, light, config, ask, said):
    before = prompt_tokens(ask)
    load.start(**light)
    result = trial.run(config(f"{MODELS}/chat/garbage", max_model_len=256), tags="upgrade", **models("garbage"))
    load.end(FEW)
    assert result.returncode != 0, result.stdout[-4000:]
    assert "the answer does not contain 'Paris'" in said(result) and "serves again" in said(result)
    load.proven(FEW)
    assert prompt_tokens(ask) == before


@pytest.mark.soak
def test_weights_that_are_cut_short_never_get_so_far(trial, named, revisions, llm, said):
    head = named("head")
    head.check_output(f"cp -r {TRIAL}/2 {TRIAL}/short && truncate -s -1000 {TRIAL}/short/model.safetensors")
    config = copy.deepcopy(trial.base())
    config["applications"] = [llm(f"{MODELS}/chat/short", max_model_len=256)]
    before = trial.deployed()
    result = trial.run(config, tags="upgrade", **models("short"))
    assert result.returncode != 0 and "it is cut short or corrupt" in said(result), result.stdout[-3000:]
    assert trial.deployed() == before


@pytest.mark.soak
def test_an_engine_argument_that_crashes_at_start(trial, load, light, config, ask, said):
    before = prompt_tokens(ask)
    load.start(**light)
    result = trial.run(config(f"{MODELS}/smollm2/1", max_model_len=1000000))
    load.end(FEW)
    assert result.returncode != 0, result.stdout[-4000:]
    assert "max_model_len" in said(result) and "serves again" in said(result), result.stdout[-4000:]
    load.proven(FEW)
    assert prompt_tokens(ask) == before


@pytest.mark.soak
@pytest.mark.parametrize(
    ("models", "asked", "answers"),
    [(("chat", "chat-next"), "chat", [200, 200]), (("chat-next",), "chat-next", [404, 200])],
    ids=["both", "then-the-new-one"],
)
def test_another_model_id(trial, load, light, witness, config, ask, said, models, asked, answers):
    """Both ids in one run, the old one out in the next: clients of the old, then those of the new id, lose nothing."""
    load.start(model=asked, **light)
    with witness:
        result = trial.run(config(f"{MODELS}/smollm2/1", models=models))
    load.end(FEW)
    assert result.returncode == 0, result.stdout[-4000:]
    assert f"chat: replace by blue_green (other model ids: {', '.join(models)})" in said(result)
    load.proven(FEW)
    assert [ask(model=model)[0] for model in ("chat", "chat-next")] == answers
