"""The benchmark behind ``rnn-ext bench``: is rnn_ext faster on this machine, for these shapes?

``workload`` holds the tensors of a call, ``check`` compares results, ``timing`` times two functions
in alternating rounds, and ``command`` is the command line. The repository's ``benchmarks/``
measures more.
"""
