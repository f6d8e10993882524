"""SegDDPM: small networks that label pixels by the hidden states of a frozen diffusion model."""
