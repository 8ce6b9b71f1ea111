"""Everything that can stand in run.toml, one class per block. What is left out is derived from `size` (see size.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

Size = Literal["nano", "tiny", "small", "node", "cluster"]
Preset = Literal["glm-4.5", "glm-4.5-air", "qwen3-30b-a3b", "qwen3-235b-a22b", "mixtral-8x7b", "jiutian-139moe"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _seconds(value: object) -> object:
    """`90`, `"90s"`, `"4m"` and `"2h"` are the same kind of thing: a time in seconds."""
    if isinstance(value, str):
        text = value.strip().lower()
        unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
        if unit is None:
            raise ValueError('a time is a number of seconds, or text such as "90s", "4m", "2h"')
        try:
            return float(text[:-1]) * unit
        except ValueError:
            raise ValueError('a time is a number of seconds, or text such as "90s", "4m", "2h"') from None
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class Block(BaseModel):
    """A block of run.toml: unknown keys are errors, and a setting never changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(Block):
    """Where the run's folder lives and what executes its shards."""

    store: str = "runs"
    executor: Literal["local", "ray"] = "local"
    workers: PositiveInt | None = None  # None: as many as cores
    ray_address: str | None = None  # host:port of a Ray cluster; None: $RAY_ADDRESS, or a cluster of this machine alone


class Quality(Block):
    """Document rules; each figure is kept beside the document (Gopher, C4, FineWeb; own values for Chinese)."""

    min_words: PositiveInt = 40
    max_words: PositiveInt = 100_000
    min_stop_words: int = Field(2, ge=0)
    max_symbol_share: Share = 0.10
    max_duplicate_lines: Share = 0.30
    max_bullet_lines: Share = 0.90
    max_ellipsis_lines: Share = 0.30
    min_terminal_lines: Share = 0.12
    max_repeated_line_characters: Share = 0.10  # English
    c4: bool = False  # English: C4's lines taken out, as FineWeb asks it (lines need not end in a mark)


class Safety(Block):
    """Hooks of a house's own against what it must not train on; docs/data.md tells their forms."""

    block_lists: tuple[str, ...] = ()  # files or URLs of hosts, or of addresses without what follows a folder
    lexicons: tuple[str, ...] = ()  # files or URLs of terms
    max_lexicon_share: Share = 0.005  # of a document's words (CJK: characters), in terms of the lexicons
    classifier: str | None = Field(None, pattern=r"^[\w.]+:\w+$")  # module:function
    max_classifier: Share = 0.5  # what the classifier may say


class Data(Block):
    """Raw pages -> documents -> tokens."""

    sources: tuple[str, ...] = ("made", "debian-handbook")
    languages: tuple[str, ...] = ("en", "zh")
    max_pages: PositiveInt | None = None
    page_seconds: Seconds = 5.0
    page_bytes: PositiveInt = 20_000_000
    near_duplicate: Share = 0.80
    repeat_pages: int = Field(10, ge=0)  # of one site, or a share of its pages, on which one block may stand; 0: on any
    repeat_share: Share = 0.1
    decontaminate: tuple[str, ...] = ()  # evaluation sets of which nothing may be trained on
    decontaminate_words: PositiveInt = 13  # in a row, that are too many to share with them
    decontaminate_characters: PositiveInt = 20  # the same in Chinese, Japanese, Korean
    contaminated: Literal["drop", "cut"] = "drop"  # the document, or its blocks that share something
    mask: tuple[Literal["email", "phone", "id_card", "bank_card", "ip"], ...] = ("email", "phone", "id_card", "bank_card", "ip")
    held_out: Share = 0.05
    vocab: PositiveInt | None = None
    vocab_characters: PositiveInt = 200_000_000  # of the training documents, on which the tokenizer is trained
    shard_tokens: PositiveInt = 1 << 28  # of a token file, at most
    quality: Quality = Quality()
    safety: Safety = Safety()


class Model(Block):
    """Shape of the sparse decoder; None is derived from `size`, or everything from a published shape, a `preset`."""

    preset: Preset | None = None
    layers: PositiveInt | None = None
    dim: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    experts: PositiveInt | None = None
    experts_per_token: PositiveInt | None = None
    expert_dim: PositiveInt | None = None
    shared_experts: int | None = Field(None, ge=0)
    dense_layers: int | None = Field(None, ge=0)
    dense_dim: int | None = Field(None, ge=0)
    qk_norm: bool = True
    rope_theta: PositiveFloat = 10_000.0
    norm_eps: PositiveFloat = 1e-5
    head_dim: PositiveInt | None = None  # None: dim / heads
    expert_dims: tuple[PositiveInt, ...] = ()  # width of each routed expert, where they differ; equal ones stand together
    attention_bias: bool = False  # of queries, keys and values
    rotary: Share = 1.0  # of a head's dimensions, the share that rotary positions turn
    norm_topk: bool = True
    routed_scaling: PositiveFloat = 1.0


class Mesh(Block):
    """How the model is cut over ranks. `n9 layout` prints this block; left out, the run takes what the layout stage chose."""

    pp: PositiveInt = 1
    dp_replicate: PositiveInt = 1
    dp_shard: PositiveInt = 1
    ep: PositiveInt = 1
    cp: PositiveInt = 1
    tp: PositiveInt = 1
    schedule: Literal["1f1b", "interleaved", "zero-bubble"] = "1f1b"  # of micro-batches over the pp stages
    parts: PositiveInt = 1  # pieces of the model on each stage, for interleaved and zero-bubble


class Layout(Block):
    """The cluster that the layout search cuts for."""

    hosts: PositiveInt = 2
    ranks_per_host: PositiveInt = 2
    chip: str = "cpu"
    memory_gb: PositiveFloat = 2.0  # per rank


class Injection(Block):
    """A fault that the run inflicts on itself, addressed by (step, attempt). Shown as injected on every screen."""

    kind: Literal[
        "kill", "freeze", "nan", "slow", "bad_data", "bad_card", "rate", "flip_gradient", "flip_weight", "wrong_matmul"
    ]
    rank: int = Field(0, ge=0)
    at: Share = 0.5  # where in the run, as a share of its steps
    attempt: int = Field(0, ge=0)
    factor: PositiveFloat = 3.0  # how much slower ("slow"), or what gradients ("bad_card") or the rate ("rate") are times
    bit: int = Field(30, ge=0, le=31)  # that is flipped; 30 to 23 are an fp32's exponent
    error: PositiveFloat = 1e-3  # of a wrong_matmul, as a share of what is right


class Control(Block):
    """Rules that watch the learning process, and their thresholds; train/control/limits.py says what each is held against."""

    action: Literal["off", "advise", "act"] = "advise"
    window: PositiveInt = 64  # committed steps
    least: int = Field(20, ge=12)  # committed steps before any rule speaks
    cool_down: PositiveInt = 24  # steps
    loss_z: PositiveFloat = 6.0
    both_z: PositiveFloat = 4.0
    norm_ratio: float = Field(8.0, gt=1)
    own_ratio: float = Field(5.0, gt=1)
    own_loss: PositiveFloat = 0.5  # nats
    own_z: PositiveFloat = 6.0
    probe_z: PositiveFloat = 1.0
    probe_norm: float = Field(2.0, gt=1)
    block: int = Field(12, ge=4)  # steps
    rise_z: PositiveFloat = 2.5
    rise_share: Share = 0.05
    dead_share: Share = 0.02
    dead_steps: PositiveInt = 24
    lift: PositiveFloat = 0.02
    most_lifts: PositiveInt = 64
    drift_share: Share = 0.03
    drift_checks: PositiveInt = 3
    lower: float = Field(0.5, gt=0, lt=1)
    most_lowered: PositiveInt = 4
    most_skipped: PositiveInt = 4


class Train(Block):
    """Pretraining. With `budget` the speed is measured first, then the number of steps is fixed and recorded."""

    budget: Seconds | None = None
    steps: PositiveInt | None = None
    sequence: PositiveInt | None = None  # tokens
    batch: PositiveInt | None = None  # sequences per step over all ranks
    micro_batches: PositiveInt = 1  # in how many portions a rank's share goes through; a pipeline wants several times pp
    lr: PositiveFloat | None = None
    weight_decay: float = Field(0.1, ge=0)
    warmup: Share = 0.05
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    decay: Share = 0.2  # of the steps, at the end, over which wsd lets the rate fall
    final: Share = 0.05  # of lr, at the last step
    clip: PositiveFloat = 1.0
    z_loss: float = Field(0.0, ge=0)  # on the output's log Z, against drifting logits (PaLM: 1e-4)
    document_mask: bool = False  # documents packed into one window do not see each other
    recompute: Literal["none", "layer"] = "none"  # what the backward does again instead of keeping it: memory for time
    compile: bool = False  # elementwise steps by torch.compile: about 5 % of a step on a CPU; needs a C++ compiler
    optimizer: Literal["adamw", "muon"] | None = None
    mixture: dict[str, Annotated[float, Field(ge=0)]] = {}  # language, source or source/language -> weight; {}: all as it comes
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every: PositiveInt = 50
    replicate_every: PositiveInt = 1  # steps between two replicas of a rank's state on another host; a fault costs up to 2k - 1
    validate_every: PositiveInt | None = None  # steps; None: no validation pass, and no training text kept apart for it
    validation: Share = 0.02  # of the training tokens, kept apart where validate_every is set; held-out text stays unseen
    control: Control = Control()
    twin: bool = True  # run the faultless twin and compare digests
    inject: tuple[Injection, ...] = ()


class Guard(Block):
    """What is watched, and what may be done about it."""

    action: Literal["advise", "act"] = "advise"
    spares_per_host: int = Field(1, ge=0)
    hang_seconds: Seconds = 2.5
    slow_ratio: PositiveFloat = 1.5
    slow_steps: PositiveInt = 8
    max_redo: PositiveInt = 2
    max_evictions_per_hour: PositiveInt = 6
    replay_every: int = Field(250, ge=0)  # steps between two replays of each rank's work on another card; 0: none
    digest_parts: PositiveInt = 1  # of the resting state, one a step is digested
    max_restarts_per_hour: PositiveInt = 3  # of all ranks at once
    spare_seconds: float = Field(180.0, ge=0)  # to wait for a restarted process, before the job goes on with fewer ranks
    smallest_share: float = Field(0.5, gt=0, le=1)  # of the ranks, with which the job may go on where cards are lost
    standby: bool = False  # a second controller, which takes over from one that was killed or hangs
    bind: str = "127.0.0.1"
    webhook: str = ""  # http address that is told of faults, in Alertmanager's form
    drain: Literal["advise", "slurm", "kubernetes"] = "advise"  # who is ordered to take a bad host out of use
    exporter: str = ""  # addresses or files of vendors' exporters, separated by spaces; {host} is the host's name
    kernel_log: str = "auto"  # /dev/kmsg where it may be read; or a file, or off
    selftest: Literal["off", "suspected", "idle"] = "suspected"  # which cards are tested; idle: spares, and suspected ones
    selftest_minutes: PositiveFloat = 30.0  # between two tests of a spare


class Align(Block):
    """Supervised fine-tuning, then preference optimisation, on a policy."""

    budget: Seconds | None = None
    sft_steps: PositiveInt | None = None
    dpo_steps: PositiveInt | None = None
    beta: PositiveFloat = 0.1
    nll_weight: float = Field(1.0, ge=0)
    prompts: PositiveInt | None = None  # held-out prompts of each bank


class Signal(Block):
    """The same model reads signals."""

    budget: Seconds | None = None
    steps: PositiveInt | None = None
    tasks: tuple[Literal["digits", "modulation"], ...] = ("digits", "modulation")


class Radio(Block):
    """Station counters -> forecast -> energy plan. Without `counters` the stations are made up, and labelled so."""

    counters: str | None = None
    hour_label: Literal["start", "end"] = "start"
    unit: Literal["share", "percent", "traffic"] = "share"  # what `load` holds; traffic is scaled per cell, and said to be
    stations: PositiveInt | None = None
    cells_per_station: PositiveInt = 3
    days: PositiveInt = 28
    epsilon: Share = 0.05
    load_limit: Share = 0.6
    min_off_hours: PositiveInt = 2
    max_sleeps: PositiveInt = 3  # per carrier and day
    sleep_power: Share = 0.10  # of idle power; assumed, printed in the report
    budget: Seconds | None = None
    steps: PositiveInt | None = None


class Serve(Block):
    """The exported checkpoint behind an OpenAI-compatible address."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65_535)
    prompt: str = "Debian"
    max_tokens: PositiveInt = 32


class Settings(Block):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    size: Size = "tiny"
    seed: int = Field(7, ge=0)
    where: Where = Where()
    data: Data = Data()
    model: Model = Model()
    mesh: Mesh | None = None
    layout: Layout = Layout()
    train: Train = Train()
    guard: Guard = Guard()
    align: Align = Align()
    signal: Signal = Signal()
    radio: Radio = Radio()
    serve: Serve = Serve()
