"""Files of text: their kind is told by their content, and what is none of them is refused in one sentence."""

import gzip
import json

import pytest

from shadow.data.tasks import local_files
from shadow.data.text_files import read_documents
from shadow.errors import UserError
from shadow.jobs.disjoint import check_disjoint

PAGES = ["First page.\nOf two lines.", "The second: é."]
LINES = "".join(json.dumps({"page": page, "n": 1}) + "\n" for page in PAGES)
ARRAY = json.dumps([{"page": page} for page in PAGES], indent=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.ndjson", LINES),
        ("a.JSONL", LINES),
        ("a.txt", LINES),
        ("noending", LINES),
        ("a.json", ARRAY),
        ("a.jsonl", ARRAY),
        ("a.txt", ARRAY),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.txt", "\ufeff" + ARRAY),
        ("a.jsonl", LINES.replace("\n", "\r\n")),
        ("a.txt", LINES.rstrip() + "\n\n \n"),
        ("a.json", LINES.replace("{", "{\n ")),  # objects over several lines
    ],
)
def test_json_is_known_by_its_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_documents("data.train", str(tmp_path / name), "page") == PAGES


@pytest.mark.parametrize(
    "text", ["Prose.", "[1] A note.\n", "{ braces } and\n", '"Quoted," he said.\n', "{{wiki}}\n", "\\{x"]
)
def test_plain_text_is_one_document_without_its_byte_order_mark(tmp_path, text):
    (tmp_path / "a.txt").write_bytes("\ufeff".encode() + text.replace("\n", "\r\n").encode())
    assert read_documents("data.train", str(tmp_path / "a.txt"), "page") == [text]


@pytest.mark.parametrize("name", [2024, None, "", "a" * 5000, "~nobody-of-this-name/a.txt", "a\0b", "."])
def test_what_names_no_file_is_refused(name):
    with pytest.raises(UserError, match=r"data\.train must name a text file .*, got "):
        read_documents("data.train", name, "page")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), "it is gzip, unpack it first"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "it is gzip, unpack it first"),
        ("a.txt", b"PK\x03\x04 is zip", "is zip: give a plain text"),
        ("a.txt", b"PAR1\x15\x04\x15", "is Parquet"),
        ("a.txt", "Words.".encode("utf-16"), "UTF-16, convert it"),
        ("a.txt", b"\x00\x01\x02 words", "NUL bytes"),
        ("a.txt", b"caf\xe9", "must be text in UTF-8"),
        ("a.csv", b"page,n\nWords,1\n", "named as a table"),
        ("a.json", b"Prose, named as JSON.", "must be JSON lines or an array"),
        ("a.txt", b'{"page": "x"}\nProse.', "must be JSON lines or an array"),
        ("a.txt", b'{"page": "x"', "must be JSON lines or an array"),
        ("a.txt", b'["x", "y"]', "'page' column of text in each line or object"),
        ("a.json", b"[]", "'page' column of text in each line or object"),
        ("a.json", b'{"data": [{"page": "x"}]}', "'page' column of text in each line or object"),
        ("a.jsonl", b'{"page": "\\ud800"}', "'page' column of text in each line or object"),
        ("a.jsonl", b"[" * 100000, "must be JSON lines or an array"),
        ("a.jsonl", b"9" * 5000, "must be JSON lines or an array"),
        ("a.jsonl", "\ufeff \r\n".encode(), "is empty"),
    ],
)
def test_what_holds_no_documents_is_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"data\.eval=.*" + message) as refused:
        read_documents("data.eval", str(tmp_path / name), "page")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (gzip.compress(LINES.encode(), mtime=0), "it is gzip, unpack it first"),
        (LINES.encode("utf-16"), "UTF-16, convert it"),
        (LINES.encode()[:-9], "must be JSON lines or an array of objects of a task"),
        (LINES.encode() + b"3\n", "must have a JSON object in each line"),
    ],
)
def test_a_tasks_file_that_is_no_json_lines_is_refused_by_name(tmp_path, content, message):
    for split, lines in (("train", LINES.encode()), ("test", content)):
        (tmp_path / f"{split}.jsonl").write_bytes(lines)
    with pytest.raises(UserError, match=r"measure\.root\)=.*test\.jsonl.* " + message) as refused:
        local_files(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("train", "other"),
    [
        (("a.json", ARRAY), ("b.ndjson", LINES)),
        (("a.txt", "Before.\r\n" + "\r\n".join(PAGES)), ("b.jsonl", LINES)),
        (("a.jsonl", LINES), ("b.txt", "\ufeff" + PAGES[0].replace("\n", "\r\n") + "\nAfter.")),
        (("a.txt", PAGES[0]), ("b.txt", PAGES[0] + "\n")),
    ],
)
def test_files_of_any_kind_must_share_no_document(compose, tmp_path, train, other):
    for name, content in (train, other, ("c.json", json.dumps([{"page": "Something else."}]))):
        (tmp_path / name).write_bytes(content.encode())
    cfg = compose("evaluate", "data=text", "measure=perplexity", "measure.tokens=8")
    cfg.data.train = str(tmp_path / train[0])
    cfg.data.eval = str(tmp_path / "c.json")
    check_disjoint(cfg)
    cfg.data.eval = str(tmp_path / other[0])
    with pytest.raises(UserError, match=r"data\.eval must have no document of data\.train"):
        check_disjoint(cfg)
