"""The configuration refuses mistyped keys with the nearest known one, and bad values with their place."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from daemon.core.config.settings import Config, find_config, known_keys, load_config
from daemon.core.errors import ConfigError

GOOD = """
data_dir = "state"
database_url = "postgresql+psycopg://errata:hunter2@db/errata"

[model]
name = "assistant"
path = "models/assistant"
corpus = "corpus.txt"

[edit]
batch_size = 8

[edit.recipe_overrides]
layers = [3, 8]

[api]
host = "0.0.0.0"
token_file = "token"

[[feeds]]
kind = "jsonl"
name = "news"
path = "news.jsonl"
trust = 80

[[feeds]]
kind = "jsonl"
name = "atlas"
path = "/var/atlas.jsonl"
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the variables of the machine and enter a folder without a configuration."""
    for name in list(os.environ):
        if name.startswith("ERRATA_") or name == "REDIS_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder / "errata.toml"


def read(path: Path, text: str) -> Config:
    path.write_text(text)
    return load_config(path)


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config()
    assert config.data_dir == tmp_path / ".errata"
    assert config.ledger_url == f"sqlite:///{tmp_path}/.errata/ledger.sqlite"
    assert (config.edit.recipe, config.feeds, config.redis_url) == ("encore-blue", (), None)
    assert config.api.host == "127.0.0.1"


def test_a_file_is_read_with_its_paths_from_its_own_folder(path: Path) -> None:
    config = read(path, GOOD)
    folder = path.parent
    assert config.data_dir == folder / "state"
    assert config.model_path == folder / "state" / "models" / "assistant"
    assert (config.store_path, config.run_path) == (folder / "state" / "store", folder / "state" / "run")
    assert config.model.corpus == folder / "corpus.txt"
    assert config.api.token_file == folder / "token"
    assert [feed.path for feed in config.feeds] == [folder / "news.jsonl", Path("/var/atlas.jsonl")]
    assert [feed.trust for feed in config.feeds] == [80, 50]
    assert (config.edit.batch_size, config.edit.recipe_overrides) == (8, {"layers": [3, 8]})


def test_a_configuration_does_not_change_under_its_readers(path: Path) -> None:
    config = read(path, GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        config.data_dir = Path("/")
    with pytest.raises(ValidationError, match="frozen"):
        config.edit.batch_size = 1


def test_the_environment_wins_over_the_file_key_by_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_EDIT__BATCH_SIZE", "99")
    monkeypatch.setenv("ERRATA_DATA_DIR", "/srv/errata")
    monkeypatch.setenv("ERRATA_MODEL__DEVICE", "cuda:1")
    config = read(path, GOOD)
    assert (config.edit.batch_size, config.edit.recipe_overrides) == (99, {"layers": [3, 8]})
    assert config.data_dir == Path("/srv/errata")
    assert (config.model.device, config.model.name) == ("cuda:1", "assistant")


def test_redis_url_is_taken_from_its_common_variable_unless_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://common")
    found = read(path, "").redis_url
    assert found is not None
    assert found.get_secret_value() == "redis://common"
    own = read(path, 'redis_url = "redis://own"').redis_url
    assert own is not None
    assert own.get_secret_value() == "redis://own"


def test_secrets_do_not_show_where_a_configuration_is_printed(path: Path) -> None:
    config = read(path, GOOD + '\n[log]\nlevel = "DEBUG"\n')
    assert isinstance(config.database_url, SecretStr)
    for text in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "hunter2" not in text
    assert "hunter2" in config.ledger_url


def test_the_file_is_looked_for_where_it_may_be(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_config() is None
    (tmp_path / "errata.toml").touch()
    assert find_config() == Path("errata.toml")
    path.touch()
    monkeypatch.setenv("ERRATA_CONFIG", str(path))
    assert find_config() == path
    other = tmp_path / "other.toml"
    with pytest.raises(ConfigError, match=r"no configuration file at .*other\.toml"):
        find_config(other)
    other.touch()
    assert find_config(other) == other


BAD = {
    "not toml": ("edit = [", "is not valid TOML"),
    "unknown section": ("[edt]\nbatch_size = 1", r"unknown key edt \(did you mean edit\?\)"),
    "unknown key": (
        "[edit]\nbatch_sise = 1",
        r"unknown key edit.batch_sise \(did you mean edit.batch_size\?\)",
    ),
    "unknown key on top": ("data_dirr = 'x'", r"unknown key data_dirr \(did you mean data_dir\?\)"),
    "unknown key of nothing like it": ("[edit]\nzzz = 1", r"unknown key edit.zzz$"),
    "unknown key of a feed": (
        "[[feeds]]\nkind = 'jsonl'\nname = 'a'\npath = 'x'\ntrusst = 1",
        r"unknown key feeds.0.trusst \(did you mean feeds.trust\?\)",
    ),
    "two problems": ("[edit]\nbatch_sise = 1\n[api]\nport = -1", r"batch_sise.*; api.port: .*greater than"),
    "wrong type": ("[edit]\nbatch_size = 'many'", "edit.batch_size: .*valid integer"),
    "too small": ("[edit]\nbatch_size = 0", "edit.batch_size: .*greater than or equal to 1"),
    "share above one": ("[watch]\nefficacy_floor = 90", "watch.efficacy_floor: .*less than or equal to 1"),
    "section is a value": ("edit = 5", "edit: .*valid dictionary"),
    "task longer than Redis waits": (
        "[edit]\ntask_seconds = 1800",
        "task_seconds must be below half of visibility_seconds",
    ),
    "open to the world": (
        "[api]\nhost = '0.0.0.0'",
        "api.token_file is needed to listen on other than loopback",
    ),
    "feed without path": ("[[feeds]]\nkind = 'jsonl'\nname = 'a'", "feeds.0.path: Field required"),
    "feed of an unknown kind": (
        "[[feeds]]\nkind = 'gopher'\nname = 'a'\npath = 'x'",
        "feeds.0: Input tag 'gopher' found using 'kind' .*'jsonl', 'http'",
    ),
    "feed with a bad name": (
        "[[feeds]]\nkind = 'jsonl'\nname = 'A B'\npath = 'x'",
        "feeds.0.name: String should match",
    ),
    "feeds of one name": (
        "[[feeds]]\nkind = 'jsonl'\nname = 'a'\npath = 'x'\n" * 2,
        "two feeds have the same name",
    ),
    "trust above a hundred": (
        "[[feeds]]\nkind = 'jsonl'\nname = 'a'\npath = 'x'\ntrust = 101",
        "feeds.0.trust: .*less than or equal to 100",
    ),
    "unknown level": ("[log]\nlevel = 'LOUD'", "log.level: Input should be 'DEBUG'"),
    "model name of another alphabet": ("[model]\nname = '../x'", "model.name: String should match"),
    "not a number": ("[watch]\nperplexity_ceiling = nan", "watch.perplexity_ceiling: "),
    "never": ("[schedule]\npull_seconds = inf", "schedule.pull_seconds: .*finite number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_refused_with_what_is_wrong_and_where(path: Path, name: str) -> None:
    text, expected = BAD[name]
    with pytest.raises(ConfigError, match=expected) as caught:
        read(path, text)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(path)


def test_a_file_that_cannot_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(path)


def test_a_problem_does_not_show_the_secret_that_has_it(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(path, "database_url = ['hunter2']\nredis_url = 5")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("ERRATA_EDIT__BATCH_SISE", r"did you mean edit.batch_size\?"),
        ("ERRATA_BATCH_SIZE", "ERRATA_BATCH_SIZE"),
        ("ERRATA_DATADIR", r"did you mean ERRATA_DATA_DIR\?"),
        ("ERRATA_ZZZ", "unknown variable ERRATA_ZZZ"),
    ],
)
def test_a_mistyped_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, expected: str
) -> None:
    monkeypatch.setenv(variable, "8")
    with pytest.raises(ConfigError, match=expected):
        load_config()


def test_variables_of_the_tools_are_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ERRATA_TORCH", "ERRATA_PYTHON", "ERRATA_MODEL_PATH", "ERRATA_WHO", "ERRATA_TEST_POSTGRES"):
        monkeypatch.setenv(name, "x")
    load_config()


def test_a_variable_that_is_out_of_range_names_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_API__PORT", "99999")
    with pytest.raises(ConfigError, match=r"api.port: .*less than or equal to 65535"):
        load_config()


@pytest.mark.parametrize("variable", ["ERRATA_FEEDS", "ERRATA_EDIT"])
def test_a_variable_that_is_no_json_names_its_key_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "{hunter2")
    with pytest.raises(ConfigError, match=variable.removeprefix("ERRATA_").lower()) as caught:
        load_config()
    assert "hunter2" not in str(caught.value)


def test_every_key_is_explained() -> None:
    unexplained = [key for key, text in known_keys().items() if not text]
    assert unexplained == []
    assert "edit.batch_size" in known_keys()
