"""ReGAN: a few-shot network on the hidden maps of a GAN, and a U-Net on pictures that both have labelled."""
