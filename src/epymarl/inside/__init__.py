"""The project's offline learners in this EPyMARL checkout: what its registries get.

Nothing is imported before it is asked for: a run of another algorithm neither waits for the plugin
nor fails by it. Made by `python src/plugin.py install`; `remove` takes it out.
"""

import json
from functools import partial
from pathlib import Path

# learners, controllers: name -> [module in project/, class]
# keys: algorithm -> {key: [value, rule]}
PARTS = json.loads(Path(__file__).with_name("parts.json").read_text(encoding="utf-8"))


def _learner(name, mac, scheme, logger, args):
    from inspo_plugin.offline import make_learner

    return make_learner(name, mac, scheme, logger, args)


def _controller(name, scheme, groups, args):
    from inspo_plugin.offline import make_controller

    return make_controller(name, scheme, groups, args)


def _runner(args, logger):
    from inspo_plugin.offline import OfflineRunner

    return OfflineRunner(args, logger)


LEARNERS = {name: partial(_learner, name) for name in PARTS["learners"]}
CONTROLLERS = {name: partial(_controller, name) for name in PARTS["controllers"]}
RUNNERS = {"offline": _runner}
