"""InSPO in closed form on finite games: the oracle of the tests and of the theory figures."""
