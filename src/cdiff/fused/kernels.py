"""All kernels. Importing them needs Triton, so what uses them imports this where it calls them.

Every sum is taken in fp32 and in a fixed order: the same input gives the same bits. Frozen weights of norms get no
gradient; what trains them takes torch's layers (cdiff.fused.modules).
"""

from cdiff.fused.few_keys import attend, few_enough
from cdiff.fused.group_norm import group_norm
from cdiff.fused.launching import INTERPRETED
from cdiff.fused.layer_norm import add_layer_norm
from cdiff.fused.pointwise import add_biased, geglu, quick_gelu

__all__ = [
    "INTERPRETED",
    "add_biased",
    "add_layer_norm",
    "attend",
    "few_enough",
    "geglu",
    "group_norm",
    "quick_gelu",
]
