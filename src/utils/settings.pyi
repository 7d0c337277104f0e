"""Written by scripts/settings_stub.py from src/config/*.yaml: the keys of a run and their types."""

from collections.abc import Iterator, Mapping
from typing import Any

class Settings(Mapping[str, Any]):
    def __init__(
        self, values: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None: ...
    def with_facts(self, **facts: Any) -> Settings: ...
    def as_dict(self) -> dict[str, Any]: ...
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    action_selector: str
    advantage_critic: str
    advantage_weighting: bool
    agent: str
    agent_order: str
    agent_output_type: str
    alpha: float
    alpha_end: float
    alpha_lr: float
    alpha_range: list[Any]
    alpha_start: float
    batch_size: int
    batch_size_run: int
    behaviour: BehaviourSettings
    beta: float
    beta_end: float
    beta_finish: float
    beta_hold: float
    blocks: int
    buffer_size: int
    cap_targets: bool
    checkpoint_path: str
    collect: CollectSettings
    cql_alpha: float
    cql_coeff: float
    cql_include_data: bool
    critic_coef: float
    critic_epochs: int
    critic_hidden_dim: int
    critic_lr: float
    critic_minibatch: int
    critic_warmup: float
    data_lr: float
    data_policies: str
    dataset: DatasetSettings
    datasets_dir: str
    decentralised: bool
    decomposition: str
    device: str
    divergence: str
    ending: str
    entropy_coef: float
    env: str
    env_args: Mapping[str, Any]
    env_max_failures: int
    env_timeout: float
    episode_limit: int
    epochs: int
    eps_clip: float
    epsilon_anneal_time: int
    epsilon_finish: float
    epsilon_start: float
    evaluate: bool
    expectile: float
    extraction: str
    final_test_nepisode: int
    gae_lambda: float
    gamma: float
    global_cql_alpha: float
    grad_norm_clip: float
    hidden_dim: int
    hypernet_embed: int
    init_from_behaviour: bool
    inverse_temperature: float
    joint_kl_coef: float
    keep_checkpoints: int
    kl_coef: float
    label: str
    largest_weight: float
    learner: str
    load_step: int
    local_results_path: str
    log_interval: int
    lr: float
    lr_decay: str
    mac: str
    map_name: str | None
    mixer: str
    mixing_embed_dim: int
    n_actions: int
    n_agents: int
    name: str
    nu_grad_penalty_coeff: float
    nu_lr: float
    obs_agent_id: bool
    obs_last_action: bool
    obs_shape: int
    offline: bool
    omar_coef: float
    on_total: bool
    optim_alpha: float
    optim_eps: float
    policy_delay: int
    policy_temperature: float
    quality: str | None
    ratio: str
    ratio_max: float
    ratio_share: float
    raw_sample_actions: int
    record: str | None
    resample: str
    resume: str
    retention: RetentionSettings
    rewards: str
    runner: str
    save_model: bool
    save_model_interval: int
    save_replay: bool
    seed: int
    softmax_temp: float
    standardise: bool
    state_shape: int
    support: float
    t_max: int
    target: str
    target_kl: float
    target_tau: float
    target_temperature: float
    target_update_interval: int
    td_lambda: float
    test_epsilon: float
    test_greedy: bool
    test_interval: int
    test_nepisode: int
    torch_threads: int
    train_interval: int
    tune_alpha: bool
    turn_steps: int
    twin: bool
    unique_token: str
    use_cuda: bool
    use_presets: bool
    use_progress_bar: bool
    use_ratio: bool
    use_tensorboard: bool
    use_wandb: bool
    value_loss: str
    value_normalisation: bool
    wandb_mode: str
    wandb_project: str
    wandb_team: str | None
    weight_clip: float

class DatasetSettings(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    in_memory: bool | str
    keep: str
    keep_share: float
    path: str | None

class CollectSettings(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    n_episodes: int
    path: str | None

class BehaviourSettings(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    batch_size: int
    eval_interval: int
    grad_norm_clip: float
    held_out: float
    lr: float
    others: str
    others_batch_size: int
    others_hidden_dim: int
    others_lr: float
    others_updates: int
    patience: int
    updates: int

class RetentionSettings(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    decay_scale: float
    feed_forward: bool
    heads: int
