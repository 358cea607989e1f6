"""What somebody has put on a model's modules, which compiled code would go past without a word."""

import pytest
import torch
from torch import nn

from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.scorers.fixed import Fixed, random_scores


def layer(model):
    return model.model.layers[1] if hasattr(model.model, "layers") else model.model.decoder.layers[1]


def hook(model):
    layer(model).register_forward_hook(lambda module, args, output: output)


def forward(model):
    layer(model).forward = layer(model).forward


class Mine(nn.Identity):
    weight = torch.ones(32)


def norm(model):
    model.model.norm = Mine()


def epsilon(model):
    layer(model).post_attention_layernorm.variance_epsilon = 1.0


def activation(model):
    layer(model).mlp.act_fn = nn.GELU()


def shared(model):
    model.model.layers[2] = model.model.layers[1]


def config(model):
    model.config.intermediate_size = 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hook, r"module model\.layers\.1 has a hook: use executor=masked"),
        (forward, r"module model\.layers\.1 has a forward of its own"),
        (norm, r"module model\.norm is a Mine of .*test_altered"),
        (epsilon, r"a norm \(LlamaRMSNorm\) of epsilon=1\.0, not 1e-06 in layer 1"),
        (activation, "neurons of layer 1 that go through GELU"),
        (shared, "layer_idx=1 in the attention of layer 2, not 2"),
        (config, "tells neurons of 32 in all, where the weights have 64: mend the config"),
    ],
)
def test_what_compiled_code_would_go_past_is_refused(tiny_llama, change, message):
    change(tiny_llama.model)
    with (
        pytest.raises(UserError, match=message),
        sparse(tiny_llama.model, Fixed({}), level=0.0, executor=Gathered()),
    ):
        pass


def test_what_transformers_leaves_on_a_model_that_was_asked_for_states_is_no_change(lm, monkeypatch):
    """Hooks that record for who asks, and stay; in the block nobody can ask."""
    ids = torch.tensor([[5, 6, 7]])
    dense = lm.model(ids, output_hidden_states=True).logits
    with sparse(lm.model, Fixed({}), level=0.0, executor=Gathered()):
        torch.testing.assert_close(lm.model(ids).logits, dense, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(lm.model.config, "output_hidden_states", True)
        for given in ({}, {"output_hidden_states": None}):
            with pytest.raises(UserError, match="has no output_hidden_states: leave it out"):
                lm.model(ids, **given)


def half(model):
    model.to(torch.bfloat16)


def added(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)


def through_data(model):
    next(parameter for parameter in layer(model).parameters() if parameter.dim() == 1).data.add_(1)


def replaced(model):
    layer(model).self_attn = layer(model).self_attn.__class__(model.config, 1)


@pytest.mark.parametrize("change", [half, added, through_data, replaced, hook])
def test_a_model_that_is_changed_inside_the_block_is_told(lm, change):
    ids = torch.tensor([[5, 6, 7]])
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        lm.model(ids)
        change(lm.model)
        with pytest.raises(UserError, match="was changed inside the block, which holds it as it was"):
            lm.model(ids)


def test_a_prompt_of_padding_alone_is_refused(tiny_llama):
    ids, mask = torch.tensor([[0, 0, 0], [5, 6, 7]]), torch.tensor([[0, 0, 0], [1, 1, 1]])
    with (
        sparse(tiny_llama.model, Fixed({}), level=0.0, executor=Gathered()),
        pytest.raises(UserError, match="a row of attention_mask tells of none: leave the row out"),
    ):
        tiny_llama.model.generate(ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
