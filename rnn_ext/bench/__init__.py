"""The benchmark behind ``rnn-ext bench``: ``rnn_ext.RNN`` against ``torch.nn.RNN``.

``command`` holds the flags and walks over the ``cases``; ``measure`` runs one of them: builds both
modules, compares their results (``check``), then times them (``timing``). ``report`` prints what
was found, ``machine`` says where.
"""
