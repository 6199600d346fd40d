from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rookery.config.base import OneOf, StrictModel
from rookery.config.loader import dump_config, json_schema, load_config, parse_config
from rookery.errors import ConfigError


class Sgd(StrictModel):
    lr: float = Field(default=0.01, gt=0)


class Adam(StrictModel):
    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)


class Optimizer(StrictModel):
    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("sgd", "adam"), required=True),)
    sgd: Sgd | None = None
    adam: Adam | None = None
    learning_rate: float | None = None


class Table(StrictModel):
    name: str
    num_embeddings: int = Field(ge=1)
    data_type: Literal["fp32", "fp16"] = "fp32"


class Root(StrictModel):
    tables: tuple[Table, ...] = ()
    optimizer: Optimizer = Optimizer(sgd=Sgd())
    save_dir: Path | None = None
    checkpoint_every_n: int | None = Field(default=None, ge=1)
    steps: int = Field(default=100, ge=1)
    per_task: dict[str, Sgd] = Field(default_factory=dict)
    clip: float | None = 1.0
    words: tuple[str, ...] = ()
    amp: bool = False


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return _write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Root, path, overrides)
    return str(caught.value).replace(str(path.parent) + "/", "").splitlines()


def test_numbers_words_anchors_and_merges(write):
    config = load_config(
        Root,
        write(
            "base: &base {lr: 1e-3}\n".replace("base: ", "per_task:\n  a: ")
            + "  b: {<<: *base, lr: 2}\n  c: *base\n"
            + "steps: 1_000\nwords: [no, on, 'null', x]\nclip: .5\nsave_dir: 2024-01-02\n"
            + "tables: [{name: user, num_embeddings: 0x10}, {name: item, num_embeddings: 010}]\n"
        ),
    )
    assert config.steps == 1000
    assert [config.per_task[name].lr for name in "abc"] == [0.001, 2, 0.001]
    assert config.words == ("no", "on", "null", "x")
    assert config.clip == 0.5
    assert config.save_dir == Path("2024-01-02")
    assert [table.num_embeddings for table in config.tables] == [16, 10]


@pytest.mark.parametrize("item", ["[{}]", "{{{}}}"])
def test_anchors_in_anchors_are_bounded(write, item):
    """Each level repeats the one before nine times, whole or merged: 9^9 values of some 300 bytes."""
    nested = {"[{}]": ", ".join(["*{0}"] * 9), "{{{}}}": "<<: [" + ", ".join(["*{0}"] * 9) + "]"}[item]
    rows = ["l0: &l0 " + ("[x]" if item == "[{}]" else "{x: 1}")]
    rows += [f"l{level}: &l{level} " + item.format(nested.format(f"l{level - 1}")) for level in range(1, 10)]
    tracemalloc.start()
    (problem,) = problems(write("\n".join(rows)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert re.match(
        r"config.yaml:[56]: with 'l[45]' the file has more than 100,000 values, .*; repeat fewer, or", problem
    )
    assert peak < 100e6  # bytes


def test_a_long_list_is_no_nest_of_anchors(write):
    words = [f"w{number}" for number in range(20_000)]
    assert load_config(Root, write(f"words: [{', '.join(words)}]")).words == tuple(words)


def test_merge_list_prefers_the_first(write):
    text = "per_task: {a: &a {lr: 1}, b: &b {lr: 2}, c: {<<: [*b, *a]}}"
    assert load_config(Root, write(text)).per_task["c"].lr == 2


def test_an_empty_file_is_all_defaults(write):
    assert load_config(Root, write("")) == Root()


def test_every_problem_is_reported_at_once_with_its_line(write):
    path = write(
        "stepz: 3\n"
        "checkpoint_every_n: 0\n"
        "tables:\n"
        "- name: user\n"
        "  num_embedings: 5\n"
        "- {name: item, num_embeddings: many, data_type: fp61}\n"
        "optimizer: {sgd: {}, adam: {}}\n"
        "amp: 1_000\n"
        "words: [~]\n"
        "steps: true\n"
    )
    assert problems(path) == [
        "config.yaml:4: tables.0.num_embeddings: is missing; add it",
        "config.yaml:5: tables.0: unknown key 'num_embedings'; did you mean 'num_embeddings'?",
        "config.yaml:6: tables.1.num_embeddings=many: must be an integer",
        "config.yaml:6: tables.1.data_type=fp61: must be 'fp32' or 'fp16'; leave it out for the default, fp32",
        "config.yaml:7: optimizer: sgd, adam exclude each other; keep one and remove the rest or set it to null",
        "config.yaml:2: checkpoint_every_n=0: must be at least 1; or leave it out",
        "config.yaml:10: steps=True: must be a number, not a truth value; leave it out for the default, 100",
        "config.yaml:9: words.0: must be a string; put it in quotes",
        "config.yaml:8: amp=1000: must be true or false; leave it out for the default, False",
        "config.yaml:1: unknown key 'stepz'; did you mean 'steps'?",
    ]


def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(write):
    path = write("clip: .nan\nper_task:\n  click: {lr: .inf}\noptimizer:\n  adam: {lr: -.inf, betas: [.9, .NaN]}\n")
    assert problems(path) == [
        "config.yaml:5: optimizer.adam.lr=-inf: must be a finite number; leave it out for the default, 0.001",
        "config.yaml:5: optimizer.adam.betas.1=nan: must be a finite number",
        "config.yaml:3: per_task.click.lr=inf: must be a finite number; leave it out for the default, 0.01",
        "config.yaml:1: clip=nan: must be a finite number; leave it out for the default, 1.0",
    ]


def test_an_unknown_key_far_from_all_lists_what_is_known(write):
    assert problems(write("optimizer: {qqq: 1}")) == [
        "config.yaml:1: optimizer: unknown key 'qqq'; known: sgd, adam, learning_rate"
    ]


def test_unknown_keys_inside_lists_and_maps_are_found(write):
    assert problems(write("per_task: {fav: {lrr: 1}}")) == [
        "config.yaml:1: per_task.fav: unknown key 'lrr'; did you mean 'lr'?"
    ]


def test_one_of_needs_one_and_null_members_do_not_count(write):
    assert problems(write("optimizer: {sgd: null}")) == ["config.yaml:1: optimizer: needs exactly one of sgd, adam"]
    assert load_config(Root, write("optimizer: {sgd: null, adam: {}}")).optimizer.adam == Adam()


def test_an_optional_group_may_be_absent():
    class Limits(StrictModel):
        one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("steps", "epochs"), required=False),)
        steps: int | None = None
        epochs: int | None = None

    assert Limits().steps is None
    with pytest.raises(ConfigError, match="steps, epochs exclude each other"):
        parse_config(Limits, {"steps": 1, "epochs": 1}, "here")


def test_duplicate_keys_are_refused(write):
    assert problems(write("steps: 1\namp: true\nsteps: 2\n")) == [
        "config.yaml:3: steps: the key appears twice; remove one"
    ]


def test_environment(write, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("STEPS", "12")
    path = write("save_dir: ${SCRATCH}/run$$1\nsteps: ${STEPS}\nwords: [$x, '$${SCRATCH}']")
    config = load_config(Root, path)
    assert config.save_dir == Path("/scratch/run$1")
    assert config.steps == 12
    assert config.words == ("$x", "${SCRATCH}")


def test_an_unset_variable_is_named_beside_other_problems(write, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    path = write("checkpoint_every_n: -1\nsteps: ${NOWHERE}\n")
    assert problems(path) == [
        (
            "config.yaml:2: steps=${NOWHERE}: the environment variable 'NOWHERE' is not set; "
            "set it, or write $$ for a dollar sign"
        ),
        "config.yaml:1: checkpoint_every_n=-1: must be at least 1; or leave it out",
    ]


def test_overrides_by_key_index_and_name(write):
    path = write("tables: [{name: user, num_embeddings: 1}, {name: item, num_embeddings: 1}]")
    config = load_config(
        Root,
        path,
        [
            "tables.0.num_embeddings=1_0",
            "tables.item.num_embeddings=20",
            "optimizer.adam.betas=[0.5, 0.6]",
            "optimizer.sgd=null",
            "save_dir=a=b",
            "amp=true",
        ],
    )
    assert [table.num_embeddings for table in config.tables] == [10, 20]
    assert config.optimizer.adam == Adam(betas=(0.5, 0.6))
    assert (config.save_dir, config.amp) == (Path("a=b"), True)


def test_overrides_of_every_member_and_of_keys_with_dots(write):
    path = write(
        "tables: [{name: user, num_embeddings: 1}, {name: a.b, num_embeddings: 1}]\n"
        "per_task: {is.liked: {lr: 1}, is: {lr: 1}, other: {lr: 1}}\n"
    )
    config = load_config(
        Root,
        path,
        ["tables.*.num_embeddings=5", "tables.a.b.num_embeddings=6", "per_task.*.lr=2", "per_task.is.liked.lr=3"],
    )
    assert [table.num_embeddings for table in config.tables] == [5, 6]
    assert {name: each.lr for name, each in config.per_task.items()} == {"is.liked": 3, "is": 2, "other": 2}
    assert problems(path, "per_task.*.lr=0")[0].startswith("--set: per_task.is.liked.lr=0: ")


def test_a_variable_that_an_override_replaces_need_not_be_set(write, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    path = write("steps: ${NOWHERE}\nwords: ['$${NOWHERE2}']\n")
    assert load_config(Root, path, ["steps=4"]).steps == 4


def test_wrong_overrides_are_explained(write):
    path = write("tables: [{name: user, num_embeddings: 1}]\nsteps: 3\n")
    assert problems(
        path, "tables.users.num_embeddings=3", "steps.x=1", "nonsense", "stepz=4", "optimizer.adm.lr=1"
    ) == [
        "config.yaml: override 'tables.users.num_embeddings=3': tables has no item 'users'; did you mean 'user'?",
        "config.yaml: override 'steps.x=1': steps holds 3, which has no members; set steps itself",
        "config.yaml: override 'nonsense' must read path.to.field=VALUE",
        "--set: optimizer: unknown key 'adm'; did you mean 'adam'?",
        "--set: unknown key 'stepz'; did you mean 'steps'?",
    ]
    assert problems(path, "steps=0") == ["--set: steps=0: must be at least 1; leave it out for the default, 100"]


def test_what_is_missing_around_a_flag_of_its_own_is_laid_to_the_file(write):
    path = write("")
    with pytest.raises(ConfigError) as caught:
        load_config(Root, path, ["steps=3"], ["optimizer.learning_rate=0.1"])
    assert str(caught.value).startswith(f"{path}: optimizer: ")
    assert problems(path, "optimizer.learning_rate=0.1")[0].startswith("--set: optimizer: ")
    assert load_config(Root, path, ["steps=3"], ["steps=4"]).steps == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "config.yaml:2: not valid YAML"),
        ("- 1\n", "config.yaml: must be a mapping of fields to values, not [1]"),
        ("steps: &x [*x]\n", "refers to itself"),
        ("steps: *nothing\n", "undefined alias"),
        ("steps: !!python/object:os.system {}\n", "config.yaml: not valid YAML: line 1: the tag"),
        ("steps: !secret x\n", "config.yaml:1: not valid YAML: could not determine a constructor"),
        ("<<: 3\n", "'<<' needs a mapping"),
        ("steps: \0\n", "not valid YAML"),
    ],
)
def test_what_is_no_config_says_so(write, text, message):
    assert message in "\n".join(problems(write(text)))


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Root, tmp_path / "absent.yaml")


def test_parse_config_names_its_source():
    with pytest.raises(ConfigError, match=r"^manifest.json: steps=x: must be an integer"):
        parse_config(Root, {"steps": "x"}, "manifest.json")


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Root().steps = 3  # type: ignore[misc]


def test_json_schema_has_the_fields_and_refuses_more():
    schema = json_schema(Root)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Root.model_fields)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    ["1e-3", "null", "no", "true", "$HOME", "${HOME}", "$$", "~", "", "010", "1_0", "<<", ".inf", "2024-01-01"]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ROOTS = st.builds(
    Root,
    tables=st.lists(st.builds(Table, name=TEXT, num_embeddings=st.integers(1, 2**62)), max_size=2).map(tuple),
    optimizer=st.builds(Optimizer, adam=st.builds(Adam, lr=FLOATS), sgd=st.none()),
    save_dir=st.none() | TEXT.map(Path),
    steps=st.integers(1, 10**9),
    per_task=st.dictionaries(
        TEXT, st.builds(Sgd, lr=st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)), max_size=2
    ),
    clip=st.none() | FLOATS,
    words=st.lists(TEXT, max_size=3).map(tuple),
)


@given(config=ROOTS)
def test_dump_loads_back_equal(config: Root, tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Root, path) == config


def test_dump_leaves_out_what_is_none_by_default():
    text = dump_config(Root(clip=None))
    assert "learning_rate" not in text
    assert "clip: null" in text
