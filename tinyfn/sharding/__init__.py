"""The same functions on more devices: params as DTensors, laid out by what a mesh's axes are for.

    data       every process has all params, and a share of the batch
    full       every process has a share of every param, and of the batch (fully sharded)
    tensor     every process has a share of the heads and of the hidden layers
    sequence   every process has all params, and a share of every sequence

A mesh may have several of these axes. `plan` lays out params, `shard` and `gather` move them,
`place` lays out what they are applied to, and `align` gives gradients the layout of their params.
Within `on_mesh()`, `transformer`, `torch.func.grad` and an optimiser's step run unchanged.
"""

from tinyfn.sharding._layouts import Layout as Layout
from tinyfn.sharding._layouts import align as align
from tinyfn.sharding._layouts import gather as gather
from tinyfn.sharding._layouts import mesh as mesh
from tinyfn.sharding._layouts import place as place
from tinyfn.sharding._layouts import plan as plan
from tinyfn.sharding._layouts import shard as shard
from tinyfn.sharding._on_mesh import on_mesh as on_mesh
