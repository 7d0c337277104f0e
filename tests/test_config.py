"""The configuration: words of the command line, layers, types, aliases, presets, errors."""

import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from inspo.utils import config as configuration
from inspo.utils.config import (
    help_text,
    load_config,
    map_label,
    parse_arguments,
    parse_value,
    sacred_folder,
    to_yaml,
)
from inspo.utils.errors import ConfigError
from inspo.utils.keys import (
    Key,
    declare,
    may_differ_compared,
    may_differ_resumed,
    resume_differences,
    spread_over_t_max,
    type_name,
)
from inspo.utils.nested import flatten
from inspo.utils.paths import CONFIG_DIR, PROJECT_ROOT
from inspo.utils.yaml_files import read_comments, read_yaml

FILES = {
    "default.yaml": """
        # The defaults.
        name: null
        seed: null   # :: int | null, >= 0
        use_presets: True
        map_name: null  # :: str | null
        quality: null   # :: str | null
        offline: False
        lr: 0.1
        steps: 10
        label: "word"
        update: "sequential"  # one after the other, or all
                              # at once :: sequential | simultaneous
        both: 1
        dataset:
          path: null  # :: str | null
        datasets_dir: "datasets"
        local_results_path: "results"
        env: null  # :: str | null
        env_args: {}
        """,
    "envs/toy.yaml": """
        # A toy environment.
        env: toy
        env_args: {map_name: easy, limit: 5}
        both: 2
        lr: 0.2
        maps: [easy, hard, 5m_vs_6m]
        """,
    "envs/toy_offline.yaml": """
        # Data of the toy.
        _extends: toy
        offline: True
        quality: medium
        """,
    "envs/mapless.yaml": "env: mapless\n",
    "algs/inspo.yaml": """
        #
        # The algorithm.
        name: inspo
        both: 3
        t_max: 1e6
        own: {width: 64}
        """,
    "presets/inspo.yaml": """
        - match: {env: toy}
          because: "toys are small"
          set: {lr: 0.3, own.width: 8}
        - match: {map_name: [hard, harder], quality: medium}
          because: "it is hard"
          set: {own: {width: 16}}
        - match: {map_name: nowhere}
          because: "never"
          set: {lr: 9.0}
        """,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files above, as if some code read all of their keys."""
    own = {"steps", "both", "own", "width", "new"}
    read = configuration.names_read() | own
    monkeypatch.setattr(configuration, "names_read", lambda: read)
    for name, text in FILES.items():
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path / "config"


def load(folder, *words, env="toy"):
    return load_config([f"--env-config={env}", "with", *words], folder)


def error_of(folder, *argv):
    with pytest.raises(ConfigError) as caught:
        load_config(argv, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["print_config", "--config=bc", "with", "lr=1", "name=a", "label=b c", "x.y=p=q"],
        ["with", "lr=1", "--config=bc", "name=a", "label=b c", "print_config", "x.y=p=q"],
        ["print_config", "-n", "a", "--comment=b c", "with", "lr=1", "--config", "bc", "x.y=p=q"],
    ],
)
def test_words_stand_in_any_order_as_sacreds(argv):
    arguments = parse_arguments(argv)
    assert (arguments.command, arguments.algorithm) == ("print_config", "bc")
    assert dict(arguments.overrides) == {"lr": "1", "name": "a", "label": "b c", "x.y": "p=q"}


def test_words_that_stand_alone():
    assert parse_arguments(["-F", "x", "with", "lr=1"]).overrides[0] == ("local_results_path", "x")
    for words in (["with", "lr=1", "--help"], ["--config=bc", "-h"]):
        assert parse_arguments(words).command == "help"
    run = parse_arguments([])
    assert (run.command, run.algorithm, run.environment) == ("run", "inspo", "smax_offline")
    assert parse_arguments(["--env-config", "qmix"]).environment == "qmix"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config"], ["--config needs a name"]),
        (["--env-config", "with", "a=1"], ["--env-config needs a name"]),
        (["--config", "--env-config=x"], ["--config needs a name"]),
        (["--config=a", "--config=b"], ["twice", "a and b"]),
        (["--confg=bc"], ["--confg", "'--config'"]),
        (["t_max=5"], ["outside of 'with'", "with t_max=5"]),
        (["print_confg"], ["print_confg", "'print_config'"]),
        (["with", "t_max"], ["'t_max'", "key=value"]),
        (["with", "=5"], ["key=value"]),
        (["-l", "DEBUG"], ["-l is an option of Sacred's", "one level"]),
        (["with", "lr=1", "--mongo_db=x"], ["local_results_path", "use_wandb"]),
        (["--force"], ["nothing to force"]),
        (["print_config", "print_config"], ["print_config"]),
    ],
)
def test_a_wrong_word_is_named(argv, parts):
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("1e6", 1e6), ("-0.5", -0.5), ("True", True), ("true", True), ("False", False),
        ("None", None), ("null", None), ("2s3z", "2s3z"), ("5m_vs_6m", "5m_vs_6m"),
        ("[1, 'a']", [1, "a"]), ("(1, 2)", [1, 2]), ("{'a': 1}", {"a": 1}), ("'5'", "5"),
        ("", ""), ("a b", "a b"), ("__import__('os')", "__import__('os')"),
    ],
)  # fmt: skip
def test_values_are_read_as_sacred_reads_them(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


# --- layers ---------------------------------------------------------------------------------------


def test_each_layer_goes_over_the_one_before(folder):
    values = load(folder, "use_presets=False").values
    assert (values["lr"], values["both"], values["steps"]) == (0.2, 3, 10)
    assert values["t_max"] == 1e6  # a number in YAML too
    values = load(folder, "use_presets=False", "lr=0.5", "own.width=3", "steps=1", "steps=2").values
    assert (values["lr"], values["own"], values["steps"]) == (0.5, {"width": 3}, 2)
    assert values["env_args"] == {"map_name": "easy", "limit": 5}
    values = load(folder, "env_args={'limit': 7}").values  # a whole group
    assert values["env_args"] == {"map_name": "easy", "limit": 7}
    # and loading changes nothing that is shared
    assert load(folder, "use_presets=False").values["own"] == {"width": 64}


def test_a_file_extends_another(folder):
    values = load(folder, env="toy_offline").values
    assert values["env_args"]["limit"] == 5
    assert (values["offline"], values["quality"]) == (True, "medium")
    assert "'toy_offline'" in error_of(folder, "--env-config=toy_ofline")
    assert "'inspo'" in error_of(folder, "--config=inspoo", "--env-config=toy")
    (folder / "envs/toy_offline.yaml").write_text("_extends: nobody\n")
    assert "nobody.yaml" in error_of(folder, "--env-config=toy_offline")
    (folder / "envs/a.yaml").write_text("_extends: b\n")
    (folder / "envs/b.yaml").write_text("_extends: a\n")
    assert "_extends" in error_of(folder, "--env-config=a")
    for parent in ("../algs/inspo", "[toy]", "''", "a", "{}"):
        (folder / "envs/a.yaml").write_text(f"_extends: {parent}\n")
        assert "_extends" in error_of(folder, "--env-config=a")
    (folder / "envs/a.yaml").write_text("maps: 5\n")
    assert "maps: expected a list" in error_of(folder, "--env-config=a")


def test_a_file_in_another_encoding_is_named_and_leaves_the_help_whole(folder):
    (folder / "algs/latin.yaml").write_bytes("# Schön\nlr: 0.5\n".encode("latin-1"))
    assert "latin.yaml: cannot be read" in error_of(folder, "--config=latin", "--env-config=toy")
    text = help_text(folder)
    assert "latin  Sch" in text and "usage:" in text
    assert "  inspo  The algorithm." in text and "  toy          A toy environment." in text


# --- aliases --------------------------------------------------------------------------------------


def test_both_names_of_the_map_set_both(folder):
    short, long = "map_name=hard", "env_args.map_name=hard"
    for words, name in (([], "easy"), ([short], "hard"), ([long], "hard"), ([short, long], "hard")):
        values = load(folder, *words).values
        assert values["map_name"] == values["env_args"]["map_name"] == name
    words = ["map_name=hard", "env_args.map_name=easy"]
    message = error_of(folder, "--env-config=toy", "with", *words)
    assert all(word in message for word in words)
    assert "no maps" in error_of(folder, "--env-config=mapless", "with", "map_name=hard")
    assert load(folder, "use_presets=False", env="mapless").values["map_name"] is None


# --- types and names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("lr=1", 1.0), ("steps=1e3", 1000), ("label=5", "5"), ("seed=null", None), ("seed=3", 3),
        ("map_name=5m_vs_6m", "5m_vs_6m"), ("quality=2", "2"), ("label=none", "none"),
    ],
)  # fmt: skip
def test_what_converts_without_loss_is_converted(folder, word, value):
    found = load(folder, "use_presets=False", word, env="toy_offline").values[
        word.partition("=")[0]
    ]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("lr=fast", ["lr", "float", "str", "fast"]),
        ("lr=null", ["lr", "float", "null"]),
        ("steps=True", ["steps", "int", "bool"]),
        ("steps=1.5", ["steps", "int", "float", "1.5"]),
        ("seed=abc", ["seed", "int or null", "str"]),
        ("seed=-1", ["seed", "at least 0", "-1"]),
        ("offline=1", ["offline", "bool", "int"]),
        ("label=True", ["label", "str", "bool"]),
        ("lr.x=5", ["lr.x", "lr is a float"]),
        ("update=sequental", ["update", "sequental", "'sequential'", "simultaneous"]),
        ("stepz=5", ["stepz", "'steps'"]),
        ("own.widht=5", ["own.widht", "'own.width'"]),
        ("map_name=hrd", ["map_name", "'hrd'", "'hard'", "easy"]),
        ("label=a/b", ["label", "without '/'"]),  # a name cannot leave its folder
        ("name=../../x", ["name", "without '/'"]),
        ("quality=..", ["quality", "without '/'"]),
        ("label=" + 90 * "a", ["label", "without '/'"]),
        ("lr=-1e999", ["lr", "finite number"]),
        ("datasets_dir=~nosuch/x", ["datasets_dir: the home folder in '~nosuch/x' is not known"]),
    ],
)
def test_a_wrong_override_names_key_expected_and_found(folder, word, parts):
    message = error_of(folder, "--env-config=toy", "with", word)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("alg", "word", "parts"),
    [
        ("inspo", "map_name=None", ["map_name: expected a name, found null"]),
        ("inspo", "env=null", ["env", "--env-config=NAME"]),
        ("inspo", "mac=basic_mac", ["mac", "'basic_mac'", "sequential_mac"]),
        ("bc", "learner=qmix_learner", ["learner", "'qmix_learner'", "bc_learner"]),
        ("bc", "agent=gru", ["agent", "'gru'", "rnn, mlp"]),
        ("qmix", "mixer=vdn", ["mixer", "'vdn'", "Known: qmix"]),
        ("omar", "agent_output_type=q", ["agent_output_type", "Known: pi_logits"]),
        ("bc", "lr_decay=null", ["lr_decay", "unknown value 'null'"]),
        ("qmix", "epsilon_start=5", ["epsilon_start", "at most 1"]),
        ("inspo", "grad_norm_clip=0", ["grad_norm_clip", "more than 0.0"]),
        ("inspo", "weight_clip=100", ["weight_clip", "at most 80.0"]),
        ("alberdice", "ratio_max=0.5", ["ratio_max", "at least 1.0"]),
        ("inspo", "lr=" + 400 * "9", ["lr", "a number up to", "99..."]),
        ("inspo", "label=a\nb", ["label", "without line breaks", "'a\\nb'"]),
        ("inspo", "runner=\x1b[31mred", ["runner", "control characters", "\\x1b"]),
        ("inspo", "quality='\\ud800'", ["quality", "broken UTF-8", "\\ud800"]),
        ("inspo", "t_max=1e17", ["t_max", "up to 9.0072e+15"]),
        ("inspo", "alpha_range=[5,1]", ["alpha_range", "the smaller one first", "[5, 1]"]),
        ("inspo", "alpha_range=[0.1,'x']", ["alpha_range", "two numbers"]),
        ("inspo", "alpha_range=[0,1]", ["alpha_range", "more than 0"]),
    ],
)
def test_what_no_run_could_have_is_refused(alg, word, parts):
    environment = "matrix" if alg in ("qmix", "mappo") else "matrix_offline"
    with pytest.raises(ConfigError) as caught:
        load_config([f"--config={alg}", f"--env-config={environment}", "with", word])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("record=a.gif", ["record", "evaluate=True alone", "training"]),
        ("collect.path=a.h5", ["collect.path", "collect.n_episodes=N alone"]),
        ("load_step=5", ["load_step=5", "checkpoint_path or resume"]),
        ("evaluate=True", ["checkpoint_path is empty", "evaluate=True needs"]),
        ("evaluate=True resume=r", ["resume", "training alone"]),
        ("resume=r checkpoint_path=r", ["give one of the two"]),
        ("evaluate=True collect.n_episodes=2 checkpoint_path=r", ["exclude each other"]),
        ("evaluate=True checkpoint_path=r test_nepisode=0", ["test_nepisode", "at least 1"]),
        ("evaluate=True checkpoint_path=r/32 load_step=16", ["step 32", "load_step=16"]),
        ("dataset.path=a.h5", ["dataset.path", "_offline"]),
        ("quality=a", ["quality", "_offline"]),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(words, parts):
    argv = ["--config=qmix", "--env-config=matrix", "with"]
    with pytest.raises(ConfigError) as caught:
        load_config([*argv, *words.split()])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    load_config([*argv, "checkpoint_path=r", "load_step=5"])  # where they count
    load_config([*argv, "evaluate=True", "checkpoint_path=r/32", "load_step=32"])


def test_which_schedules_keep_a_run_from_being_extended():
    def longer(alg, *words):
        argv = [f"--config={alg}", "--env-config=matrix_offline", "with", "use_presets=False"]
        values = load_config([*argv, *words])
        before = values.values | {"t_max": 5}
        return bool(resume_differences(before, values.values)), spread_over_t_max(values.values)

    assert longer("cfcql", "t_max=6") == (False, [])
    assert longer("cfcql", "t_max=4") == (True, [])
    assert longer("bc", "t_max=6") == (False, [])
    assert longer("bc", "t_max=6", "lr_decay=cosine") == (True, ["lr_decay"])
    assert longer("inspo", "t_max=6", "beta=1.0") == (True, ["beta", "critic_warmup"])
    assert longer("inspo", "t_max=6", "beta=0", "critic_warmup=0") == (False, [])
    assert longer("alberdice", "t_max=6") == (True, ["alpha_end"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("lr: fast", ["inspo.yaml", "lr", "float"]),
        ("lr: [1", ["inspo.yaml", "YAML"]),
        ("lr: 1.0\nlr: 2.0", ["lr", "twice"]),
        ("lr: 1.0\nhidden: {{ n }}", ["inspo.yaml, line 2", "a name as the key, found a dict"]),
        ("lr: 0.5  # a rate :: at least nothing", ["inspo.yaml", "lr", "at least nothing"]),
        ("lr: 2020-13-45", ["inspo.yaml, line 1", "'2020-13-45'", "month", "quotation marks"]),
        ("lr: 0x_", ["inspo.yaml, line 1", "'0x_' cannot be read as int"]),
        ("lr: !!bool abc", ["inspo.yaml, line 1", "'abc' cannot be read as bool"]),
        ("lr: !!map [1]", ["inspo.yaml", "YAML"]),
        ("lr: &o {lr: *o}", ["inspo.yaml", "recursive"]),
        ("lr: " + 2000 * "[", ["inspo.yaml", "nested too deep"]),
    ],
)
def test_a_broken_file_is_named(folder, content, parts):
    (folder / "algs/inspo.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# --- presets --------------------------------------------------------------------------------------


def test_presets_apply_in_order_where_they_match(folder):
    loaded = load(folder)
    assert (loaded.values["lr"], loaded.values["own"]["width"]) == (0.3, 8)
    assert len(loaded.notes) == 1
    assert "toys are small" in loaded.notes[0]
    assert load(folder, "use_presets=False").notes == ()
    loaded = load(folder, "map_name=hard", env="toy_offline")
    assert loaded.values["own"]["width"] == 16
    assert "it is hard" in loaded.notes[1]
    loaded = load(folder, "lr=0.9", "label=7")  # the command line goes over presets
    assert (loaded.values["lr"], loaded.values["own"]["width"]) == (0.9, 8)
    assert "lr given on the command line" in loaded.notes[0]
    assert yaml.safe_load(to_yaml(loaded.values)) == loaded.values  # what print_config prints


def test_presets_of_the_environment_come_before_those_of_the_algorithm(folder):
    (folder / "presets/toy.yaml").write_text(
        "- {match: {map_name: easy}, because: c, set: {env_args.limit: 9, lr: 0.7}}"
    )
    loaded = load(folder, env="toy_offline")
    assert (loaded.values["env_args"]["limit"], loaded.values["lr"]) == (9, 0.3)
    assert [note.split("because ")[1] for note in loaded.notes] == ["c", "toys are small"]
    assert load(folder, "map_name=hard").values["env_args"]["limit"] == 5
    assert load(folder, "env_args.limit=6").values["env_args"]["limit"] == 6
    assert load(folder, "use_presets=False").values["env_args"]["limit"] == 5


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("- {match: {}, because: b, set: {lrr: 1.0}}", ["presets", "lrr", "'lr'"]),
        ("- {match: {mapp: a}, because: b, set: {lr: 1.0}}", ["entry 1", "mapp"]),
        ("- {match: {}, set: {lr: 1.0}}", ["entry 1", "because"]),
        ("- {match: {}, because: b, sett: {}}", ["entry 1", "match, because, set"]),
        ("- {match: [a], because: b, set: {lr: 1.0}}", ["entry 1", "match"]),
        ("a: b", ["list"]),
    ],
)
def test_a_broken_preset_is_named(folder, content, parts):
    (folder / "presets/inspo.yaml").write_text(content)
    message = error_of(folder, "--env-config=toy")
    assert all(part in message for part in parts), message


# --- places ---------------------------------------------------------------------------------------


def test_results_and_data_have_their_places(folder, tmp_path):
    argv = ["--env-config=toy_offline", "with", "map_name=hard", "quality=expert"]
    argv += ["local_results_path=out", "name=mine", "dataset.path=a/../b.h5"]
    values = load_config(argv, folder, tmp_path).values
    assert sacred_folder(values) == tmp_path / "out/sacred/mine/hard_expert"
    assert values["dataset"]["path"] == str(tmp_path / "b.h5")  # typed: from where one stands
    assert values["datasets_dir"] == str(PROJECT_ROOT / "datasets")
    values = load(folder).values  # online there is no quality
    assert map_label(values) == "easy"
    assert sacred_folder(values) == PROJECT_ROOT / "results/sacred/inspo/easy"


def test_the_home_folder_is_filled_in():
    assert configuration.expand_user("~/x", "key") == Path.home() / "x"
    assert configuration.expand_user("x/~y", "key") == Path("x/~y")


# --- help, and the files of the project -----------------------------------------------------------


ALGORITHMS = configuration.names("algs")
ENVIRONMENTS = configuration.names("envs")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_loads_with_every_environment(algorithm, environment):
    loaded = load_config([f"--config={algorithm}", f"--env-config={environment}"])
    assert loaded.values["env"]
    assert loaded.values["name"]


FILES_OF_KEYS = [
    CONFIG_DIR / "default.yaml",
    *CONFIG_DIR.glob("algs/*"),
    *CONFIG_DIR.glob("envs/*"),
]


@pytest.mark.parametrize("path", FILES_OF_KEYS, ids=lambda path: path.stem)
def test_every_key_is_declared_once_with_meaning_and_range(path):
    default, inherited = declared(CONFIG_DIR / "default.yaml"), {}
    if parent := read_yaml(path).get("_extends"):
        inherited = declared(path.with_name(f"{parent}.yaml"))
    for name, key in declared(path).items():
        known = (path.name != "default.yaml" and default.get(name)) or inherited.get(name)
        assert key.meaning or known or name.endswith("map_name"), name
        if "int" in key.types or "float" in key.types:
            assert key.bounds or key.choices or "any" in key.flags or known, f"{name} has no range"
        assert "list" not in key.types or "range" in key.flags, f"{name} has no range"
        may = {flag for flag in key.flags if flag.startswith("may ")}
        assert not may or path.name == "default.yaml"


def declared(path):
    content = {k: v for k, v in read_yaml(path).items() if k not in ("_extends", "maps")}
    comments = read_comments(path)
    keys = {}
    for name, value in flatten(content):
        key = declare(name, value, comments[name], str(path))
        keys[name] = key if key.types else replace(key, types=(type_name(value),))
    return keys


def test_which_keys_may_differ():
    """What decides about numbers may not; where results lie and how long one waits may."""
    for key in ("lr", "seed", "t_max", "batch_size_run", "dataset.path", "behaviour.updates"):
        assert not may_differ_compared(key) and not may_differ_resumed(key)
    for key in ("env_timeout", "label", "keep_checkpoints", "local_results_path", "torch_threads"):
        assert may_differ_compared(key) and may_differ_resumed(key)
    assert may_differ_compared("datasets_dir") and not may_differ_resumed("datasets_dir")


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("a rate :: > 0, <= 1", Key("x", (), (), ((">", 0.0), ("<=", 1.0)), "a rate")),
        ("a :: int | null, >= 0", Key("x", ("int", "null"), (), ((">=", 0.0),), "a")),
        (":: auto | True | no", Key("x", ("str", "bool"), ("auto", True, "no"))),
        (":: may differ, any", Key("x", flags=frozenset({"may differ", "any"}))),
    ],
)
def test_what_stands_behind_the_colons(comment, expected):
    assert declare("x", "auto", comment, "f.yaml") == expected


def test_a_key_that_no_code_reads_is_an_error(tmp_path):
    folder = tmp_path / "config"
    shutil.copytree(CONFIG_DIR, folder)
    (folder / "algs/mine.yaml").write_text("standardise_returns: True\n")
    message = error_of(folder, "--config=mine", "--env-config=matrix_offline")
    assert "mine.yaml" in message and "no code reads the key 'standardise_returns'" in message


@pytest.mark.parametrize("key", ["dataset.path", "datasets_dir", "checkpoint_path", "collect.path"])
def test_what_can_be_no_path_names_its_key(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for path in ("a" * 300, "loop/x", "nul\0byte"):
        with pytest.raises(ConfigError, match=f"{key}: no path can be"):
            load_config(["with", f"{key}={path}"])


def test_names_that_are_too_long_together():
    with pytest.raises(ConfigError, match="at most 80 bytes"):
        load_config(["with", f"quality={'q' * 220}"])
    with pytest.raises(ConfigError, match="160 bytes together"):
        load_config(["with", f"quality={'q' * 80}", f"name={'n' * 80}"])
