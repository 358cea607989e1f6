"""README and docs: every link leads somewhere, and every snippet is what the code takes."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from documented import DOCS, FENCE, QUESTIONS, README, ROOT, blocks_of, name_of
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "models").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:python (?:\S*/)?|shadow[ -])(train|evaluate)(?:\.py)? ?(.*)")
# Python that runs nowhere here, and why
NOT_RUN = {
    ("README.md", 0): "a test of its own, below",
    ("README.md", 1): "lines that the block before changes for SmolLM2; `make commands` runs them",
    ("docs/speed.md", 0): "compiles for half a minute; `make commands` runs it",
    ("docs/serving.md", 0): "a checkpoint of the reader's; `make commands` writes it",
    ("docs/serving.md", 1): "a server of the reader's; `make commands` starts it",
    ("docs/own_method.md", 0): "a file, which test_documented_method.py runs as a job does",
}


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in blocks_of(page) if language in languages]


def anchors(page: Path) -> set[str]:
    """Of its headings as GitHub and mkdocs name them, and of the objects whose docstrings it shows."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain} | set(
        re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    )


def test_every_relative_link_leads_to_a_file_and_a_heading():
    dead = []
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            place, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (page.parent / place).resolve() if place else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append(f"{name_of(page)}: {link}")
    assert not dead


def test_the_options_page_is_what_its_script_makes_of_conf():
    script = options_script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/options.py"


def python_snippets() -> list[object]:
    return [
        pytest.param(code, id=f"{name_of(page)}-{number}")
        for page in QUESTIONS
        for number, code in enumerate(blocks(page, "python"))
        if (name_of(page), number) not in NOT_RUN
    ]


@pytest.mark.parametrize("code", python_snippets())
def test_a_python_snippet_runs_as_pasted(code, capsys):
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()


def test_the_readmes_snippet_says_what_was_skipped_and_what_it_cost(capsys):
    exec(compile(blocks(README, "python")[0], "README.md", "exec"), {})
    lines = capsys.readouterr().out
    found = re.findall(r"(\d+)% of the weight bytes skipped, (-?\d\.\d\d) nats", lines)
    assert lines.startswith("dense: ")
    assert [int(skipped) for skipped, _ in found] == [22, 33]
    assert [float(cost) for _, cost in found] == pytest.approx([0.25, 0.05], abs=0.1)


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, script and words of each train and evaluate command in a shell block."""
    found = []
    for page in PAGES:
        for code in blocks(page, "bash", ""):
            for line in code.replace("\\\n", " ").splitlines():
                match = COMMAND.search(line)
                if match is not None and not line.lstrip().startswith("#"):
                    found.append((name_of(page), match[1], shlex.split(match[2], comments=True)))
    return found


def test_a_sweep_has_as_many_jobs_as_its_command_says():
    lines = [line for page in PAGES for code in blocks(page, "bash") for line in code.splitlines()]
    told = [match for line in lines if (match := re.search(r"sweep=(\w+).*# (\d+) jobs", line))]
    assert told
    for name, number in (match.groups() for match in told):
        params = OmegaConf.load(ROOT / "conf" / "sweep" / f"{name}.yaml").hydra.sweeper.params
        words = [f"{key}={value}" for key, value in params.items()]
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
        assert sum(map(len, jobs)) == int(number), name


def options_script() -> ModuleType:
    """docs/options.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("options_page", DOCS / "options.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_every_command_names_options_and_settings_that_there_are():
    """By conf/ itself: composing each of some fifty commands takes longer than all other tests of pages."""
    settings_of, conf = options_script().settings_of, ROOT / "conf"
    known = {
        file.relative_to(conf).parts[0].removesuffix(".yaml"): set() for file in sorted(conf.rglob("*.yaml"))
    }
    for file in conf.rglob("*.yaml"):
        known[file.relative_to(conf).parts[0].removesuffix(".yaml")] |= {s.key for s in settings_of(file)}
    top = known["train"] | known["evaluate"]
    assert len(commands()) > 40
    wrong = []
    for page, _, words in commands():
        given = [word for word in words if not word.startswith("-")]
        contenders = {
            key.split(".")[0] for word in given for key in known["sweep"] if word.startswith("sweep=")
        }
        for override in OverridesParser.create().parse_overrides(given):
            group, _, key = override.key_or_group.partition(".")
            value = str(override.input_line).partition("=")[2]
            if group == "hydra" or override.is_add() or value == "mine":
                continue
            fine = key in known.get(group, ()) if key else group in top | contenders
            if not key and (conf / group).is_dir():
                fine = all((conf / group / f"{one}.yaml").is_file() for one in value.split(","))
            if not fine:
                wrong.append(f"{page}: {override.input_line}")
    assert not wrong
