"""coursekit: the numerical kernels and the few services shared by the notebooks of the course.

Submodules load on first use (SPEC 1), so ``import coursekit as ck`` costs milliseconds and imports
neither torch nor matplotlib; ``ck.linalg.svd`` then loads `coursekit.linalg` alone.
"""

import lazy_loader as lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

del lazy
