"""Published cells beside those of torchrecurrent: ``python -m benchmarks.published``."""
