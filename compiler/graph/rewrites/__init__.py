"""The rewrites, in the order in which they run. Each leaves every value of the module as it was."""

from collections.abc import Callable

from ..edit import Editor
from .activations import find_activations
from .arithmetic import find_arithmetic, find_means, put_tables_second
from .attention import find_attention
from .choices import find_choices
from .cleaning import drop_neutral, drop_noise, drop_zeros, merge_views, share_equal_nodes
from .convolution import find_convolutions
from .copies import find_copies
from .linear import cut_joined_channels, find_linears, split_linears
from .lookups import find_lookups
from .norms import find_norms, fold_norm_weights
from .products import find_products
from .reductions import find_pools, find_reductions
from .rotary import find_rotary
from .routes import find_routes
from .selection import find_selection
from .state import find_state
from .views import find_views
from .writes import find_writes

REWRITES: tuple[Callable[[Editor], None], ...] = (
    drop_noise,
    find_lookups,
    drop_zeros,
    find_writes,
    share_equal_nodes,
    find_means,
    find_norms,
    find_activations,
    find_routes,
    find_selection,
    find_convolutions,
    find_pools,
    find_products,
    find_copies,
    find_views,
    find_linears,
    find_arithmetic,
    drop_neutral,
    find_reductions,
    merge_views,
    find_rotary,
    find_state,
    find_attention,
    find_choices,
    cut_joined_channels,
    split_linears,
    fold_norm_weights,
    put_tables_second,
    merge_views,
    share_equal_nodes,
)
