"""ComaDICE: stationary distribution correction with values mixed linearly."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import nn

from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import StatsLogger, adam
from inspo.learners.omiga_learner import OMIGALearner, tangent_exp
from inspo.utils.rl_utils import masked_log_softmax
from inspo.utils.settings import Settings

LARGEST_EXPONENT = 10.0  # beyond it the exponential of f = kl goes on as its tangent


def conjugate(x: th.Tensor, divergence: str) -> th.Tensor:
    """f*(x) = max over r >= 0 of x r - f(r), whose derivative is `ratio(x)`. Any shape.

    divergence: kl, f = r log r - r + 1; chi2, f = (r - 1)^2 / 2; soft_chi2, the first of them for
    r < 1 and the second above, so that r never reaches 0.
    """
    power = tangent_exp(x, LARGEST_EXPONENT, th.zeros_like(x)) - 1
    if divergence == "kl":
        return power
    square = x + x.square() / 2
    if divergence == "chi2":
        return th.where(x < -1, -0.5, square)
    return th.where(x < 0, power, square)


def ratio(x: th.Tensor, divergence: str) -> th.Tensor:
    """r(x) = (f')^{-1}(x), the ratio of the occupancies; where kl is a tangent, its slope."""
    if divergence == "kl":
        return x.clamp(max=LARGEST_EXPONENT).exp()
    if divergence == "chi2":
        return (1 + x).clamp(min=0)
    return th.where(x < 0, x.clamp(max=0).exp(), 1 + x)


class ComaDICELearner(OMIGALearner):
    r"""ComaDICE (Bui et al., ICLR 2025, arXiv 2410.01954), for discrete actions.

    Networks, mixing and the critic's loss are OMIGA's: :math:`Q_{tot} = \sum_i w_i(s) Q_i + b(s)`,
    and :math:`V_{tot}` by the same :math:`w, b`. With f* the conjugate of f (`divergence`), r its
    derivative, a bar for target networks and :math:`x_i = w_i(s) (Q_i(o_i, a_i) - V_i(o_i)) /
    \alpha`, no gradient through w and Q,

    .. math::
        L_Q &= \operatorname{mean} (Q_{tot}(s, a) - r - \gamma (1 - d) \bar V_{tot}(s'))^2 \\
        \text{flow:} \quad L_V &= \operatorname{mean} [w_i V_i + \alpha f^*(x_i)] \\
        \text{initial:} \quad L_V &= (1 - \gamma) \operatorname{mean}_{s_0} V_i
            + \operatorname{mean} \alpha f^*(x_i - \lambda_V / \alpha) + \lambda_V \\
        L_\pi &= -\operatorname{mean} \hat w \log \pi_i(a_i | \tau_i), \quad
            \hat w = \sum_j \min(r(\bar x_j), w_{max})

    `value_loss` says which. `initial` is the paper's dual of max E r - alpha D_f over occupancies
    (its loss of V), with the normalisation of the authors' code, :math:`\lambda_V` for V and
    :math:`\lambda_\pi` (of which 1 - E r is the gradient) in the weights. It was derived with
    r + gamma V(s') in the place of Q. With Q held still it has no least value: with V larger by
    c / w and lambda smaller by c every x is what it was, and the loss falls by
    c (1 - (1 - gamma) / w). In states that no episode begins in, nothing holds V at all. `flow`
    (ours) puts the flow of the data in the place of the initial states, (1 - gamma) E_{s_0} V =
    E_D [V(s) - gamma V(s')], whose second part has no gradient either: least where
    E_mu r(x_i) = 1 in every state, so that the ratio is normalised there and lambda has nothing
    left to do. With f = kl it is OMIGA's loss.

    `released` is `initial` with the gradient of the authors' code (runner/madice/discrete.py),
    which holds the wrong half still: :math:`r(x) (e - \lambda_V)` with gradient through r and
    lambda and none through e. Its slope in x is x r'(x) in the place of r(x): at x = -1 of the
    other sign. V is then a regression of Q - lambda / w, not a multiplier.

    `on_total` takes f* and r of :math:`\sum_i x_i`, as the paper has it; by default, as in the
    code, of each agent's. `rewards`: `to_go` are the undiscounted returns that the code's loader of
    SMAC's data puts in the place of rewards (runner/utils.py), so that its Q is a sum of returns,
    and its alpha of 10 is in those units.

    Otherwise than in the code: `terminated` says which transitions end an episode (there s = s');
    all losses come from one pass; policies are the harness's; batches are of whole episodes; no
    error is caught and forgotten.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.multipliers = nn.ParameterDict()
        if args.value_loss != "flow":
            for name in ("v", "policy"):
                self.multipliers[name] = nn.Parameter(th.zeros(()))
            self.networks["multipliers"] = self.multipliers
            self.optimisers["v"].add_param_group({"params": [self.multipliers["v"]]})
            self.optimisers["multiplier"] = adam([self.multipliers["policy"]], args.lr)

    def losses(self, data: Transitions) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor]]:
        a, reward = self.args, data.reward
        if a.rewards == "to_go":
            reward = data.td_lambda(th.zeros_like(reward), 1.0, 1.0)
        values = self.evaluate(data, reward)
        of_data = self._sum(values.w * values.v)
        excess = self._sum(values.w * (values.q - values.v))  # alpha x
        target_excess = self._sum(values.target_w * (values.target_q - values.v.detach()))
        losses = {"q": values.q_loss}
        if a.value_loss == "flow":
            losses["v"] = (of_data + a.alpha * conjugate(excess / a.alpha, a.divergence)).mean()
        else:
            begins = data.packed.time[data.now] == 0
            initial = of_data if a.on_total else values.v
            losses["v"] = self._initial_loss(initial[begins].mean(), excess)
            shift = self.multipliers["policy"]
            target_excess = target_excess - shift.detach()
            mean_ratio = ratio(target_excess / a.alpha, a.divergence).mean()
            losses["multiplier"] = shift * (1 - mean_ratio)
        each = ratio(target_excess / a.alpha, a.divergence)
        weight = each.clamp(max=a.largest_weight).sum(-1, keepdim=True)  # [M, 1]
        log_pi = masked_log_softmax(self.mac.agent.unroll(data.inputs, data.packed), data.avail)
        losses["policy"] = -(weight * data.taken(log_pi)).mean()
        stats = values.stats | {
            "ratio_mean": each.mean(),
            "weight_clipped_share": (each > a.largest_weight).float().mean(),
        }
        return losses, stats

    def _sum(self, of_agents: th.Tensor) -> th.Tensor:
        """`[M, n]`, or of all agents, `[M, 1]`."""
        return of_agents.sum(-1, keepdim=True) if self.args.on_total else of_agents

    def _initial_loss(self, initial: th.Tensor, excess: th.Tensor) -> th.Tensor:
        """initial: the mean of V where episodes begin, 0-d. excess: e, `[M, n]` or `[M, 1]`."""
        a, shift = self.args, self.multipliers["v"]
        x = (excess - shift) / a.alpha
        if a.value_loss == "initial":
            dual = a.alpha * conjugate(x, a.divergence)
        else:  # its value is that of the other, and its gradient is not
            r = ratio(x, a.divergence)
            cost = (x * r - conjugate(x, a.divergence)).detach()  # f(r(x))
            dual = r * (excess.detach() - shift) - a.alpha * cost
        loss: th.Tensor = (1 - a.gamma) * initial + dual.mean() + shift
        return loss
