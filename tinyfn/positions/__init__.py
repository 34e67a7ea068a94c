"""Where a token stands, told to a function that would not know: five schemes.

    sinusoidal   PE(pos, 2i) = sin(pos / theta^(2i/features)), PE(pos, 2i+1) = cos(the same)
    learned      a row of a weight for each position
    rotary       q and k turned by an angle that grows with the position; scores see distances only
    alibi        a bias of -slope · distance on the scores, a slope for each head
    relative     a bias that is trained, for each head and each range of distances

The first two are tables, joined to the features by adding or by concatenating. A stack takes the
joining as `position=`, a function of (params, x): `add_sinusoidal`, `concatenate_learned`, ... The
others act inside attention: they wrap an attend, and are passed as `attend=`.

An offset is the position of the first of a sequence; one for each example, if a tensor with the
batch's leading axes.
"""

from tinyfn.positions._alibi import alibi as alibi
from tinyfn.positions._alibi import alibi_bias as alibi_bias
from tinyfn.positions._alibi import alibi_slopes as alibi_slopes
from tinyfn.positions._frequencies import by_length as by_length
from tinyfn.positions._frequencies import frequencies as frequencies
from tinyfn.positions._frequencies import llama3 as llama3
from tinyfn.positions._frequencies import ntk_scaled as ntk_scaled
from tinyfn.positions._frequencies import yarn as yarn
from tinyfn.positions._joining import add as add
from tinyfn.positions._joining import add_learned as add_learned
from tinyfn.positions._joining import add_sinusoidal as add_sinusoidal
from tinyfn.positions._joining import concatenate as concatenate
from tinyfn.positions._joining import concatenate_learned as concatenate_learned
from tinyfn.positions._joining import concatenate_sinusoidal as concatenate_sinusoidal
from tinyfn.positions._kept import kept as kept
from tinyfn.positions._kept import over_kept as over_kept
from tinyfn.positions._relative import init_relative as init_relative
from tinyfn.positions._relative import relative as relative
from tinyfn.positions._relative import relative_bias as relative_bias
from tinyfn.positions._rotary import rotary as rotary
from tinyfn.positions._rotary import rotate as rotate
from tinyfn.positions._tables import init_learned as init_learned
from tinyfn.positions._tables import learned as learned
from tinyfn.positions._tables import sinusoidal as sinusoidal
