"""CFCQL: counterfactual conservative Q-learning."""

from __future__ import annotations

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.learners.mixing import MixingLearner
from inspo.utils.rl_utils import kl_divergence, masked_log_softmax, masked_logsumexp, one_hot
from inspo.utils.settings import Settings

ARGMAX = 100.0  # the published `softmax_temp` that means: the agent of the largest divergence alone
BETA_FLOOR = 1e-5  # added to beta, so that an action that it never takes costs a finite amount


def counterfactual_values(q: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """The agents' values in every joint action that differs from the data's in one agent at most.

    q `[M, n, A]`, actions `[M, n]`. Returns `[M, n, A, n]`: entry (i, b) holds q_i(b) at i and
    q_j(a_j) at every other j.
    """
    taken = q.gather(-1, actions.unsqueeze(-1)).transpose(1, 2)  # [M, 1, n]
    own = th.eye(q.shape[1], dtype=th.bool, device=q.device).unsqueeze(1)  # [n, 1, n]
    return th.where(own, q.unsqueeze(-1), taken.unsqueeze(1))


def agent_weights(divergence: th.Tensor, inverse_temperature: float) -> th.Tensor:
    """lambda_i = softmax_i(tau KL_i): how much of the penalty falls on each agent.

    tau = 0: 1 / n each; tau = 100: all on the agent of the largest divergence (the first of equal
    ones). `[M, n]` -> `[M, n]`.
    """
    if inverse_temperature == ARGMAX:
        return one_hot(divergence.argmax(-1), divergence.shape[-1]).to(divergence.dtype)
    return (inverse_temperature * divergence).softmax(-1)


class CFCQLLearner(MixingLearner):
    r"""Counterfactual Conservative Q-Learning (Shao et al. 2023, arXiv 2309.12696), discrete.

    QMIX on the data, with double Q-learning and TD(lambda), and for each agent a penalty on what it
    could have done otherwise while the others do what they did:

    .. math::
        L &= \tfrac12 \operatorname{mean}_m (Q_{tot}(s, a) - G^\lambda)^2 + \alpha
            \operatorname{mean}_m \Big[\sum_i \lambda_i \log \sum_b e^{q^i(b)}
            - Q_{tot}(s, a)\Big] \\
        q^i(b) &= Q_{tot}(s, b, a_{-i}), \quad p_i = \operatorname{softmax}_b q^i(b) \\
        \lambda &= \operatorname{softmax}_i \big(\tau \, KL(p_i \| \beta_i)\big), \quad
        V(s') = \bar Q_{tot}(s', \arg\max_{a'} Q(s', a'))

    over available actions and valid transitions. :math:`G^\lambda` is the TD(lambda) return on V,
    the bar marks the target networks, copied every `target_update_interval` updates, and lambda is
    held constant: gradients flow through the values of all agents and the mixing network.
    alpha is `global_cql_alpha`; tau, an *inverse* temperature, is `softmax_temp`: 0 treats all
    agents alike, 100 penalises the agent whose policy is farthest from the data alone.

    The batch must carry `behaviour_log_probs` `[B, T, n, A]`, log beta_i from `offline.behaviour`.

    Otherwise than in the authors' code: the hypernetworks run once per state and all
    counterfactuals are mixed in one product; no work is done on padding; beta_i is early-stopped
    on held-out episodes; episodes that were cut bootstrap from their last row with full weight at
    any length; and the behaviour policies leave the run's configuration as it was.
    """

    @classmethod
    def fits_behaviour(cls, args: Settings) -> bool:
        return True

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        avail = data.avail[data.now]
        log_mu = batch.rows("behaviour_log_probs")[data.now]
        q = self.mac.agent.unroll(data.inputs, data.packed)  # [R, n, A]
        weights = self.mixer.weights(data.state[data.now])
        q_tot = weights.mix(data.taken(q))  # [M]
        next_values = self.double_q_values(data, q)
        targets = data.td_lambda(next_values, a.gamma, a.td_lambda)
        error = q_tot - targets
        td_loss = 0.5 * error.square().mean()

        joints = counterfactual_values(q[data.now], data.actions)
        q_otherwise = weights.mix_many(joints.flatten(1, 2)).view_as(avail)  # q^i(b), [M, n, A]
        with th.no_grad():
            log_p = masked_log_softmax(q_otherwise, avail)
            divergence = kl_divergence(log_p, (log_mu.exp() + BETA_FLOOR).log())  # [M, n]
            share = agent_weights(divergence, a.softmax_temp)
        cql_loss = ((share * masked_logsumexp(q_otherwise, avail)).sum(-1) - q_tot).mean()
        loss = td_loss + a.global_cql_alpha * cql_loss
        norm = self.descend("all", loss, a.grad_norm_clip)
        self.updates += 1

        if self.updates % a.target_update_interval == 0:
            self.update_targets()

        if self.log_due(t_env):
            self.logger.log_stats(
                {
                    "loss": loss.detach(),
                    "td_loss": td_loss.detach(),
                    "cql_loss": cql_loss.detach(),
                    "grad_norm": norm,
                    "td_error_abs": error.abs().mean().detach(),
                    "q_taken_mean": q_tot.mean().detach(),
                    "target_mean": targets.mean(),
                    "divergence_mean": divergence.mean(),
                    "lambda_max": share.amax(-1).mean(),
                    "updates": self.updates,
                },
                t_env,
            )
