"""Other runtimes beside ``rnn_ext`` and torch's modules, for ``python -m benchmarks peers``.

``runtimes`` lists them. A small file prepares each (``torch_modules``, ``onnx_runtime``,
``open_vino``, ``jax_scan``); only its ``worker``, a separate process, imports that file. ``pool``
starts the workers and times them in turn. ``report`` prints the results.
"""
