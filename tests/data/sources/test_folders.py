"""The files of a folder by configuration and split, and what is left out."""

import pytest

import nncift
from builders import write_jsonl, write_text
from nncift.data.sources.sources import open_source
from nncift.errors import DataError
from nncift.run.folder.folder import RunFolder


def make(folder, *names, readme=None):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"prompt": name, "response": "r"}])
    if readme is not None:
        write_text(folder / "README.md", f"---\n{readme}\n---\n# Data\n")
    return folder


def prompts(source, **options):
    return [row.values["prompt"] for row in open_source(source, **options).rows()]


TRAIN, TEST = "data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (TRAIN, TEST),
        ("train.jsonl", "test.jsonl"),
        ("a-train-0.jsonl", "a-test.csv.jsonl"),
        ("train/a.jsonl", "eval/b.jsonl"),
    ],
)
def test_splits_by_name(tmp_path, train, test):
    make(tmp_path, train, test)
    assert prompts(tmp_path, split="train") == [train]
    assert prompts(tmp_path, split="test") == prompts(tmp_path, prefer="test") == [test]
    for options, problem in (({}, "it has several splits"), ({"split": "banana"}, "there is no split 'banana'")):
        with pytest.raises(DataError, match=f"{problem}: choose one with `split`: train, test"):
            prompts(tmp_path, **options)


def test_splits_of_any_name_in_shards(tmp_path):
    make(tmp_path, "data/math-00000-of-00001.jsonl", TRAIN)
    assert prompts(tmp_path, split="math") == ["data/math-00000-of-00001.jsonl"]


def test_a_split_beside_files_of_none(tmp_path):
    make(tmp_path, "train.jsonl", "other.jsonl")
    with pytest.raises(DataError, match=r"'train' has train.jsonl, and no split has other.jsonl: choose with `split`"):
        prompts(tmp_path)
    assert prompts(tmp_path, split="train") == ["train.jsonl"]


def test_a_folder_without_splits(tmp_path):
    make(tmp_path / "run-3" / "test", "b.jsonl", "a.jsonl")  # the folders above are not asked
    assert prompts(tmp_path / "run-3" / "test") == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="no split 'test'"):
        prompts(tmp_path / "run-3" / "test", split="test")


def test_a_file_has_no_splits(tmp_path):
    make(tmp_path, "a.jsonl")
    for split in ("train", "banana"):
        with pytest.raises(DataError, match=f"a single file has no split '{split}': leave `split` out"):
            open_source(tmp_path / "a.jsonl", split=split)


SFT = "configs:\n- config_name: sft\n  data_files: data/sft/*.jsonl"
REJECTED = "- config_name: rejected\n  data_files:\n  - split: train\n    path: [data/rejected/a*.jsonl]\n"
REJECTED += "  - split: test\n    path: data/rejected/t.jsonl"


def test_configurations(tmp_path):
    files = ("data/sft/a.jsonl", "data/rejected/a.jsonl", "data/rejected/t.jsonl", "data/loose.jsonl")
    repo = make(tmp_path / "repo", *files, readme=f"{SFT}\n  default: true\n{REJECTED}")
    assert prompts(repo) == prompts(f"{repo}:sft") == ["data/sft/a.jsonl"]
    assert prompts(f"{repo}:rejected", split="train") == ["data/rejected/a.jsonl"]
    assert prompts(f"{repo}:rejected", prefer="test") == ["data/rejected/t.jsonl"]
    with pytest.raises(DataError, match="several splits: choose one with `split`: train, test"):
        prompts(f"{repo}:rejected")
    with pytest.raises(DataError, match="there is no configuration 'no': there are sft, rejected"):
        prompts(f"{repo}:no")
    make(tmp_path / "repo", readme=f"{SFT}\n{REJECTED}")
    with pytest.raises(DataError, match=rf"configurations \(sft, rejected\), .* as in {repo}:sft"):
        prompts(repo)
    make(tmp_path / "repo", readme=SFT.replace("sft/", "none/"))
    with pytest.raises(DataError, match="no data file matches 'data/none/"):
        prompts(repo)


def test_a_readme_that_is_no_yaml_is_remarked(tmp_path):
    for readme in ("configs: 5", "configs: [1]", "a: ["):
        source = open_source(make(tmp_path, "a.jsonl", readme=readme))
        assert len(list(source.rows())) == 1
        assert "the YAML of README.md cannot be read" in source.notes[0]


def test_files_that_cannot_be_read_are_named(tmp_path):
    make(tmp_path, "a.jsonl", ".cache/x.jsonl", "__pycache__/y.jsonl")
    quiet = ("README.md", "LICENSE", "logo.png", "make.py", "dataset_info.json", "metadata.json", "small.xyz")
    for name in (*quiet, "b.xlsx", "c.csv.zip", "d.txt", "e.pickle"):
        write_text(tmp_path / name, "x")
    write_text(tmp_path / "f.xyz", "x" * 200_000)
    source = open_source(tmp_path)
    assert [row.file for row in source.rows()] == [str(tmp_path / "a.jsonl")]
    [note] = source.notes
    assert "left out, since it cannot be read: b.xlsx, c.csv.zip, d.txt, e.pickle, f.xyz; known are .jsonl" in note
    assert nncift.load_pool(tmp_path, folder=tmp_path / "out").num_rows == 1
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"no data in this folder that can be read \(it holds b.xlsx, "):
        open_source(tmp_path)


def test_what_nncift_wrote_is_no_data(tmp_path):
    make(tmp_path, "a.jsonl")
    for _ in range(2):
        assert nncift.load_pool(tmp_path, folder=tmp_path / "read").num_rows == 1
    run = RunFolder(tmp_path / "run")
    make(run.path, "subset.jsonl", "pool/rejected.jsonl", "test/b.jsonl")
    assert not run.is_run
    write_text(run.config, "{}")
    assert run.is_run
    assert prompts(tmp_path) == ["a.jsonl"]
    assert nncift.load_pool(tmp_path, folder=tmp_path / "read").num_rows == 1
    with pytest.raises(DataError, match=r"this is a run of nncift, not data: give a file of it, such as its subset"):
        open_source(run.path)


def test_magic_characters_in_a_path(tmp_path):
    make(tmp_path / "a[1]*", "train.jsonl", "test.jsonl")
    assert prompts(tmp_path / "a[1]*", split="train") == ["train.jsonl"]
