"""The benchmark behind ``rnn-ext bench``: ``rnn_ext.RNN`` against ``torch.nn.RNN``.

``flags`` says what is asked for and ``command`` walks over the ``cases`` (a grid, or the ``real``
ones). ``measure`` runs one of them: builds modules and tensors (``workload``), compares the results
(``check``), then times the calls (``timing``); ``memory`` and ``gemm`` measure what their names
say, ``limits`` what ``bounds`` are reckoned from, ``gpu`` the same for a ``roofline``. ``results``
keeps all that was found, and its JSON; ``report`` prints it, ``plot`` draws it, a panel at a time
(``panels``); ``machine`` says where it was measured.
"""
