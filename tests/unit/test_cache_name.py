"""The key-value cache is found by the name that this transformers gives it, and by the other."""

import pytest
import torch

from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.models.cache_name import CACHE, NAMES, cache_of
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores

IDS = torch.arange(3, 12)[None]


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("executor", [Masked(), Gathered()], ids=["masked", "gathered"])
def test_a_call_goes_on_from_a_cache_by_either_name(tiny_llama, executor, name):
    model = tiny_llama.model
    if name == "cache" != CACHE and isinstance(executor, Masked):
        pytest.skip("this transformers does not know `cache`")
    scorer, policy = Fixed(random_scores(find_sites(model), 0)), SparsityPolicy(0.5, tokens="decode")
    with torch.no_grad(), sparse(model, scorer, policy, executor=executor) as run:
        begun = cache_of(model(IDS))
        gone = run.achieved("neuron")
        found = model(IDS[:, :1], **{name: begun})
    assert found.logits.shape[1] == 1
    assert (gone, run.achieved("neuron") > 0) == (0, True)  # what follows a cache is no prompt
    assert cache_of(found) is begun
