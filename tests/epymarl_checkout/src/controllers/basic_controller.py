class BasicMAC:
    """Plays the first action there is."""

    def __init__(self, scheme, groups, args):
        pass

    def init_hidden(self, batch_size):
        pass

    def select_actions(self, ep_batch, t_ep, t_env, bs=slice(None), test_mode=False):
        return ep_batch["avail_actions"][bs, t_ep].argmax(-1)
