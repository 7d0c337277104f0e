"""Controllers by name: `REGISTRY[args.mac](scheme, groups, args)`."""

from controllers.basic_controller import BasicMAC
from controllers.sequential_controller import SequentialMAC

REGISTRY = {"basic_mac": BasicMAC, "sequential_mac": SequentialMAC}
