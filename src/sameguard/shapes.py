"""Array shapes as types. Outside our numerics everything is a numpy array; inside the networks it is a torch tensor.

The dimension names are shared across one call, so a function that takes `Queries` and `Probs` is checked for equal batch sizes when
the tests switch the import hook on (`--jaxtyping-packages`); at run time the annotations cost nothing.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

Queries = Float32[np.ndarray, "batch *input"]
Probs = Float32[np.ndarray, "batch classes"]
Scores = Float[np.ndarray, "batch"]
Labels = Int[np.ndarray, "batch"]
Flags = Bool[np.ndarray, "batch"]
