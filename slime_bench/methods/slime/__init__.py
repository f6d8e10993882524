"""SLiMe (Khani et al., ICLR 2024)."""
