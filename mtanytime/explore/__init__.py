"""Pictures: tables go in, matplotlib figures (`draw`) and widgets come out. Knows nothing of models or of training."""
