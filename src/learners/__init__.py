"""Learners by name: `REGISTRY[args.learner](mac, scheme, logger, args)`."""

from learners.alberdice_learner import AlberDICELearner
from learners.bc_learner import BCLearner
from learners.cfcql_learner import CFCQLLearner
from learners.icq_learner import ICQLearner
from learners.inspo_learner import InSPOLearner
from learners.macql_learner import MACQLLearner
from learners.mappo_learner import MAPPOLearner
from learners.omar_learner import OMARLearner
from learners.omiga_learner import OMIGALearner
from learners.qmix_learner import QMIXLearner

REGISTRY = {
    "alberdice_learner": AlberDICELearner,
    "bc_learner": BCLearner,
    "cfcql_learner": CFCQLLearner,
    "icq_learner": ICQLearner,
    "inspo_learner": InSPOLearner,
    "macql_learner": MACQLLearner,
    "mappo_learner": MAPPOLearner,
    "omar_learner": OMARLearner,
    "omiga_learner": OMIGALearner,
    "qmix_learner": QMIXLearner,
}
