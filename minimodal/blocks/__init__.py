"""What the systems are built from: Transformer, convolutions, quantizer, sampling."""
