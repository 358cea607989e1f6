"""Measures that cannot be made, refused before a model is loaded; and the text that they read."""

from omegaconf import DictConfig, ListConfig

from shadow import criteria
from shadow.data.text_files import read_documents
from shadow.errors import UserError, require_int, require_name
from shadow.jobs.calibration import calibration_data
from shadow.models.numbers import require_dtype

OF_TEXT = ("perplexity", "divergence", "choices", "quality", "latency", "context")  # measured on running text
MEASURES = (*OF_TEXT, "tasks")
NUMBERS = (
    "windows",
    "tokens",
    "questions",
    "options",
    "context_tokens",
    "continuation_tokens",
    "num_fewshot",
)
SWITCHES = ("perplexity", "divergence", "choices", "latency", "compiled")
LISTS = {"tasks": (), "quality": ("all",), "context": ()}  # and the words that stand for a list


def check_measure(cfg: DictConfig) -> None:
    """Everything about the measure that can be refused before a model is loaded."""
    settings = cfg.measure
    if settings.batch_size != "auto" and not (
        isinstance(settings.batch_size, int) and settings.batch_size > 0
    ):
        raise UserError(
            f"measure.batch_size must be a whole number of at least 1, or auto, got {settings.batch_size!r}"
        )
    for name in NUMBERS:
        require_int(f"measure.{name}", settings[name])
    for name in SWITCHES:
        if not isinstance(settings[name], bool):
            raise UserError(f"measure.{name} must be true or false, got {settings[name]!r}")
    for name, words in LISTS.items():
        if settings[name] and not isinstance(settings[name], ListConfig) and settings[name] not in words:
            raise UserError(f"measure.{name} must be names in brackets, got {settings[name]!r}")
    if settings.text is not None:
        require_name("measure.text", settings.text)
    if not any(settings[name] for name in MEASURES):
        raise UserError(f"measure must ask for at least one of {', '.join(MEASURES)}")
    if settings.dtype is not None:
        require_name("measure.dtype", settings.dtype)
        require_dtype("measure.dtype", settings.dtype)
    if reads_text(cfg):
        running_text(cfg)
    elif settings.text is not None:
        raise UserError(
            f"measure.text={settings.text!r} is read by {', '.join(OF_TEXT)}, and measure asks for none of "
            "these: leave it out, or give measure.perplexity=true"
        )
    if settings.quality:
        criteria.require("measure.quality", judged_criteria(cfg))
        if set(judged_criteria(cfg)) & set(criteria.BESIDE_MEANS):
            raise UserError(
                "measure.quality judges criteria by what setting a unit to 0 does, and cannot judge "
                f"{list(criteria.BESIDE_MEANS)}, got {judged_criteria(cfg)}"
            )
        if cfg.sparsity.level != 0:
            raise UserError(
                f"measure.quality judges criteria on the dense model: sparsity.level must be 0, got "
                f"{cfg.sparsity.level}"
            )
    if settings.context:
        check_context(cfg)
    if settings.tasks:
        from shadow.data.tasks import require_tasks, task_specs  # lm-eval takes seconds to import

        require_tasks(settings.tasks)
        task_specs(settings.tasks, task_root(cfg))


def reads_text(cfg: DictConfig) -> bool:
    return any(cfg.measure[name] for name in OF_TEXT)


def running_text(cfg: DictConfig) -> list[str]:
    """Of `measure.text`, so that a scorer of one kind of text can be measured on another; else of `data`."""
    if cfg.measure.text is not None:
        return read_documents("measure.text", cfg.measure.text, cfg.measure.column)
    return calibration_data(cfg).documents("eval")


def check_context(cfg: DictConfig) -> None:
    asked = list(cfg.measure.context)
    criteria.require("measure.context", asked)
    cannot = {*criteria.STATISTICS, *criteria.BESIDE_MEANS, criteria.RANDOM}
    if set(asked) & cannot:
        raise UserError(
            "measure.context ranks heads by each window's own scores, beside nothing else: it takes no "
            f"{sorted(cannot)}, got {asked}"
        )
    if cfg.sparsity.level != 0 or cfg.measure.context_windows < 2:
        raise UserError(
            "measure.context looks at the dense model over several windows: sparsity.level must be 0 and "
            f"measure.context_windows at least 2, got {cfg.sparsity.level} and {cfg.measure.context_windows}"
        )


def judged_criteria(cfg: DictConfig) -> list[str]:
    """Those that tell of a unit that is set to 0, as the judge's are."""
    if cfg.measure.quality == "all":
        return [name for name in criteria.CRITERIA if name not in criteria.BESIDE_MEANS]
    return list(cfg.measure.quality)


def task_root(cfg: DictConfig) -> str | None:
    return cfg.measure.root or cfg.data.get("root")
