"""Checkpoints that are sparse when loaded: what `sparse` gives, by transformers' own from_pretrained."""

import copy
import hashlib
import json
import shutil
import warnings

import pytest
import torch
from families import FAMILIES, tiny
from having import Have
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, pipeline

from shadow import export
from shadow.artifacts.curve import read as read_curve
from shadow.checkpoint import folder as files
from shadow.checkpoint.method import tell_policy
from shadow.checkpoint.opened import close_all, opened_of
from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.fit import thresholds
from shadow.front import sparse
from shadow.models.kinds import find_sites, structure_of
from shadow.models.load import from_folder
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Mean, Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.gate import GateMagnitude
from shadow.scorers.inputs import InputMagnitude, InputNorm
from shadow.scorers.joined import Joined
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.modes import ModeDistance
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.oracle import Oracle
from shadow.scorers.own_input import SignBits, TruncatedNeurons
from shadow.scorers.predicted import Predicted
from shadow.scorers.rank_aware import RankAware
from shadow.scorers.rotated import RotatedInput
from shadow.scorers.routers import Routers
from shadow.scorers.statics import Fluctuation
from shadow.scorers.two_step import TwoStepHead

HALF = SparsityPolicy(0.5)
HEADS = {(layer, "head"): torch.rand(4) for layer in range(4)}
MEANS = {layer: torch.rand(64) for layer in range(4)}
RECIPES = {
    "teal": InputMagnitude(),
    "wina": InputNorm(),
    "scap": ModeDistance(0.5, 64),
    "r_sparse": RankAware(0.5, 0.8),
    "larosa": RotatedInput(),
    "cats": GateMagnitude(),
    "flap": Fluctuation(),
    "d_countdown": TruncatedNeurons(8),
    "two_step_head": TwoStepHead(8),
    "joined": Joined([InputMagnitude(), TwoStepHead(8)]),
}


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


@pytest.fixture(scope="module")
def sample(examples):
    return [collate(examples([12, 9, 10], seed=1))]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)


def net_of(model, seed=0):
    units, width = count_units(find_sites(model)), model.config.get_text_config().hidden_size
    layers = model.config.get_text_config().num_hidden_layers
    net = TapNet([1, 2], layers, width, units, NetShape(4, 8, 1)).eval()
    draw = torch.Generator().manual_seed(seed)
    for values in net.parameters():
        values.data = torch.randn(values.shape, generator=draw) / 4
    return Predicted(net, "scores")


def loaded(folder, **asked):
    return AutoModelForCausalLM.from_pretrained(folder, **asked)


@torch.no_grad()
def require_same(model, found, batch, scorer, policy, **others):
    """Logits of a padded batch, and what is generated, to the last bit; and bytes."""
    ids = batch.ids[:1, :5]
    with sparse(model, scorer, policy, **others) as run:
        expected, text = run.logits(batch), model.generate(ids, max_new_tokens=6, do_sample=False)
    arguments = batch.arguments()
    assert torch.equal(found(**arguments).logits, expected)
    assert torch.equal(found.generate(ids, max_new_tokens=6, do_sample=False), text)
    assert opened_of(found).run.bytes() == run.bytes()


@pytest.mark.parametrize("family", ["opt-350m", "gemma3_text", "qwen3_moe"])
def test_what_is_loaded_is_the_sparse_model_in_every_family(family, tmp_path, small):
    assert family in FAMILIES
    model = tiny(family)
    experts = structure_of(model).experts > 1
    scorer = InputMagnitude() if experts else net_of(model)
    policy = SparsityPolicy(0.5) if experts else SparsityPolicy(0.5, dense_layers=[0])
    export(model, tmp_path / "c", scorer, policy)
    require_same(model, loaded(tmp_path / "c"), small, scorer, policy)


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_comes_back_to_the_last_bit(name, tmp_path, tiny_llama, small, sample):
    model = tiny_llama.model
    scorer = RECIPES[name].build(model, Have(sample))
    export(model, tmp_path / "c", scorer, level=0.5)
    require_same(model, loaded(tmp_path / "c"), small, scorer, HALF)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, have: SignBits().build(model, have),
        lambda model, have: LowRankCopy(model, 8, {n: HEADS[n, "head"] for n in range(4)}, MEANS),
        lambda model, have: Fixed(random_scores(find_sites(model), 0)),
    ],
    ids=["sparse_infer", "svd", "random"],
)
def test_methods_of_models_without_a_gate_come_back_too(make, tmp_path, tiny_opt, small, sample):
    scorer = make(tiny_opt.model, Have(sample))
    export(tiny_opt.model, tmp_path / "c", scorer, level=0.5)
    require_same(tiny_opt.model, loaded(tmp_path / "c"), small, scorer, HALF)


def test_thresholds_budgets_and_a_learnt_stand_in_come_back(tmp_path, tiny_llama, small, sample):
    model, scorer = tiny_llama.model, InputMagnitude()
    levels = {(2, "down"): 0.7, (3, "o"): 0.3}
    policy = SparsityPolicy(0.5, "threshold", kinds=("channel",), levels=levels, tokens=2)
    policy = SparsityPolicy(
        **tell_policy(policy)
        | {"levels": levels, "thresholds": thresholds.learn(model, scorer, policy, "token", Zero(), sample)}
    )
    learnt = Learnt([site for site in find_sites(model, ["channel"]) if policy.corrects(site)], Zero())
    for n, values in enumerate(learnt.parameters()):
        values.data += 0.01 * n
    export(model, tmp_path / "c", scorer, policy, stand_in=learnt)
    require_same(model, loaded(tmp_path / "c"), small, scorer, policy, stand_in=learnt)


def test_routers_of_blocks_come_back(tmp_path, tiny_llama, small, sample):
    model = tiny_llama.model
    blocks = [site for site in find_sites(model, ["block"]) if site.layer]
    policy = SparsityPolicy(0.5, "threshold", kinds=("block",))
    routers = Routers(blocks, 32, 8)
    found = thresholds.learn(model, routers, policy, "token", Zero(), sample)
    policy = SparsityPolicy(0.5, "threshold", kinds=("block",), thresholds=found)
    export(model, tmp_path / "c", routers, policy)
    require_same(model, loaded(tmp_path / "c"), small, routers, policy)


def test_a_prompt_decides_for_all_that_follows_it(tmp_path, tiny_llama):
    """As in `sparse`: generate says where the prompt ends; means stand in."""
    model, scorer = tiny_llama.model, net_of(tiny_llama.model)
    means = {site.key: torch.rand(site.units, site.width) for site in find_sites(model)}
    others = {"decided_at": "prompt", "stand_in": Mean(means)}
    folder = export(model, tmp_path / "c", scorer, level=0.5, **others)
    ids = torch.arange(2, 9)[None]
    with sparse(model, scorer, level=0.5, **others):
        expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(loaded(folder).generate(ids, max_new_tokens=8, do_sample=False), expected)
    assert "score by `shadow lm-eval" in (folder / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_level_0_is_the_dense_model_bit_for_bit(dtype, tmp_path, tiny_opt, small):
    export(tiny_opt.model, tmp_path / "c", Fixed({}), level=0.0)
    found = loaded(tmp_path / "c", dtype=dtype, device_map="cpu")
    assert found.dtype == dtype
    expected = logits_of(tiny_opt.model.to(dtype), small)
    assert torch.equal(found(**small.arguments()).logits, expected)


def test_another_dtype_is_that_of_the_weights_and_not_of_the_predictor(tmp_path, tiny_llama, small):
    scorer = net_of(tiny_llama.model)
    export(tiny_llama.model, tmp_path / "c", scorer, level=0.5)
    found = loaded(tmp_path / "c", dtype=torch.bfloat16)
    dense = loaded(tmp_path / "c", dtype=torch.bfloat16).dequantize()
    require_same(dense, found, small, scorer, HALF)


def test_it_is_saved_copied_and_made_dense_again_as_a_whole(tmp_path, tiny_llama, small):
    model, scorer = tiny_llama.model, net_of(tiny_llama.model)
    found = loaded(export(model, tmp_path / "a", scorer, level=0.5))
    twin = copy.deepcopy(found)
    found.save_pretrained(tmp_path / "b")
    embedded = found.get_input_embeddings().weight
    kept = embedded.clone()
    embedded.data.zero_()  # the twin has its own
    require_same(model, twin, small, scorer, HALF)
    embedded.data.copy_(kept)
    require_same(model, loaded(tmp_path / "b"), small, scorer, HALF)
    assert torch.equal(found.dequantize()(**small.arguments()).logits, logits_of(model, small))
    found.save_pretrained(tmp_path / "dense")
    assert not {"quantization_config", "transformers_weights"} & {*json.loads(config_in(tmp_path / "dense"))}
    with pytest.raises(UserError, match="has been made dense again"):
        opened_of(found)


def test_blocks_that_are_open_end_before_python_does(tmp_path, tiny_llama, small):
    found = loaded(export(tiny_llama.model, tmp_path / "c", InputMagnitude(), level=0.5))
    close_all()
    assert torch.equal(found(**small.arguments()).logits, logits_of(tiny_llama.model, small))


def config_in(folder):
    return (folder / files.CONFIG).read_text()


def test_a_pipeline_and_the_gathered_executor_run_it(tmp_path, tiny_opt):
    """The tokenizer lies in the folder; plans are the same, so greedy text is, but for near ties."""
    scorer = net_of(tiny_opt.model)
    for name, executor in (("masked", None), ("gathered", Gathered())):
        export(
            tiny_opt.model,
            tmp_path / name,
            scorer,
            level=0.5,
            executor=executor,
            tokenizer=tiny_opt.tokenizer,
        )
    texts = [
        pipeline("text-generation", model=str(tmp_path / name))(
            "some text", max_new_tokens=8, do_sample=False
        )
        for name in ("masked", "gathered")
    ]
    assert texts[0] == texts[1]
    found = loaded(tmp_path / "gathered")
    assert opened_of(found).refuses(Gathered(compact=True)) is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft, of transformers
def test_lora_on_top_is_refused_until_it_is_merged(tmp_path, tiny_llama, small):
    from peft import LoraConfig, get_peft_model

    found = loaded(export(tiny_llama.model, tmp_path / "c", InputMagnitude(), level=0.5))
    config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(found, config)
    with pytest.raises(UserError, match=r"q_proj of this sparse model is now a .*merge_and_unload"):
        adapted(**small.arguments())
    merged = adapted.merge_and_unload()
    logits = merged(**small.arguments()).logits
    dense = tiny_llama.model
    dense.load_state_dict(merged.state_dict())
    with sparse(dense, InputMagnitude(), level=0.5) as run:
        assert torch.equal(logits, run.logits(small))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda model: {"scorer": Oracle("l2_norm", "answer")}, "must see a sample"),
        (lambda model: {"scorer": net_of(model), "decided_at": "sequence"}, "has seen the answer"),
        (lambda model: {"scorer": Mine()}, "no form for the scorer Mine"),
        (
            lambda model: {"scorer": InputMagnitude(), "stand_in": Nothing()},
            "no form for the stand-in Nothing",
        ),
    ],
)
def test_what_nobody_else_could_load_is_refused_in_one_sentence(what, words, tmp_path, tiny_llama):
    with pytest.raises(UserError, match=words):
        export(tiny_llama.model, tmp_path / "c", **{"level": 0.5} | what(tiny_llama.model))
    assert not (tmp_path / "c").exists()


class Mine(InputMagnitude):
    """A method of one's own."""


class Nothing:
    def __call__(self, site, x, keep):
        return x


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_lm):
    model = make_lm("llama").model
    policy = SparsityPolicy(0.5, levels={(1, "neuron"): 0.25})
    return export(model, tmp_path_factory.mktemp("whole") / "c", net_of(model), policy)


def spoilt(whole, tmp_path, told=None, tensors=None):
    """A copy with other JSON, or other tensors with their own checksum, as whoever made them would."""
    folder = shutil.copytree(whole, tmp_path / "c")
    config = json.loads(config_in(folder))
    if tensors is not None:
        found = load_file(folder / files.TENSORS)
        tensors(found)
        save_file(found, folder / files.TENSORS)
        made = hashlib.sha256((folder / files.TENSORS).read_bytes()).hexdigest()
        config["quantization_config"]["sha256"] = made
    if told is not None:
        told(config["quantization_config"])
    (folder / files.CONFIG).write_text(json.dumps(config))
    return folder


DOWN = "scorer.net.readers.0.down.weight"


@pytest.mark.parametrize(
    "tensors",
    [
        lambda found: found.update({DOWN: found[DOWN].half()}),
        lambda found: found.update({DOWN: found[DOWN][:, :-1].contiguous()}),
        lambda found: found.update({DOWN: found[DOWN] * torch.nan}),
        lambda found: found.pop(DOWN),
    ],
    ids=["dtype", "shape", "nan", "missing"],
)
def test_tensors_that_do_not_fit_are_refused(tensors, whole, tmp_path):
    with pytest.raises(UserError, match="holds no method for this model"):
        loaded(spoilt(whole, tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    "told",
    [
        lambda told: told["policy"].update(level=50),
        lambda told: told["policy"].update(levels=[[1, "neuron", float("nan")]]),
        lambda told: told["policy"].update(levels=[[99, "neuron", 0.5]]),
        lambda told: told["policy"].update(evil=1),
        lambda told: told["scorer"].update(form="os.system"),
        lambda told: told["scorer"].update(net={"rank": 10**12, "hidden": 1, "depth": 1}),
        lambda told: told.update(stand_in={"form": "own"}),
        lambda told: told.update(stand_in={"form": "learnt", "within": 3}),
        lambda told: told.update(executor={"name": "eval"}),
        lambda told: told.update(decided_at="sequence"),
        lambda told: told.pop("policy"),
        lambda told: told.update(format=99),
        lambda told: told.update(sha256="0" * 64),
    ],
)
def test_a_config_that_lies_is_refused(told, whole, tmp_path):
    with pytest.raises(UserError, match=r"export") as refused:
        loaded(spoilt(whole, tmp_path, told=told))
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_there_is_not_written_over_and_a_file_that_is_gone_is_told(whole, tmp_path):
    with pytest.raises(UserError, match="exists"):
        export(loaded(whole).dequantize(), whole, InputMagnitude(), level=0.5)
    folder = spoilt(whole, tmp_path)
    (folder / files.TENSORS).unlink()
    with pytest.raises(UserError, match=r"has no shadow\.safetensors"):
        loaded(folder)
    with pytest.raises(UserError, match="load it by AutoModelForCausalLM"):
        AutoModel.from_pretrained(whole)
    with pytest.raises(UserError, match="would be made sparse twice"):
        from_folder(str(whole), torch.float32, None)


def test_without_shadow_transformers_says_what_to_install(whole, monkeypatch):
    """As where nothing has registered: a warning, and then the error that has our sentence in it."""
    from transformers.quantizers import auto

    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "shadow")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "shadow")
    with pytest.raises(ValueError, match="pip install shadow-llm"):
        loaded(whole)


def test_lm_evals_own_hf_scores_it_as_sparse_hf_does(tmp_path, tiny_llama):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from shadow.measures.sparse_hf import SparseHFLM

    folder = export(
        tiny_llama.model, tmp_path / "c", net_of(tiny_llama.model), level=0.5, tokenizer=tiny_llama.tokenizer
    )
    pairs = [("one two", " three"), ("a", " longer answer"), ("x y z", " w")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers: that lm-eval passes the config on
        stock = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    with sparse(tiny_llama.model, net_of(tiny_llama.model), level=0.5) as run:
        ours = SparseHFLM(run, tiny_llama, 2).loglikelihood(requests, disable_tqdm=True)
    assert stock.loglikelihood(requests, disable_tqdm=True) == ours


def test_a_job_exports_what_evaluate_measures(compose, tmp_path):
    """Perplexity to the last digit; the points measured before stand on the card."""
    from shadow.jobs import export as job
    from shadow.jobs import ingredients, loading, measures, point_records, policies
    from shadow.measures.evaluation import perplexity

    asked = ("model=tiny-llama", "predictor=teal", "sparsity=threshold", "make_missing=true")
    asked += ("data.windows=24", "measure.windows=3", "measure.tokens=16", "measure.choices=false")
    cfg = compose("evaluate", *asked)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm)
    policy = policies.get_policy(cfg, lm, scorer, Zero())
    with sparse(lm.model, scorer, policy) as run:
        metrics = measures.measure(cfg, lm, run)
    record = {"content": measures.content_of(cfg), "commit": {}, "versions": {}, "machine": {}}
    other = record | {"content": record["content"] | {"text": "another text"}}  # measured before, as 12.34
    figures = {"perplexity": metrics["perplexity"]._replace(value=12.34)}
    point_records.keep(cfg, other, {"channel": run.achieved("channel")}, run.bytes(), figures)
    point_records.keep(cfg, record, {"channel": run.achieved("channel")}, run.bytes(), metrics)
    cfg = compose("export", *asked)
    folder = job.make(cfg, [])
    assert job.make(cfg, []) == folder
    model = loaded(folder)

    class Plain:
        def logits(self, batch):
            with torch.no_grad():
                return model(**batch.arguments()).logits

    windows = measures.eval_windows(cfg, lm, measures.running_text(cfg), "windows", 16, 0.0)
    again = perplexity(Plain(), lm, windows, cfg.measure.batch_size)["perplexity"]
    assert again.value == metrics["perplexity"].value
    card = (folder / "README.md").read_text()
    assert f"{again.value:.4g}" in card
    assert "12.34" not in card
    assert read_curve(folder) == []
