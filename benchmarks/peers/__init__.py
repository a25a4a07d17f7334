"""Other runtimes beside ours and ``nn.RNN``, for ``rnn-ext bench --peers``.

``runtimes`` lists them; each is prepared by a small file (``torch_modules``, ``onnx_runtime``,
``open_vino``, ``jax_scan``), which nobody but its ``worker``, a process of its own, imports.
``pool`` starts the workers and takes them in turns; ``report`` prints what they gave.
"""
