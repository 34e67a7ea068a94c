"""Params in a file and back: safetensors with dotted names, written whole or not at all.

    save          params, and metadata beside them, to a file
    load          all of a file, onto a device, in a dtype
    open          a file of which parts are read as they are asked for
    check_shapes  that params are those of a model of these sizes
    write         any bytes, in one step

What is read may be a safetensors file of anybody's, or the index of one in shards, as Hugging Face
writes it. Nothing is unpickled. It needs the package `safetensors`.
"""

from tinyfn.checkpoint._compare import check_shapes as check_shapes
from tinyfn.checkpoint._read import File as File
from tinyfn.checkpoint._read import load as load
from tinyfn.checkpoint._read import open as open
from tinyfn.checkpoint._write import save as save
from tinyfn.checkpoint._write import write as write
