"""CFCQL: loss by loops, what lambda does, and what the penalty alone converges to."""

import copy
import math

import pytest
import torch as th
from cases import (
    descend_plainly,
    make_args,
    make_learner,
    play_agent,
    random_batch,
    td_lambda_loop,
    transitions_of,
)
from test_qmix import mix

from inspo.learners.cfcql_learner import agent_weights, counterfactual_values
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.game_data import make_dataset
from inspo.utils.config import load_config

LENGTHS = [4, 1, 6, 3]


def make_cfcql(alg="cfcql", **overrides):
    args = make_args(alg, **({"grad_norm_clip": 1e9, "gamma": 0.9} | overrides))
    th.manual_seed(0)
    learner, logger = make_learner(args)
    with th.no_grad():  # the targets must differ from the networks, or a mix-up would not show
        for network in (learner.target_mac.agent, learner.target_mixer):
            for p in network.parameters():
                p.add_(0.3 * th.randn(p.shape))
    return learner, logger, args


class Literal:
    """QMIX's half of the loss by loops, and the pieces that a penalty is made of, in float64."""

    def __init__(self, learner, batch, args):
        self.batch, self.cells = batch, transitions_of(batch)
        self.agent = copy.deepcopy(learner.mac.agent).double()
        self.mixer = copy.deepcopy(learner.mixer).double()
        self.parameters = [*self.agent.parameters(), *self.mixer.parameters()]
        target_agent = copy.deepcopy(learner.target_mac.agent).double()
        target_mixer = copy.deepcopy(learner.target_mixer).double()
        self.state = batch["state"].double()
        self.q = [play_agent(self.agent, batch, args, i) for i in range(3)]
        target_q = [play_agent(target_agent, batch, args, i) for i in range(3)]
        next_values = {}
        for e, t in self.cells:
            chosen = []
            for i in range(3):  # the online network chooses, the target network values
                values = self.q[i][e, t + 1].detach()
                best = max(self.possible(e, t + 1, i), key=lambda a, v=values: float(v[a]))
                chosen.append(target_q[i][e, t + 1][best])
            next_values[e, t] = mix(target_mixer, chosen, self.state[e, t + 1]).detach()
        self.targets = td_lambda_loop(batch, next_values, args.gamma, args.td_lambda)

    def possible(self, e, t, i):
        return [a for a in range(4) if self.batch["avail_actions"][e, t, i, a]]

    def played(self, e, t):
        return [int(self.batch["actions"][e, t, i, 0]) for i in range(3)]

    def q_tot(self, e, t, joint):
        return mix(self.mixer, [self.q[i][e, t][a] for i, a in enumerate(joint)], self.state[e, t])

    def td_loss(self):
        errors = [self.q_tot(e, t, self.played(e, t)) - self.targets[e, t] for e, t in self.cells]
        return sum(0.5 * error**2 for error in errors) / len(self.cells)


def assert_trained_as(learner, logger, batch, literal, td_loss, cql_loss, alpha):
    """`train` must find these losses and step down their sum."""
    loss = td_loss + alpha * cql_loss
    gradients = th.autograd.grad(loss, literal.parameters)
    descend_plainly(learner, 0.02)
    learner.train(batch, 0, 8)
    for key, value in (("td_loss", td_loss), ("cql_loss", cql_loss), ("loss", loss)):
        assert logger.stats[key] == [pytest.approx(value.item(), rel=1e-4)], key
    found = [*learner.mac.parameters(), *learner.mixer.parameters()]
    for p, old, g in zip(found, literal.parameters, gradients, strict=True):
        assert th.allclose(p.double(), old - 0.02 * g, atol=1e-5)


@pytest.mark.parametrize(
    ("inverse_temperature", "td_lambda"), [(0.0, 0.0), (0.7, 0.6), (5.0, 1.0), (100.0, 0.6)]
)
def test_loss_and_step_are_those_of_the_loops(inverse_temperature, td_lambda):
    learner, logger, args = make_cfcql(
        td_lambda=td_lambda, softmax_temp=inverse_temperature, global_cql_alpha=3.0
    )
    batch = random_batch(LENGTHS, args, pad=2)
    literal = Literal(learner, batch, args)
    penalty, weights, of_all = 0.0, [], []
    for e, t in literal.cells:
        played = literal.played(e, t)
        soft_maxima, divergences = [], []
        for i in range(3):
            otherwise = {
                b: literal.q_tot(e, t, [*played[:i], b, *played[i + 1 :]])
                for b in literal.possible(e, t, i)
            }
            total = sum(th.exp(q) for q in otherwise.values())
            soft_maxima.append(th.log(total))
            divergence = 0.0
            for b, q in otherwise.items():
                p = float((th.exp(q) / total).detach())
                beta = math.exp(float(batch["behaviour_log_probs"][e, t, i, b]))
                divergence += p * (math.log(p) - math.log(beta + 1e-5))
            divergences.append(divergence)
        if inverse_temperature == 100:
            share = [float(i == divergences.index(max(divergences))) for i in range(3)]
        else:
            share = [math.exp(inverse_temperature * d) for d in divergences]
            share = [s / sum(share) for s in share]
        penalty += sum(s * m for s, m in zip(share, soft_maxima)) - literal.q_tot(e, t, played)
        weights.append(max(share))
        of_all += divergences
    cql_loss = penalty / len(literal.cells)
    assert_trained_as(learner, logger, batch, literal, literal.td_loss(), cql_loss, 3.0)
    mean = sum(weights) / len(weights)
    assert logger.stats["lambda_max"] == [pytest.approx(mean, rel=1e-3)]
    assert logger.stats["divergence_mean"] == [pytest.approx(sum(of_all) / len(of_all), rel=1e-3)]


def test_counterfactuals_differ_from_the_data_in_one_agent():
    th.manual_seed(0)
    q, actions = th.randn(5, 3, 4), th.randint(4, (5, 3))
    found = counterfactual_values(q, actions)
    assert found.shape == (5, 3, 4, 3)
    for m in range(5):
        for i in range(3):
            for b in range(4):
                joint = actions[m].tolist()
                joint[i] = b
                assert found[m, i, b].tolist() == [float(q[m, j, joint[j]]) for j in range(3)]


def test_lambda_is_even_soft_or_all_on_one_agent():
    divergence = th.tensor([[0.30, 0.31, 0.10], [2.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    assert th.allclose(agent_weights(divergence, 0.0), th.full((3, 3), 1 / 3))
    # softmax(100 x) would give 0.31 against 0.30 no more than 0.73
    assert agent_weights(divergence, 100.0).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    soft = agent_weights(divergence, 2.0)
    assert th.allclose(soft.sum(-1), th.ones(3))
    assert soft[1, 0].item() == pytest.approx(math.exp(4) / (math.exp(4) + 2), rel=1e-5)


def test_where_no_agent_has_a_choice_there_is_no_penalty():
    learner, logger, args = make_cfcql(global_cql_alpha=50.0)
    batch = random_batch(LENGTHS, args)
    batch["avail_actions"][:] = 0
    batch["avail_actions"].scatter_(-1, batch["actions"], 1)
    learner.train(batch, 0, 8)
    assert logger.stats["cql_loss"] == [pytest.approx(0, abs=1e-6)]


def test_unavailable_actions_do_not_matter():
    """The values of actions that nobody could take are moved: the penalty stays what it was."""
    penalties = []
    for rise in (0.0, 5.0):
        learner, logger, args = make_cfcql(agent="mlp")
        batch = random_batch(LENGTHS, args)
        batch["avail_actions"][..., 2] = 0
        batch["actions"][batch["actions"] == 2] = 1
        batch["avail_actions"].scatter_(-1, batch["actions"], 1)
        with th.no_grad():
            learner.mac.agent.net[-1].bias[2] += rise
        learner.train(batch, 0, 8)
        penalties.append((logger.stats["cql_loss"], logger.stats["target_mean"]))
    assert penalties[0] == penalties[1]


def game_batch(args, map_name, quality):
    """A tenth of a matrix dataset in its exact proportions as one batch, with beta_i exact.

    `args` get its shapes.
    """
    dataset = make_dataset("matrix", map_name, quality, 0)
    vars(args).update(dataset.metadata.env_info())
    whole = OfflineBuffer(dataset, 0).batch(range(len(dataset.lengths)))
    joint = whole["actions"][:, 0, 0, 0] * args.n_actions + whole["actions"][:, 0, 1, 0]
    batch = whole[joint.argsort()[::10], :]
    actions = batch["actions"][:, 0, :, 0]
    counts = [th.bincount(actions[:, i], minlength=args.n_actions) for i in range(args.n_agents)]
    log_beta = (th.stack(counts) / len(actions)).log().clamp(min=-1e10)
    batch.data["behaviour_log_probs"] = log_beta.expand(*batch["obs"].shape[:2], -1, -1)
    return batch


def train_on_game(alg, map_name, quality, updates, **overrides):
    """(learner, Q_tot of every joint action of two agents `[A, A]`) after `updates`."""
    args = make_args(alg, agent="mlp", hidden_dim=16, obs_last_action=False, log_interval=10**9)
    vars(args).update(overrides)
    batch = game_batch(args, map_name, quality)
    th.manual_seed(0)
    learner, _ = make_learner(args)
    for k in range(updates):
        learner.train(batch, k, 8)
    one = batch[:1, :]
    learner.mac.init_hidden(1)
    q = learner.mac.forward(one, 0)[0]  # [2, A]
    pairs = th.cartesian_prod(*q)  # [A * A, 2]
    with th.no_grad():
        totals = learner.mixer.weights(one["state"][:, 0]).mix_many(pairs.unsqueeze(0))
    greedy = q.argmax(-1).tolist()
    return greedy, totals.view(args.n_actions, args.n_actions)


def test_the_penalty_alone_clones_each_agent():
    """Even lambda: the penalty is the log-pseudolikelihood of exp Q_tot, whose optimum on a product
    of policies is softmax_b q^i(b) = beta_i, wherever the other agent stands."""
    greedy, totals = train_on_game(
        "cfcql", "m_ne", "imbalanced", 250, lr=0.01, softmax_temp=0.0, global_cql_alpha=1e4
    )
    beta = th.tensor([0.8, 0.1, 0.1])
    assert th.allclose(totals.softmax(0), beta[:, None].expand(3, 3), atol=0.02)
    assert th.allclose(totals.softmax(1), beta.expand(3, 3), atol=0.02)
    assert greedy == [0, 0]


def test_without_a_penalty_monotone_mixing_ends_at_bb_on_xor():
    """Appendix D of the InSPO paper: Q(AB) = Q(BA) > Q(AA) forces Q_i(B) > Q_i(A)."""
    greedy, totals = train_on_game("cfcql", "xor", "b", 200, lr=0.01, global_cql_alpha=0.0)
    seen = th.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert th.allclose(totals[:1], seen[:1], atol=0.05)
    assert totals[1, 0].item() == pytest.approx(1, abs=0.05)
    assert greedy == [1, 1]


def test_targets_are_copied_every_target_update_interval_updates():
    learner, _, args = make_cfcql(target_update_interval=3)
    batch = random_batch(LENGTHS, args)

    def same():
        pairs = (
            (learner.target_mac.agent, learner.mac.agent),
            (learner.target_mixer, learner.mixer),
        )
        return [
            all(th.equal(p, q) for p, q in zip(a.parameters(), b.parameters())) for a, b in pairs
        ]

    copied = []
    for _ in range(7):
        learner.train(batch, 0, 0)
        copied.append(same())
    no, yes = [False, False], [True, True]
    assert copied == [no, no, yes, no, no, yes, no]


PUBLISHED = {
    "2s3z": [(0.1, 0.5), (5, 0.1), (50, 0.5), (0.5, 0)],
    "3s_vs_5z": [(50, 0), (50, 0), (50, 1), (50, 0)],
    "5m_vs_6m": [(50, 0.5), (50, 0.5), (50, 100), (50, 0.5)],
    "6h_vs_8z": [(50, 1), (50, 0.5), (50, 0), (50, 1)],
}


@pytest.mark.parametrize("map_name", PUBLISHED)
def test_the_published_hyperparameters_are_chosen_by_map_and_quality(map_name):
    qualities = ("medium", "medium_replay", "expert", "mixed")
    for quality, expected in zip(qualities, PUBLISHED[map_name], strict=True):
        words = ["with", f"map_name={map_name}", f"quality={quality}"]
        config = load_config(["--config=cfcql", "--env-config=sc2_offline", *words])
        values = config.values
        assert (values["global_cql_alpha"], values["softmax_temp"]) == expected
        assert values["td_lambda"] == (0.3 if map_name == "6h_vs_8z" else 0.6)
        assert any("the authors' table" in note for note in config.notes)
        words.append("use_presets=False")
        values = load_config(["--config=cfcql", "--env-config=sc2_offline", *words]).values
        assert (values["global_cql_alpha"], values["softmax_temp"]) == (50, 5)


def test_elsewhere_the_defaults_of_the_authors_code_hold():
    for env in ("smax_offline", "matrix_offline", "bridge_offline"):
        values = load_config(["--config=cfcql", f"--env-config={env}"]).values
        assert (values["global_cql_alpha"], values["softmax_temp"]) == (50, 5)
