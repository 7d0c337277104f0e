"""Learners by name: `REGISTRY[args.learner](mac, scheme, logger, args)`."""

from inspo.learners.alberdice_learner import AlberDICELearner
from inspo.learners.bc_learner import BCLearner
from inspo.learners.cfcql_learner import CFCQLLearner
from inspo.learners.comadice_learner import ComaDICELearner
from inspo.learners.icq_learner import ICQLearner
from inspo.learners.inspo_learner import InSPOLearner
from inspo.learners.learner import Learner
from inspo.learners.macql_learner import MACQLLearner
from inspo.learners.mappo_learner import MAPPOLearner
from inspo.learners.omar_learner import OMARLearner
from inspo.learners.omiga_learner import OMIGALearner
from inspo.learners.oryx_learner import OryxLearner
from inspo.learners.qmix_learner import QMIXLearner
from inspo.learners.values_learner import ValuesLearner

REGISTRY: dict[str, type[Learner]] = {
    "alberdice_learner": AlberDICELearner,
    "bc_learner": BCLearner,
    "cfcql_learner": CFCQLLearner,
    "comadice_learner": ComaDICELearner,
    "icq_learner": ICQLearner,
    "inspo_learner": InSPOLearner,
    "macql_learner": MACQLLearner,
    "mappo_learner": MAPPOLearner,
    "omar_learner": OMARLearner,
    "omiga_learner": OMIGALearner,
    "oryx_learner": OryxLearner,
    "qmix_learner": QMIXLearner,
    "values_learner": ValuesLearner,
}
