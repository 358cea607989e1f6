"""lm-eval's tasks from local JSON lines: prompts, gold answers, and what may not be among the shots."""

import json
import logging

import pytest

from shadow.data.batches import IGNORED, collate
from shadow.data.tasks import few_shot_examples, require_tasks, task_specs
from shadow.errors import UserError

pytestmark = pytest.mark.usefixtures("tasks")
NAMES = ["piqa", "copa", "winogrande", "rte"]


@pytest.fixture
def rows(task_root):
    """rows(task): what the task's train file holds."""

    def read(task: str) -> list[dict]:
        return [json.loads(line) for line in (task_root / task / "train.jsonl").read_text().splitlines()]

    return read


def prompt_and_answer(task: str, row: dict) -> tuple[str, str]:
    """As lm-eval's definitions of these tasks say."""
    if task == "piqa":
        return f"Question: {row['goal']}\nAnswer:", " " + [row["sol1"], row["sol2"]][row["label"]]
    if task == "copa":
        choice = [row["choice1"], row["choice2"]][row["label"]]
        word = {"cause": "because", "effect": "therefore"}[row["question"]]
        return f"{row['premise'][:-1]} {word}", "  " + choice[0].lower() + choice[1:]
    if task == "rte":
        prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        return prompt, [" True", " False"][row["label"]]
    before, after = row["sentence"].split("_")
    return before + [row["option1"], row["option2"]][int(row["answer"]) - 1], " " + after.strip()


@pytest.mark.parametrize("task", NAMES)
def test_without_shots_the_prompt_is_the_question_and_the_loss_on_the_gold_answer(
    tiny_opt, task_root, rows, task
):
    found = few_shot_examples(tiny_opt, [task], str(task_root), 5, 0, 512, 0)
    decode = tiny_opt.tokenizer.decode
    texts = [
        (decode(example.ids[: example.prompt]), decode(example.ids[example.prompt :])) for example in found
    ]
    assert sorted(texts) == sorted(prompt_and_answer(task, row) for row in rows(task))
    batch = collate(found)
    for row, (_, answer) in enumerate(texts):
        assert decode(batch.labels[row][batch.labels[row] != IGNORED]) == answer


@pytest.mark.parametrize("task", NAMES)
def test_shots_are_other_documents_with_their_answers_and_never_the_document_itself(
    tiny_opt, task_root, rows, task
):
    found = few_shot_examples(tiny_opt, [task], str(task_root), 5, 3, 4096, 0)
    solved = {"".join(prompt_and_answer(task, row)): row for row in rows(task)}
    assert len(found) == 5
    for example in found:
        text = tiny_opt.tokenizer.decode(example.ids)
        *shots, question = text.split("\n\n")
        assert len(shots) == 3
        assert question in solved
        assert question not in shots
        assert len(set(shots)) == 3
        assert set(shots) <= set(solved)
        prompt, answer = prompt_and_answer(task, solved[question])
        assert tiny_opt.tokenizer.decode(example.ids[: example.prompt]).endswith(f"\n\n{prompt}")
        assert tiny_opt.tokenizer.decode(example.ids[example.prompt :]) == answer


def test_with_as_many_shots_as_other_documents_the_document_is_still_not_among_them(tiny_opt, task_root):
    for example in few_shot_examples(tiny_opt, NAMES, str(task_root), 5, 4, 4096, 0):
        *shots, question = tiny_opt.tokenizer.decode(example.ids).split("\n\n")
        assert question not in shots
        assert len(set(shots)) == 4


def test_more_shots_than_other_documents_are_refused(tiny_opt, task_root):
    with pytest.raises(UserError, match=r"data\.num_fewshot must be less than the 5 .*of piqa, got 5"):
        few_shot_examples(tiny_opt, ["piqa"], str(task_root), 2, 5, 4096, 0)


def test_examples_come_from_the_train_split_alone(tiny_opt, task_root):
    validation = (task_root / "piqa" / "validation.jsonl").read_text()
    goals = [json.loads(line)["goal"] for line in validation.splitlines()]
    for example in few_shot_examples(tiny_opt, ["piqa"], str(task_root), 5, 3, 4096, 0):
        text = tiny_opt.tokenizer.decode(example.ids)
        assert not any(goal in text for goal in goals)


def test_the_seed_draws_the_documents_and_their_shots(tiny_opt, task_root):
    draws = [few_shot_examples(tiny_opt, NAMES, str(task_root), 2, 2, 512, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert len(draws[0]) == 8


def test_the_tasks_take_turns(tiny_opt, task_root, rows):
    """So that any first so many examples are of all tasks alike."""
    found = few_shot_examples(tiny_opt, NAMES, str(task_root), 3, 0, 512, 0)
    texts = [tiny_opt.tokenizer.decode(example.ids) for example in found]
    of_task = {task: {"".join(prompt_and_answer(task, row)) for row in rows(task)} for task in NAMES}
    assert [next(task for task in NAMES if text in of_task[task]) for text in texts] == NAMES * 3


@pytest.mark.parametrize("shots", [0, 2])
def test_more_examples_begin_with_the_fewer(tiny_opt, task_root, shots):
    """With the same shots: traces of the fewer can become traces of the more."""
    draws = [few_shot_examples(tiny_opt, NAMES, str(task_root), count, shots, 512, 0) for count in (1, 3, 5)]
    assert [len(found) for found in draws] == [4, 12, 20]
    assert draws[1][:4] == draws[0]
    assert draws[2][:12] == draws[1]


def test_a_task_that_has_no_more_documents_leaves_its_turns_to_the_others(tiny_opt, task_root, tmp_path):
    (tmp_path / "piqa").mkdir()
    (tmp_path / "rte").symlink_to(task_root / "rte")
    for part in ("train", "validation"):
        lines = (task_root / "piqa" / f"{part}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "piqa" / f"{part}.jsonl").write_text("".join(lines[:2]))
    few, more = (
        few_shot_examples(tiny_opt, ["piqa", "rte"], str(tmp_path), count, 0, 512, 0) for count in (2, 4)
    )
    assert more[:4] == few
    tasks = ["rte" if "True or False" in tiny_opt.tokenizer.decode(x.ids) else "piqa" for x in more]
    assert tasks == ["piqa", "rte", "piqa", "rte", "rte", "rte"]


def test_a_long_prompt_loses_its_beginning_and_not_its_answer(tiny_opt, task_root):
    whole = few_shot_examples(tiny_opt, ["piqa"], str(task_root), 5, 2, 4096, 0)
    short = few_shot_examples(tiny_opt, ["piqa"], str(task_root), 5, 2, 60, 0)
    for full, cut in zip(whole, short):
        assert cut.ids == full.ids[-60:]
        assert cut.ids[cut.prompt :] == full.ids[full.prompt :]


def test_asking_for_more_documents_than_there_are_takes_all_and_says_so(tiny_opt, task_root, caplog):
    with caplog.at_level(logging.WARNING, logger="shadow.data.tasks"):
        found = few_shot_examples(tiny_opt, ["piqa"], str(task_root), 99, 0, 512, 0)
    assert len(found) == 5
    assert "piqa has only 5 train documents, of 99 asked for" in caplog.text


def test_the_seven_tasks_of_the_paper_can_be_read_from_local_files(tiny_opt, shared_data):
    names = ["piqa", "copa", "openbookqa", "winogrande", "rte", "hellaswag", "arc_easy"]
    found = few_shot_examples(tiny_opt, names, str(shared_data), 3, 2, 1024, 0)
    assert len(found) == 21
    for example in found:
        assert 0 < example.prompt < len(example.ids) <= 1024


# Refusals


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UserError, match=r"no_such_task.*lm_eval ls tasks"):
        require_tasks(["piqa", "no_such_task"])


def test_a_missing_file_is_refused_by_setting_and_name(task_root):
    with pytest.raises(UserError, match=r"data\.root.*hellaswag.*train\.jsonl"):
        task_specs(["piqa", "hellaswag"], str(task_root))


def test_without_a_root_tasks_come_from_the_hub():
    found = {spec["task"]: spec.get("dataset_path") for spec in task_specs(["piqa", "rte"], None)}
    assert set(found) == {"piqa", "rte"}
    assert "json" not in found.values()
