"""That nothing is measured on what plans were calibrated on."""

from collections.abc import Sequence

from omegaconf import DictConfig

from shadow.errors import UserError
from shadow.jobs.calibration import calibration_data, reads_store
from shadow.jobs.measure_checks import running_text
from shadow.jobs.method import learns_budgets, learns_stand_in, needs_of


def check_disjoint(cfg: DictConfig) -> None:
    """Refuse to measure on what was calibrated on. Of tasks lm-eval's splits see to that."""
    measure = cfg.measure
    needs = needs_of(cfg)
    learnt = learns_budgets(cfg) or learns_stand_in(cfg) or needs.sample or needs.router
    calibrated = reads_store(cfg) or learnt
    if cfg.sparsity.level == 0 or not calibrated:
        return
    if "tasks" in cfg.data or not (measure.perplexity or measure.choices):
        return
    calibration = [spaced(text) for text in calibration_data(cfg).documents("train")]
    texts = [spaced(text) for text in running_text(cfg)]
    lengths = {
        "perplexity": measure.tokens,
        "choices": measure.context_tokens + measure.continuation_tokens,
    }
    # of fewer bytes than tokens no window is cut: titles and empty lines may stand in both
    shortest = min(tokens for name, tokens in lengths.items() if measure[name])
    both = count_shared(calibration, texts, shortest)
    if both:
        measured = "data.eval" if measure.text is None else "measure.text"
        raise UserError(
            f"{measured} must have no document of data.train, by which plans are calibrated, and {both} of "
            f"its {len(texts)} are such: take them out of either file, or give another"
        )


def spaced(text: str) -> str:
    """With single blanks: files of different kinds end their lines and documents differently."""
    return " ".join(text.split())


def count_shared(calibration: Sequence[str], texts: Sequence[str], shortest: int) -> int:
    """How many of the texts, of at least so many bytes, are a document of the calibration, or a part of one.

    A plain text is a single document, which may hold those of a file of JSON lines.
    """
    seen = set(calibration)
    one = calibration[0] if len(calibration) == 1 else ""
    found = [text for text in texts if len(text.encode()) >= shortest and (text in seen or text in one)]
    if not found and len(texts) == 1:
        found = [text for text in seen if len(text.encode()) >= shortest and text in texts[0]][:1]
    return len(found)
