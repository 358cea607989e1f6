"""Inputs that nobody thought of: what is given is right, or refused in one sentence.

SHADOW_FUZZ=N tries N inputs of each property, drawn anew each time; the plain suite a few, always the
same ones. `make fuzz` takes an hour.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from shadow.artifacts.files import writing
from shadow.data.calibration import TextFiles
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.front import sparse
from shadow.jobs.checks import check_evaluate, check_train
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed

EXAMPLES = int(os.environ.get("SHADOW_FUZZ", "0"))
fuzzed = settings(
    max_examples=EXAMPLES or 12,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70) | st.integers(-3, 5),
    st.floats(),
    st.text(max_size=8)
    | st.sampled_from(["", "all", "null", "../../x", "~", "a/b", "${x}", "1e3", "[]", "\n"]),
)


@pytest.fixture(scope="module")
def lms(make_lm: Callable[[str], LM]) -> dict[str, LM]:
    """One of each family for all inputs: a block leaves nothing behind."""
    return {family: make_lm(family) for family in ("opt", "llama")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def right_or_refused(call: Callable[[], object]) -> object:
    """None where one sentence refused."""
    try:
        return call()
    except UserError as error:
        sentence = str(error)
        assert sentence.strip()
        assert "\n" not in sentence
        return None


@fuzzed
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    ending=st.sampled_from([".txt", ".jsonl", ".json", ".JSONL", ".ndjson", ""]),
    windows=st.integers(-2, 4),
    tokens=st.integers(-2, 20),
)
def test_a_file_of_any_bytes_is_cut_into_windows_or_refused(folder, lms, content, ending, windows, tokens):
    file = folder / f"train{ending}"
    file.write_bytes(content)
    data = TextFiles(str(file), None, "text", windows, tokens, 0.5, 0)
    found = right_or_refused(lambda: data.examples(lms["llama"]))
    assert found is None or ([len(example.ids) for example in found] == [tokens] * windows)


@fuzzed
@given(
    rows=st.lists(
        st.recursive(
            SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("text"), inner)
        ),
        max_size=4,
    )
)
def test_json_lines_of_any_values_are_read_or_refused(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TextFiles(str(file), None, "text", 1, 4, 0.5, 0)
    found = right_or_refused(lambda: data.documents("train"))
    array = len(rows) == 1 and isinstance(rows[0], list)  # the whole file is one, whatever its name
    assert found is None or found == [row["text"] for row in (rows[0] if array else rows)]


@pytest.fixture(params=["train", "evaluate"])
def checked(
    request: pytest.FixtureRequest, compose: Callable[..., DictConfig]
) -> tuple[DictConfig, Callable]:
    """The config of a script, and its checks before anything is loaded."""
    if request.param == "train":
        return compose("train", "model=tiny-llama"), check_train
    return compose("evaluate", "model=tiny-llama", "make_missing=true"), check_evaluate


@fuzzed
@given(data=st.data())
def test_a_setting_of_any_value_is_taken_or_refused(checked, tmp_path, data):
    """And nothing is written."""
    cfg, check = copy.deepcopy(checked[0]), checked[1]
    key, value = data.draw(st.sampled_from(leaves(cfg))), data.draw(SCALARS)
    OmegaConf.update(cfg, key, value)
    right_or_refused(lambda: check(cfg))
    assert not list(tmp_path.rglob("*"))


LEVELS = st.sampled_from([0.0, 0.3, 0.5, 0.9]) | st.floats(0, 1, exclude_max=True)
POLICIES = st.fixed_dictionaries(
    {"level": LEVELS | SCALARS},
    optional={
        "scope": st.sampled_from(["layer", "global", "threshold"]) | SCALARS,
        "min_units": st.integers(0, 70) | SCALARS,
        "dense_layers": st.lists(st.integers(-1, 4), max_size=3) | SCALARS,
        "kinds": st.lists(st.sampled_from(["head", "neuron", "channel"]), max_size=3) | SCALARS,
        "head_unit": st.sampled_from(["query", "group"]) | SCALARS,
        "tokens": st.sampled_from(["all", "decode", 3, 0.5]) | SCALARS,
        "levels": st.dictionaries(
            st.tuples(st.integers(0, 4), st.sampled_from(["head", "neuron"])), LEVELS, max_size=3
        ),
    },
)


@fuzzed
@given(
    told=POLICIES,
    seed=st.integers(0, 2**31),
    family=st.sampled_from(["opt", "llama"]),
    decided_at=st.sampled_from(["token", "prompt"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9)),
)
def test_a_policy_of_any_values_runs_alike_in_both_executors_or_is_refused(
    lms, told, seed, family, decided_at, shape
):
    lm = lms[family]
    draw = torch.Generator().manual_seed(seed)
    scorer = Fixed({site.key: torch.randn(site.units, generator=draw) for site in find_sites(lm.model)})
    ids = torch.randint(1, 257, shape, generator=draw)
    policy = right_or_refused(lambda: SparsityPolicy(**told))
    if policy is None:
        return
    dense = generated(lm, ids)
    masked = right_or_refused(lambda: within(lm, ids, scorer, policy, decided_at))
    gathered = right_or_refused(lambda: within(lm, ids, scorer, policy, decided_at, Gathered()))
    assert torch.equal(generated(lm, ids), dense)  # nothing is left behind
    if masked is not None and policy.level == 0 and not policy.levels:
        assert torch.equal(masked, dense)
    if masked is not None and gathered is not None:
        torch.testing.assert_close(gathered, masked, rtol=1e-4, atol=1e-4)


@fuzzed
@given(old=st.binary(max_size=20), new=st.binary(max_size=20), cut=st.integers(0, 20), fails=st.booleans())
def test_a_file_is_the_old_one_or_the_new_one_whatever_happens(folder, old, new, cut, fails):
    with writing(folder / "whole" / "file") as unfinished:
        unfinished.write_bytes(old)
    try:
        with writing(folder / "whole" / "file") as unfinished:
            unfinished.write_bytes(new[:cut])
            if fails:
                raise InterruptedError
            unfinished.write_bytes(new)
    except InterruptedError:
        pass
    assert (folder / "whole" / "file").read_bytes() == (old if fails else new)
    assert [file.name for file in (folder / "whole").iterdir()] == ["file"]


def leaves(cfg: DictConfig, before: str = "") -> list[str]:
    """The full names of all settings that are no groups; what is called by its name counts as none."""
    found: list[str] = []
    for key in cfg:
        name = f"{before}{key}"
        node = OmegaConf.select(cfg, name[len(before) :])
        if isinstance(node, DictConfig):
            found += leaves(node, f"{name}.")
        elif key != "_target_":
            found.append(name)
    return found


@torch.no_grad()
def generated(lm: LM, ids: Tensor) -> Tensor:
    """-> logits [3, B, V] of a greedy generation."""
    found = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(found.logits).float()


def within(
    lm: LM, ids: Tensor, scorer: Fixed, policy: SparsityPolicy, decided_at: str, executor: object = None
) -> Tensor:
    with sparse(lm.model, scorer, policy, decided_at, executor=executor):
        return generated(lm, ids)
