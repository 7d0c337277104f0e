"""From checkpoints and a dataset to estimates of what the policies are worth, and a choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.estimation import finite, importance, stationary
from inspo.estimation.features import (
    AdditiveFeatures,
    AgentFeatures,
    Features,
    JointFeatures,
    learn,
)
from inspo.estimation.fqe import Fit, LinearFQE
from inspo.estimation.logged import Logged
from inspo.estimation.policies import Policy, load_policies, probabilities, soften
from inspo.estimation.resampling import Resamples, interval
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.offline import behaviour as behaviour_policies
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.offline_dataset import OfflineDataset
from inspo.utils.command_line import names
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError, named
from inspo.utils.paths import PROJECT_ROOT
from inspo.utils.phases import Phase
from inspo.utils.rl_utils import gather_actions
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings

ESTIMATORS = {
    "fqe_joint": "fitted Q of joint actions",
    "fqe_additive": "fitted Q that is a sum over agents",
    "fqe_agents": "one agent at a time deviates from the data: a diagnostic",
    "is": "importance sampling, step by step",
    "wis": "weighted importance sampling",
    "dr": "weighted doubly robust: fqe_additive, corrected by importance sampling",
    "model": "counted model, solved exactly (finite games)",
    "ratios": "AlberDICE's own ratios of occupancies",
}
DEFAULT = "fqe_joint"
FQE = ("fqe_joint", "fqe_additive")
NEED_BEHAVIOUR = ("is", "wis", "dr", "ratios")
POWERS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the ratio, for the curve of `wis`
FEATURE_UPDATES = (60, 400)  # at least and at most; one for every 50 transitions
MAX_STEPS = 50_000
SOFT = 0.05
RARE = 0.01  # of the logged joint actions are as improbable under mu as what counts as unknown,
MARGIN = 1.0  # and that by so many nats more
LITTLE_SUPPORT = 0.5


@dataclass(frozen=True)
class Estimate:
    """One estimator's word on one policy: a played, undiscounted return unless gamma says else.

    low, high: 95 % interval over resampled episodes (and members of an ensemble). draws: `[B]`, the
    same resamples for every policy. facts: what else there is to know, for the JSON file.
    """

    value: float
    low: float
    high: float
    draws: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class PolicyEstimate:
    """All that was estimated of one policy.

    Attributes:
        name, folder, step, algorithm, seed: which one. way: how it would be played.
        estimates: estimator -> `Estimate`; missing: estimator -> why there is none.
        agreement: the mean probability of the logged joint actions under the policy.
        support: the share of the logged steps in which it would play a joint action that the
            data know: not much less probable under mu than the rarest hundredth of the logged
            ones. None where mu was not fitted.
        warnings: what a reader must know. seconds: what it cost. played: its return in the
            simulator, if it was played, and its standard error.
    """

    name: str
    folder: str
    step: int
    algorithm: str
    seed: int | None
    way: str
    agreement: float
    support: float | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    played: tuple[float, float] | None = None


class Evaluator:
    """What is prepared once for all policies: features, moments, behaviour policies, resamples.

    Args of the constructor:
        estimators: names of ESTIMATORS. max_steps: transitions of at most so many are used (whole
        episodes, drawn at random; 0: all). gamma: discount of the estimated return. epsilon: what
        makes a greedy policy fit for importance sampling. cache: folder for fitted behaviour
        policies. log: gets lines of text. phase: begins the phase of each preparation.
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        estimators: Iterable[str] = (DEFAULT,),
        *,
        gamma: float = 1.0,
        epsilon: float = SOFT,
        max_steps: int = MAX_STEPS,
        seed: int = 0,
        cache: Path | None = None,
        log: Callable[[str], None] = lambda text: None,
        phase: Callable[..., Phase] = Phase,
    ):
        self.estimators = list(dict.fromkeys(estimators))
        for name in self.estimators:
            named(ESTIMATORS, name, "estimators")
        if not 0 < epsilon < 1:
            raise ConfigError(f"epsilon: expected a number between 0 and 1, found {epsilon}")
        self.facts, self.gamma, self.epsilon = dataset.metadata, gamma, epsilon
        self.data = Logged.of(dataset, max_steps, seed)
        self.resamples = Resamples(self.data.groups, seed=seed)
        self.seed, self.phase = seed, phase
        self.fqe: dict[str, LinearFQE] = {}
        self.unexplained: dict[str, float] = {}
        with self._seeded():
            self._prepare_fqe()
        self.log_mu: th.Tensor | None = None  # [R, n, A]
        self.joint_log_mu: th.Tensor | None = None  # [M], of the logged joint actions
        self.others: AutoregressivePolicy | None = None
        if set(NEED_BEHAVIOUR) & set(self.estimators):
            self._fit_behaviour(dataset, cache or PROJECT_ROOT / "datasets" / "cache", log)
        self.counts = finite.count(self.data) if "model" in self.estimators else None
        steps = np.arange(len(self.data.now)) - np.searchsorted(
            self.data.episode.numpy(), self.data.episode.numpy()
        )
        self.step_of = steps  # [M], counted from the episode's first

    def _seeded(self) -> Any:
        """A context in which torch draws from the seed; afterwards it goes on as before."""
        return _Seeded(spawn_seeds(self.seed, "estimation", 1)[0])

    def _prepare_fqe(self) -> None:
        wanted = set(self.estimators)
        updates = int(np.clip(len(self.data.now) // 50, *FEATURE_UPDATES))
        if "fqe_joint" in wanted:
            joint = JointFeatures(self.data)
            self.unexplained["fqe_joint"] = learn(joint, updates, phase=self.phase)
            self.fqe["fqe_joint"] = self._of(joint)
        if wanted & {"fqe_additive", "fqe_agents", "dr"}:
            additive = AdditiveFeatures(self.data)
            self.unexplained["fqe_additive"] = learn(additive, updates, phase=self.phase)
            self.fqe["fqe_additive"] = self._of(additive)
            if "fqe_agents" in wanted:
                self.fqe["fqe_agents"] = self._of(AgentFeatures(additive), ensemble=False)

    def _of(self, features: Features, ensemble: bool = True) -> LinearFQE:
        return LinearFQE(features, self.data, self.resamples, self.gamma, ensemble)

    def _fit_behaviour(
        self, dataset: OfflineDataset, cache: Path, log: Callable[[str], None]
    ) -> None:
        """mu_i and mu^{-i}, fitted to the whole dataset as InSPO does.

        The joint policy of the data is mu(a|s) = mu_i(a_i|tau_i) mu^{-i}(a^{-i}|s, a_i) for any
        agent i: the chain rule. Its mean over i (of logarithms) evens out the errors of the n
        fits. The product of the mu_i would be wrong wherever the agents act together (XOR b).
        """
        args = behaviour_settings(self.facts).with_facts(**self.facts.env_info(), device="cpu")
        scheme = build_scheme(self.facts.env_info())
        mac = named(mac_REGISTRY, args.mac, "mac")(scheme, {"agents": args.n_agents}, args)
        content, check = self.facts.content_hash, (lambda: None)
        fitted = behaviour_policies.obtain(
            OfflineBuffer(dataset, 0), mac, args, content, cache, log, check, self.phase
        )
        assert fitted.log_prob_others is not None
        rows = th.from_numpy(self.data.rows)
        now = rows[self.data.now]
        self.log_mu = fitted.log_probs[rows]
        self.others = fitted.others
        own = gather_actions(fitted.log_probs[now], self.data.actions)  # [M, n]
        self.joint_log_mu = (own + fitted.log_prob_others[now]).mean(-1)

    # One policy

    def evaluate(self, policy: Policy) -> PolicyEstimate:
        """All estimators' word on one policy."""
        began = time.monotonic()
        with self._seeded():
            return self.evaluate_probabilities(probabilities(policy, self.data), policy, began)

    def evaluate_probabilities(
        self, probs: th.Tensor, policy: Policy, began: float
    ) -> PolicyEstimate:
        """The same of what `policy` does in every row, `[R, n, A]`."""
        data = self.data
        logged = gather_actions(probs[data.now], data.actions)  # [M, n]
        result = PolicyEstimate(
            policy.name, str(policy.folder), policy.step, policy.algorithm, policy.seed, policy.way,
            agreement=float(logged.prod(-1).mean()),
        )  # fmt: skip
        fits = {name: fqe.evaluate(probs) for name, fqe in self.fqe.items()}
        for name in self.estimators:
            if name == "fqe_agents":
                result.estimates[name] = of_agents(fits[name])
            elif name in FQE:
                result.estimates[name] = self._of_ensemble(fits[name], name)
        if self.log_mu is not None:
            result.support = self._support(probs)
            soft = probs
            if bool((probs.amax(-1) == 1).all()):  # greedy, without exploration of its own
                soft = soften(probs, data.avail, self.epsilon)
                result.warnings.append(
                    f"{policy.name} is greedy, so that importance sampling would leave out every "
                    f"step in which the data do otherwise: is, wis and dr are of the same policy "
                    f"with epsilon {self.epsilon:g}"
                )
            self._by_importance(result, soft, fits)
            if result.support < LITTLE_SUPPORT:
                result.warnings.append(
                    f"{policy.name} does what the data do not know in {1 - result.support:.0%} of "
                    "the logged steps: its estimates are extrapolation"
                )
        if "ratios" in self.estimators:
            self._by_ratios(result, probs, policy)
        if "model" in self.estimators:
            self._by_model(result, probs)
        result.seconds = time.monotonic() - began
        return result

    def _of_ensemble(self, fit: Fit, name: str) -> Estimate:
        facts = {"members": fit.members.tolist(), "unexplained": self.unexplained[name]}
        return Estimate(float(fit.members.mean()), *interval(fit.draws), fit.draws, facts)

    @th.no_grad()
    def _support(self, probs: th.Tensor) -> float:
        """Of joint actions drawn from the policy, one in each logged step, the share that mu knows.

        Agents that each do what the data know may still do together what they never show (XOR b).
        """
        assert self.log_mu is not None and self.others is not None
        assert self.joint_log_mu is not None
        data = self.data
        least = np.quantile(self.joint_log_mu.numpy(), RARE) - MARGIN
        actions = th.multinomial(probs[data.now].flatten(0, 1), 1).view(data.actions.shape)
        log_mu, state, avail = (x[data.now] for x in (self.log_mu, data.state, data.avail))
        own = gather_actions(log_mu, actions)  # [M, n]
        joint = [
            own[:, i] + self.others(i, state, log_mu, avail, actions)
            for i in range(actions.shape[1])
        ]
        return float((th.stack(joint).mean(0) >= least).float().mean())

    def _by_importance(
        self, result: PolicyEstimate, probs: th.Tensor, fits: dict[str, Fit]
    ) -> None:
        data, wanted = self.data, set(self.estimators)
        assert self.joint_log_mu is not None
        log_pi = gather_actions(probs[data.now], data.actions).clamp(min=1e-30).log().sum(-1)
        log_ratio = self._padded(log_pi - self.joint_log_mu)
        discount = self.gamma ** self._padded(th.from_numpy(self.step_of))
        reward = self._padded(data.reward) * discount
        counts = np.concatenate([np.ones((1, len(data))), self.resamples.episodes])
        effective = importance.effective(log_ratio)
        if "is" in wanted:
            values = importance.per_decision(log_ratio, reward, counts)
            result.estimates["is"] = of_draws(values, {"effective_episodes": effective})
        if "wis" in wanted:
            curve = []
            for power in POWERS:
                values = importance.weighted(log_ratio, reward, counts, power)
                size, bounds = importance.effective(log_ratio, power), interval(values[1:])
                curve.append(dict(power=power, value=float(values[0]), effective_episodes=size))
                curve[-1] |= dict(low=bounds[0], high=bounds[1])
            facts = {"effective_episodes": effective, "curve": curve}  # values are of power 1
            result.estimates["wis"] = of_draws(values, facts)
        if "dr" in wanted:
            fqe = self.fqe["fqe_additive"]
            q, v = (x.mean(0) for x in fqe.values(probs, fits["fqe_additive"].weights))
            last = th.from_numpy(np.append(np.diff(data.episode.numpy()) > 0, True))
            left = self._padded(last * data.goes_on * self.gamma * v[data.then]) * discount
            q_, v_ = self._padded(q) * discount, self._padded(v[data.now]) * discount
            values = importance.doubly_robust(log_ratio, reward + left, q_, v_, counts)
            result.estimates["dr"] = of_draws(values, {"effective_episodes": effective})

    def _padded(self, values: th.Tensor) -> np.ndarray:
        """`[M]` -> float64 `[E, T]`, zeros in the padding."""
        padded = np.zeros((len(self.data), self.step_of.max() + 1))
        padded[self.data.episode.numpy(), self.step_of] = values.double().numpy()
        return padded

    def _by_ratios(self, result: PolicyEstimate, probs: th.Tensor, policy: Policy) -> None:
        data = self.data
        found = stationary.advantages(policy, data)
        if found is None:
            result.missing["ratios"] = "only AlberDICE's runs carry ratios of occupancies"
            return
        assert self.log_mu is not None and self.joint_log_mu is not None
        e, alpha = found
        log_pi = gather_actions(probs[data.now], data.actions).clamp(min=1e-30).log()
        own = gather_actions(self.log_mu[data.now], data.actions)
        weights = stationary.log_weights(e, alpha, log_pi, own, self.joint_log_mu).exp().double()
        counts = np.concatenate([np.ones((1, len(data))), self.resamples.episodes])
        length = len(data.now) / len(data)
        reward, episode = data.reward.double().numpy(), data.episode.numpy()
        values = stationary.evaluate(weights.numpy(), reward, episode, counts, length)
        result.estimates["ratios"] = of_draws(values, {"alpha": alpha})

    def _by_model(self, result: PolicyEstimate, probs: th.Tensor) -> None:
        if self.counts is None:
            result.missing["model"] = "the game is not finite: its states hardly ever come back"
            return
        counts = np.concatenate([np.ones((1, len(self.data))), self.resamples.episodes])
        values, covered = finite.evaluate(self.counts, self.data, probs, counts, self.gamma)
        result.estimates["model"] = of_draws(values, {"covered": covered})


class _Seeded:
    """`with _Seeded(seed)`: torch draws from the seed, and afterwards goes on as before."""

    def __init__(self, seed: int):
        self.seed = seed

    def __enter__(self) -> None:
        self.state = th.get_rng_state()
        th.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        th.set_rng_state(self.state)


def of_draws(values: np.ndarray, facts: dict[str, Any]) -> Estimate:
    """values: `[1 + B]`, the estimate and its bootstrap draws."""
    return Estimate(float(values[0]), *interval(values[1:]), values[1:], facts)


def of_agents(fit: Fit) -> Estimate:
    """The mean over agents; each one's value and interval among the facts."""
    bounds = [interval(draws) for draws in fit.draws.T]
    facts = {"agents": fit.members.tolist(), "intervals": [list(pair) for pair in bounds]}
    draws = fit.draws.mean(1)
    return Estimate(float(fit.members.mean()), *interval(draws), draws, facts)


def behaviour_settings(facts: Any) -> Settings:
    """InSPO's settings for the environment, map and quality of the data, with seed 0."""
    known = f"{facts.env}_offline" in names("envs")
    argv = ["--config=inspo", f"--env-config={facts.env if known else 'smax'}_offline", "with"]
    argv += ["seed=0", f"map_name={facts.map_name}"]
    argv += [f"quality={facts.quality}"] if facts.quality else []
    return Settings(load_config(argv).values)


def estimate(
    checkpoints: Sequence[str | Path],
    dataset: OfflineDataset,
    estimators: Iterable[str] = (DEFAULT,),
    *,
    way: str = "run",
    progress: Callable[..., Phase] = Phase,
    **options: Any,
) -> list[PolicyEstimate]:
    """What each checkpoint's policy is worth, by the named estimators, from the data alone.

    The same arguments give the same numbers, whichever policies stand beside.

    Args:
        checkpoints: runs' model folders, folders of single steps, or shipped policies.
        way: `load_policy`'s. progress: begins the phase over the policies.
        options: those of `Evaluator`.
    Raises: CheckpointError for a policy of another task; DatasetError, ConfigError.
    """
    policies = load_policies([Path(path) for path in checkpoints], dataset.metadata, way)
    evaluator = Evaluator(dataset, estimators, phase=progress, **options)
    results = []
    with progress("estimating", len(policies), unit="policy") as bar:
        for policy in policies:
            results.append(evaluator.evaluate(policy))
            bar.update(1, policy.name)
    return results


@dataclass(frozen=True)
class Choice:
    """Policies in the order of an estimator, best first; those that mostly do what the data do not
    know stand last, since their estimates are extrapolation.

    order: indices into the estimates. best: probability of each (in the same order) to be the best,
    the share of resamples in which it is. doubt: 1 minus that of the first.
    """

    estimator: str
    order: list[int]
    probability: list[float]

    @property
    def doubt(self) -> float:
        return 1 - self.probability[0]


def select(estimates: Sequence[PolicyEstimate], estimator: str = DEFAULT) -> Choice:
    """Rank policies by an estimator. ConfigError where it has no number for any of them."""
    have = [k for k, e in enumerate(estimates) if estimator in e.estimates]
    have = [k for k in have if np.isfinite(estimates[k].estimates[estimator].value)]
    if not have:
        reasons = {reason for e in estimates for reason in [e.missing.get(estimator)] if reason}
        why = f": {'; '.join(sorted(reasons))}" if reasons else ""
        raise ConfigError(f"{estimator} has no estimate of any of the policies{why}")

    def unknown(k: int) -> bool:
        support = estimates[k].support
        return support is not None and support < LITTLE_SUPPORT

    order = sorted(have, key=lambda k: (unknown(k), -estimates[k].estimates[estimator].value))
    rivals = [k for k in order if not unknown(k)] or order
    draws = np.stack([estimates[k].estimates[estimator].draws for k in rivals])  # [n, B]
    best = np.bincount(draws.argmax(axis=0), minlength=len(order)) / draws.shape[1]
    return Choice(estimator, order, best.tolist())
