"""Read the configuration from ``errata.toml`` and the environment."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError, TomlConfigSettingsSource
from pydantic_settings.sources import PydanticBaseSettingsSource

from daemon.core.config.base import LOOPBACK, Section
from daemon.core.config.feeds import FEED_SECTIONS, AdmissionConfig, FeedConfig, resolved_feed
from daemon.core.config.serving import ConsumerConfig, PublishConfig, ServeConfig
from daemon.core.config.watch import WatchConfig
from daemon.core.errors import ConfigError
from daemon.core.names import DEFAULT_MODEL, LIVE_LINK, NAME_PATTERN, Role

CONFIG_FILE = "errata.toml"
CONFIG_VARIABLE = "ERRATA_CONFIG"
TOKEN_VARIABLE = "ERRATA_TOKEN_FILE"  # noqa: S105  # the name of a variable
_Guarded = TypeVar("_Guarded", ServeConfig, ConsumerConfig)


class ModelConfig(Section):
    """The model that is edited."""

    name: str = Field(DEFAULT_MODEL, pattern=NAME_PATTERN, description="name of the model in the ledger")
    path: Path = Field(
        Path("models/smollm2-135m-instruct"), description="model folder, in data_dir or absolute"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    corpus: Path | None = Field(
        None, description="text for the statistics (none: text sampled from the model)"
    )
    threads: int = Field(0, ge=0, description="torch threads (0: one per core)")


class EditConfig(Section):
    """How batches are made and written into the weights."""

    recipe: str = Field("encore-blue", description="preset (errata recipes lists them)")
    recipe_overrides: dict[str, Any] = Field(default_factory=dict, description="overrides of the preset")
    batch_size: int = Field(16, ge=1, le=4096, description="corrections in a full batch")
    batch_age_seconds: float = Field(
        3.0, ge=0, description="age of its oldest correction at which a batch is sent"
    )
    edits_per_hour: int = Field(0, ge=0, description="corrections written per hour (0: no limit)")
    batches_ahead: int = Field(64, ge=1, description="batches made ahead of the worker")
    queue_bound: int = Field(10_000, ge=1, description="corrections that may wait before feeds pause")
    review: int = Field(300, ge=0, description="older facts checked after a batch and, if lost, repaired")
    joint: int = Field(
        16, ge=0, description="older facts of a batch's subjects that are written again with it"
    )
    max_attempts: int = Field(3, ge=1, description="starts of a batch before it is split or quarantined")
    task_seconds: int = Field(900, ge=10, description="hard time limit of one batch")
    visibility_seconds: int = Field(3600, ge=60, description="Redis visibility timeout")
    lease_seconds: float = Field(20.0, ge=1, description="writer lease, renewed after a third of it")
    resend_seconds: float = Field(
        20.0, ge=1, description="time until a sent batch without worker is sent again"
    )

    fan_out: bool = Field(False, description="let errata worker --targets find the targets of a batch")
    target_chunk: int = Field(4, ge=1, description="facts that a target worker takes at a time")
    target_seconds: float = Field(
        120.0, gt=0, description="time until the editing worker does a chunk itself"
    )

    @model_validator(mode="after")
    def _time_limits(self) -> Self:
        if self.task_seconds * 2 >= self.visibility_seconds:
            raise ValueError(
                "task_seconds must be below half of visibility_seconds:"
                " Redis hands a longer task out again for ever"
            )
        return self


class StoreConfig(Section):
    """Blobs of revisions on the disk."""

    keep_revisions: int = Field(50, ge=1, description="revisions that gc keeps besides live and base")
    grace_seconds: float = Field(3600, ge=0, description="age below which gc deletes no blob")
    reserve_bytes: int = Field(
        512 << 20,
        ge=0,
        description="free bytes, besides those of a publication, below which no batch is sent",
    )
    scrub_seconds: float = Field(86_400, gt=0, description="time between checks of all blobs")


class ApiConfig(Section):
    """The HTTP API, which listens on loopback only unless it has a token."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8765, ge=0, le=65535, description="port (0: a free one)")
    token_file: Path | None = Field(None, description="file with the bearer token that may do everything")
    submit_token_file: Path | None = Field(None, description="token that may submit corrections and read")
    read_token_file: Path | None = Field(None, description="token that may read (if set, reading needs one)")
    changes_per_second: float = Field(100.0, ge=0, description="changes per second and role (0: no limit)")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.host not in LOOPBACK and self.token_file is None:
            raise ValueError("api.token_file is needed to listen on other than loopback")
        if self.token_file is None and (self.submit_token_file or self.read_token_file):
            raise ValueError("submit_token_file and read_token_file need api.token_file beside them")
        return self

    @property
    def token_files(self) -> dict[Role, Path]:
        """The token file of each role that has one."""
        files = {Role.READ: self.read_token_file, Role.SUBMIT: self.submit_token_file}
        files[Role.OPERATE] = self.token_file
        return {role: file for role, file in files.items() if file is not None}


class CliConfig(Section):
    """The role of users of the command line."""

    role: Role = Field(
        Role.OPERATE,
        description="role of a user without a token: read, submit or operate (ERRATA_TOKEN_FILE)",
    )


class ScheduleConfig(Section):
    """Seconds between the runs of each of the scheduler's jobs."""

    pull_seconds: float = Field(1.0, gt=0, description="time between pulls of each feed")
    dispatch_seconds: float = Field(1.0, gt=0, description="time between checks for a due batch")
    reconcile_seconds: float = Field(5.0, gt=0, description="time between checks for batches that Redis lost")
    judge_seconds: float = Field(1.0, gt=0, description="time between checks for new probe results")
    keep_seconds: float = Field(60.0, gt=0, description="time between garbage collections and scrub checks")
    heartbeat_seconds: float = Field(10.0, gt=0, le=600, description="time between heartbeats of a process")
    lease_seconds: float = Field(15.0, ge=1, description="lease of the leading scheduler")


class LogConfig(Section):
    """Level and form of the logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level shown")
    json_lines: bool = Field(False, description="one JSON object per line")


class Config(BaseSettings):
    """All sections. The environment, such as ``ERRATA_EDIT__BATCH_SIZE=8``, overrides the file."""

    model_config = SettingsConfigDict(
        env_prefix="ERRATA_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Field(
        Path(".errata"),
        description="folder of everything Errata writes, relative to the configuration's folder",
    )
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL (none: SQLite in data_dir)")
    redis_url: SecretStr | None = Field(None, description="Redis URL or REDIS_URL (none: private server)")
    model: ModelConfig = ModelConfig()
    edit: EditConfig = EditConfig()
    watch: WatchConfig = WatchConfig()
    store: StoreConfig = StoreConfig()
    api: ApiConfig = ApiConfig()
    cli: CliConfig = CliConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    publish: PublishConfig = PublishConfig()
    serve: ServeConfig = ServeConfig()
    log: LogConfig = LogConfig()
    admission: AdmissionConfig = AdmissionConfig()
    feeds: tuple[FeedConfig, ...] = Field((), description="where corrections come from")
    consumers: tuple[ConsumerConfig, ...] = Field((), description="servers that load what is published")

    @model_validator(mode="after")
    def _distinct_feeds(self) -> Self:
        names = [feed.name for feed in self.feeds]
        if len(set(names)) != len(names):
            raise ValueError("two feeds have the same name")
        return self

    @model_validator(mode="after")
    def _distinct_consumers(self) -> Self:
        names = [consumer.name for consumer in self.consumers]
        if len(set(names)) != len(names) or LIVE_LINK in names:
            raise ValueError(f"consumers need names of their own, other than {LIVE_LINK!r}")
        return self

    @property
    def ledger_url(self) -> str:
        """The SQLAlchemy URL of the ledger."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'ledger.sqlite'}"

    @property
    def model_path(self) -> Path:
        """The model's folder."""
        return self.data_dir / self.model.path

    @property
    def store_path(self) -> Path:
        """The folder of content-addressed blobs."""
        return self.data_dir / "store"

    @property
    def exchange_path(self) -> Path:
        """The folder of files that editing and target workers exchange, empty between batches."""
        return self.data_dir / "exchange"

    @property
    def published_path(self) -> Path:
        """The folder of the model's published revisions and of the link ``live``."""
        return self.data_dir / self.publish.path / self.model.name

    @property
    def run_path(self) -> Path:
        """The folder of sockets, process ids and the private Redis."""
        return self.data_dir / "run"


def find_config(explicit: Path | None = None) -> Path | None:
    """Find the file of the argument, of ``ERRATA_CONFIG``, in the working folder or in /etc/errata.

    Raises ConfigError if the file of the argument or the variable does not exist.
    """
    named = explicit or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"no configuration file at {named}", hint="errata config show lists every key")
        return named
    return next((p for p in (Path(CONFIG_FILE), Path("/etc/errata") / CONFIG_FILE) if p.is_file()), None)


def load_config(explicit: Path | None = None) -> Config:
    """Read the configuration from defaults, file and environment, each overriding the one before.

    Raises ConfigError if the TOML is invalid, a key is unknown, or a value is out of range.
    """
    path = find_config(explicit)
    folder = path.resolve().parent if path else Path.cwd()

    class _Read(Config):
        model_config = SettingsConfigDict(title="Config")

        @classmethod
        def settings_customise_sources(  # type: ignore[override]  # called with keywords only
            cls, settings_cls: type[BaseSettings], env_settings: PydanticBaseSettingsSource, **_: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (env_settings, TomlConfigSettingsSource(settings_cls, path)) if path else (env_settings,)

    try:
        config = _Read()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except SettingsError as error:  # without its cause, which would show the secret value
        raise ConfigError(f"environment: {error}", hint="the value of such a variable is JSON") from None
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error
    _refuse_unknown_variables()
    return _resolved(config, folder)


def _resolved(config: Config, folder: Path) -> Config:
    """Return the configuration with absolute paths and the value of REDIS_URL."""
    redis = config.redis_url or (SecretStr(os.environ["REDIS_URL"]) if os.environ.get("REDIS_URL") else None)
    feeds = tuple(resolved_feed(feed, folder) for feed in config.feeds)
    update: dict[str, Any] = {"data_dir": folder / config.data_dir, "redis_url": redis, "feeds": feeds}
    tokens = ("token_file", "submit_token_file", "read_token_file")
    given = {name: folder / file for name in tokens if (file := getattr(config.api, name))}
    update["api"] = config.api.model_copy(update=given)
    update["serve"] = _with_token(config.serve, folder)
    update["consumers"] = tuple(_with_token(one, folder) for one in config.consumers)
    update["watch"] = config.watch.resolved(folder)
    if config.model.corpus:
        update["model"] = config.model.model_copy(update={"corpus": folder / config.model.corpus})
    return config.model_copy(update=update)


def _with_token(section: _Guarded, folder: Path) -> _Guarded:
    token = section.token_file and folder / section.token_file
    return section.model_copy(update={"token_file": token})


def _explain(error: ValidationError, path: Path | None) -> str:
    """Describe every problem in one text, with a suggestion for an unknown key."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = problem["loc"]
        if place[:1] == ("feeds",):
            place = place[:2] + place[3:]  # pydantic inserts the kind of the feed after its number
        where = ".".join(str(part) for part in place) or "configuration"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where}{_suggestion(str(problem['loc'][-1]))}")
        else:
            lines.append(f"{where}: {problem['msg']}")
    return f"{path or 'environment'}: " + "; ".join(lines)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Return every key with its description, nested keys joined by dots."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= known_keys(annotation, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field.description or ""
    return keys


def _all_keys() -> tuple[str, ...]:
    lists = [known_keys(section, "feeds.") for section in FEED_SECTIONS]
    lists.append(known_keys(ConsumerConfig, "consumers."))
    return (*known_keys(), *(key for keys in lists for key in keys))


def _suggestion(name: str) -> str:
    known = {key.rsplit(".", 1)[-1]: key for key in _all_keys()}
    near = difflib.get_close_matches(name, [*known, *Config.model_fields], n=1)
    return f" (did you mean {known.get(near[0], near[0])}?)" if near else ""


def _refuse_unknown_variables() -> None:
    """Raise ConfigError for an unknown environment variable that begins with ERRATA_."""
    allowed = {"ERRATA_" + key.upper().replace(".", "__") for key in known_keys()}
    sections = {"ERRATA_" + name.upper() for name in Config.model_fields}
    tools = {
        CONFIG_VARIABLE,
        TOKEN_VARIABLE,
        "ERRATA_TORCH",
        "ERRATA_PYTHON",
        "ERRATA_MODEL_PATH",
        "ERRATA_WHO",
    }
    for name in os.environ:
        known = name in allowed | sections | tools or name.startswith(
            ("ERRATA_TEST_", "ERRATA_EDIT__RECIPE_OVERRIDES")
        )
        if name.startswith("ERRATA_") and not known:
            near = difflib.get_close_matches(name, allowed | tools, n=1)
            raise ConfigError(f"unknown variable {name}" + (f" (did you mean {near[0]}?)" if near else ""))
