"""Layers whose many small passes over memory are one kernel (Triton), and that share products, on a GPU."""
