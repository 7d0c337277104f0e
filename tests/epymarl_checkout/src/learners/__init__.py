from .idle_learner import IdleLearner

REGISTRY = {}
REGISTRY["idle_learner"] = IdleLearner
