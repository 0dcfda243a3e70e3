"""Models in which memory is the point: `tnt` learns at test time, `vista` keeps a lifetime in a cache, `cases` reasons
from remembered cases."""
