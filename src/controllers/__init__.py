"""Controllers by name: `REGISTRY[args.mac](scheme, groups, args)`."""

from inspo.controllers.basic_controller import BasicMAC
from inspo.controllers.sequential_controller import SequentialMAC

REGISTRY = {"basic_mac": BasicMAC, "sequential_mac": SequentialMAC}
