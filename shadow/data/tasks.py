"""The tasks of lm-eval, from the hub or from local JSON lines."""

import logging
import random
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml  # there is no public way to a task's whole config

from shadow.data.batches import Example
from shadow.data.text_files import check_rows
from shadow.errors import UserError, first_line
from shadow.models.load import LM
from shadow.models.tokenizers import require_open_end

log = logging.getLogger(__name__)

EVALUATION = ("validation", "test")  # either may stand for the other


def task_specs(names: Sequence[str], root: str | None) -> list[dict]:
    """lm-eval's own config of each task; <root>/<name>/{train,validation,test}.jsonl may replace the hub."""
    index = require_tasks(names).task_index
    specs = []
    for name in names:
        spec = {**load_yaml(index[name].yaml_path, resolve_func=True), "task": name}
        if root:
            files = local_files(Path(root).expanduser() / name)
            spec |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        specs.append(spec)
    return specs


def local_files(folder: Path) -> dict[str, str]:
    """The file of each split; where validation or test is missing, the other one stands for it."""
    found = {split: folder / f"{split}.jsonl" for split in ("train", *EVALUATION)}
    there = [split for split in EVALUATION if found[split].is_file()]
    if not found["train"].is_file() or not there:
        missing = found["validation"] if found["train"].is_file() else found["train"]
        raise UserError(
            "data.root (or measure.root) must hold <task>/train.jsonl and <task>/validation.jsonl, or "
            f"test.jsonl; missing: {missing}"
        )
    for split in ("train", *there):
        known_rows(found[split], found[split].stat().st_mtime_ns)
    for split in EVALUATION:
        if split not in there:
            tell_stand_in(folder, split, there[0])
    return {
        split: str(file if split == "train" or split in there else found[there[0]])
        for split, file in found.items()
    }


@cache  # large files, of which each job of a sweep asks
def known_rows(file: Path, changed_ns: int) -> None:
    check_rows("data.root (or measure.root)", file)


@cache  # once a process
def tell_stand_in(folder: Path, split: str, other: str) -> None:
    log.warning("%s has no %s.jsonl: its %s.jsonl stands for it", folder, split, other)


@cache
def task_manager() -> TaskManager:
    return TaskManager()  # reads every task's file: seconds


def require_tasks(names: Sequence[str]) -> TaskManager:
    manager = task_manager()
    unknown = [name for name in names if name not in manager.all_subtasks]
    if unknown:
        raise UserError(f"unknown lm-eval task {unknown[0]!r}: `lm_eval ls tasks` lists those there are")
    return manager


def few_shot_examples(
    lm: LM, names: Sequence[str], root: str | None, count: int, num_fewshot: int, max_tokens: int, seed: int
) -> list[Example]:
    """`count` train documents of each task as prompt and gold answer, formatted and tokenised by lm-eval.

    The shots come from the train split too, never the document itself. Prompts longer than `max_tokens` lose
    their beginning, as in lm-eval, but not the BOS of a model that needs it. The tasks take turns, so that
    more examples begin with the fewer.
    """
    require_open_end(lm.tokenizer)
    manager = require_tasks(names)
    encode = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer)._encode_pair
    by_task: list[list[Example]] = []
    for spec in task_specs(names, root):
        # with test_split = train, lm-eval's sampler knows that the document must not be among its own shots
        task = load_tasks(manager, [spec | {"test_split": "train", "fewshot_split": "train"}])[spec["task"]]
        if task.OUTPUT_TYPE != "multiple_choice":
            raise UserError(
                f"data.tasks must be multiple-choice tasks, {spec['task']!r} is {task.OUTPUT_TYPE}"
            )
        task.set_fewshot_seed(seed)
        documents = list(task.test_docs())
        if num_fewshot >= len(documents):
            raise UserError(
                f"data.num_fewshot must be less than the {len(documents)} train documents of {spec['task']}, "
                f"got {num_fewshot} there or in sparsity.budget_fewshot"
            )
        by_task.append([])
        for document in random.Random(seed).sample(documents, len(documents))[:count]:
            context = task.fewshot_context(document, num_fewshot)
            requests = task.construct_requests(document, context)
            before, answer = encode(*requests[gold_choice(task, document)].args)
            ids = last_tokens(before + answer, max_tokens, lm.bos)
            by_task[-1].append(Example(ids, len(ids) - len(answer)))
        if count > len(documents):
            log.warning(
                "%s has only %d train documents, of %d asked for", spec["task"], len(documents), count
            )
    return [example for turn in zip_longest(*by_task) for example in turn if example is not None]


def last_tokens(ids: list[int], tokens: int, bos: bool) -> list[int]:
    """The last `tokens` of them, of which the first is BOS where a sequence must begin with it."""
    kept = ids[-tokens:]
    return ids[:1] + kept[1:] if bos else kept


def check_shots(task: ConfigurableTask, num_fewshot: int) -> None:
    """Refuse shots from the split that is evaluated, to which lm-eval falls back without a train split."""
    config = task.config
    evaluated = config.test_split or config.validation_split
    shots = task.fewshot_cfg.split or config.training_split or config.validation_split or config.test_split
    given = task.fewshot_cfg.samples is not None
    if num_fewshot > 0 and shots == evaluated and not given:
        raise UserError(
            f"measure.num_fewshot={num_fewshot}: the shots of {config.task} would come from its {shots} "
            "split, which is evaluated: use measure.num_fewshot=0 for this task"
        )


def gold_choice(task: ConfigurableTask, document: dict) -> int:
    """Number of the true choice; lm-eval's tasks give it in one of three ways."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    return gold if isinstance(gold, int) else task.doc_to_choice(document).index(gold)


def load_tasks(manager: TaskManager, specs: Sequence[dict]) -> dict[str, ConfigurableTask]:
    try:
        return manager.load(list(specs))["tasks"]
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"could not load the data of {[spec['task'] for spec in specs]} ({first_line(error)}): "
            "check the network, or give local JSON lines with data.root=/some/folder"
        ) from error
