"""Controllers by name: `REGISTRY[args.mac](scheme, groups, args)`."""

from inspo.controllers.basic_controller import BasicMAC
from inspo.controllers.central_controller import CentralMAC
from inspo.controllers.sequential_controller import SequentialMAC

REGISTRY = {"basic_mac": BasicMAC, "central_mac": CentralMAC, "sequential_mac": SequentialMAC}
