"""`shadow serve`: OpenAI's own client against 127.0.0.1, several requests at once, each as if alone."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shadow import export
from shadow.checkpoint.opened import opened_of
from shadow.errors import UserError
from shadow.executors.masked import Masked
from shadow.models.kinds import find_sites
from shadow.models.sites import count_units
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.predicted import Predicted
from shadow.serving import command
from shadow.serving.served import Served, load

openai = pytest.importorskip("openai", reason=command.EXTRA)
uvicorn = pytest.importorskip("uvicorn", reason=command.EXTRA)
pytest.importorskip("fastapi", reason=command.EXTRA)

MOST = 8
TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }} {% endfor %}"
PROMPTS = ["a", "some words", "others, and more of them", "xyz " * 9, "0 1 2 3", "the last one"] * 2


def net_of(model) -> Predicted:
    net = TapNet([1], 4, 32, count_units(find_sites(model)), NetShape(4, 8, 1)).eval()
    draw = torch.Generator().manual_seed(0)
    for values in net.parameters():
        values.data = torch.randn(values.shape, generator=draw) / 4
    return Predicted(net, "scores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_lm):
    lm = make_lm("llama")
    lm.tokenizer.chat_template = TEMPLATE
    lm.model.generation_config.eos_token_id = None  # texts are as long as they are asked for
    parts = [n for n in range(257) if not lm.tokenizer.decode([n]).isascii()]
    lm.model.generation_config.suppress_tokens = [0, *parts]  # a stream drops a character's beginning
    place = tmp_path_factory.mktemp("served") / "tiny"
    return export(lm.model, place, net_of(lm.model), level=0.5, executor=Masked(), tokenizer=lm.tokenizer)


@pytest.fixture(scope="module")
def served(folder) -> Served:
    return load(str(folder), None, "masked", None, None)


@pytest.fixture(scope="module")
def app(served):
    from shadow.serving.app import build

    return build(served, MOST)


@pytest.fixture(scope="module")
def client(app):
    """Of a server in a thread, at a port of its own."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with command.listen(command.HERE, 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://{command.HERE}:{listening.getsockname()[1]}/v1"
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        server.should_exit = True
        thread.join()


def alone(served: Served, prompt: str, new: int) -> str:
    ids = served.tokenizer(prompt, return_tensors="pt")
    said = served.model.generate(**ids, max_new_tokens=new, do_sample=False)
    return served.tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def asked(client, prompt: str, new: int, stream: bool, **others) -> str:
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=new, stream=stream, **others)
    return "".join(part.choices[0].text for part in answer) if stream else answer.choices[0].text


def test_each_of_many_requests_at_once_gets_the_text_that_it_has_alone(client, served):
    jobs = [(prompt, 3 + n % 5, n % 3 == 0) for n, prompt in enumerate(PROMPTS)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: asked(client, *job), jobs))
    assert found == [alone(served, prompt, new) for prompt, new, _ in jobs]


def test_a_seed_gives_the_same_text_whoever_asks_meanwhile(client):
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: asked(client, "a", 12, False, temperature=1.5, seed=n % 2), range(8)))
    assert texts[0::2] == [texts[0]] * 4
    assert texts[1::2] == [texts[1]] * 4
    assert texts[0] != texts[1]


def test_a_chat_goes_through_the_models_template(client, served):
    told = {"messages": [{"role": "user", "content": "hello"}]}
    answer = client.chat.completions.create(model="tiny", max_completion_tokens=5, **told)
    expected = alone(served, "user: hello ", 5)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "length")
    parts = client.chat.completions.create(model="tiny", max_completion_tokens=5, stream=True, **told)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected


def test_models_and_health_are_told(client, served):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("tiny").id == "tiny"
    assert model.shadow == {"level": 0.5, "executor": served.executor, "max_tokens": 512}
    assert client.get("/../health", cast_to=object) == {"status": "ok"}


WRONG = {
    "max_tokens": (0, "whole number"),
    "temperature": (9, r"in \[0, 2\]"),
    "top_p": ("x", "in"),
    "seed": (-1, "whole number"),
    "stop": ([], "text"),
    "frequency_penalty": (-1, r"in \(-1, 2\]"),
    "logit_bias": ({"x": 1}, "token ids"),
    "n": (2, "not served here"),
    "logprobs": (3, "not served here"),
    "echo": (True, "not served here"),
    "evil": (1, "Unexpected fields"),
    "model": ("gpt", "not served here"),
    "prompt": (["a", "b"], "a text"),
    "generation_config": ('{"cache_implementation": "paged"}', "not served here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_served_gets_the_apis_own_error(name, client):
    value, words = WRONG[name]
    body = {"prompt": "a", "max_tokens": 2, name: value}
    with pytest.raises(openai.APIStatusError, match=words) as refused:
        client.post("/completions", body=body, cast_to=object)
    assert refused.value.status_code == (404 if name == "model" else 422 if name == "evil" else 400)
    assert refused.value.type == "invalid_request_error"


def test_a_bias_changes_the_text_and_a_token_that_there_is_none_of_is_told(client, served):
    first = alone(served, "a", 1)
    (token,) = served.tokenizer.encode(first, add_special_tokens=False)
    assert asked(client, "a", 1, False, logit_bias={str(token): -100}) != first
    assert asked(client, "a", 1, True, logit_bias={}) == first
    asked(client, "a", 1, False, frequency_penalty=-0.9)
    with pytest.raises(openai.BadRequestError, match="logit_bias names token 99999"):
        asked(client, "a", 1, False, logit_bias={"99999": 1})


@pytest.mark.parametrize("stream", [False, True])
def test_limits_are_told_before_a_stream_begins(stream, client, app):
    with pytest.raises(openai.BadRequestError, match="512 positions") as refused:
        asked(client, "a", 512, stream)
    assert refused.value.code == "context_length_exceeded"
    turns = turns_of(app)
    turns.inside += MOST
    with pytest.raises(openai.RateLimitError, match="ask again later"):
        asked(client, "a", 1, stream)
    turns.inside -= MOST
    assert turns.inside == 0  # whoever was refused does not wait


def turns_of(app):
    (route,) = [route for route in app.router.routes if getattr(route, "path", "") == "/v1/completions"]
    found = dict(zip(route.endpoint.__code__.co_freevars, route.endpoint.__closure__))
    return found["completion_handler"].cell_contents.generation_state.turns


def test_a_failure_amid_a_stream_is_an_error_and_the_next_request_is_served(client, served, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError('it "failed"')

    monkeypatch.setattr(served.model, "generate", fail)
    with pytest.raises(openai.APIError, match="during streaming") as failed:
        asked(client, "a", 2, True)
    assert failed.value.body == 'it "failed"'
    with pytest.raises(openai.InternalServerError, match="ValueError"):
        asked(client, "a", 2, False)
    monkeypatch.undo()
    assert asked(client, "a", 2, False) == alone(served, "a", 2)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "must be one that `shadow export` has written"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "opt"}'), "has no method"),
        (lambda folder: (folder / "config.json").write_text('{"model_ty'), "is damaged, or of no model"),
    ],
)
def test_a_folder_without_a_method_is_refused(spoil, words, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    spoil(tmp_path)
    with pytest.raises(UserError, match=words):
        load(str(tmp_path), None, "auto", None, None)


def test_what_runs_the_model_is_said(tmp_path, make_lm, folder):
    lm = make_lm("opt")
    place = export(lm.model, tmp_path / "c", InputMagnitude(), level=0.5, tokenizer=lm.tokenizer)
    assert load(str(place), "x", "auto", None, None).executor.startswith(
        "executor=masked computes everything, for executor=gathered reads channels in executor.storage=int8"
    )
    with pytest.raises(UserError, match="reads channels in"):
        load(str(place), "x", "gathered", None, None)
    ready = load(str(folder), "x", "gathered", None, None)
    assert opened_of(ready.model).run.new_tokens.rows > 0  # nobody waits for its compiler
    with pytest.raises(UserError, match="leave one of them out"):
        load(str(folder), "x", "masked", "int8", None)


def test_a_port_that_is_taken_and_a_missing_extra_are_told(monkeypatch):
    with command.listen(command.HERE, 0) as taken:
        taken.listen()
        with pytest.raises(SystemExit, match="cannot be listened at"):
            command.main(["anywhere", "--port", str(taken.getsockname()[1])])
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(SystemExit, match=r"pip install 'shadow-llm\[serve\]'"):
        command.main(["anywhere"])
    assert json.dumps(command.parser().parse_args(["f"]).host) == '"127.0.0.1"'
