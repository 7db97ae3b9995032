"""``python -m esl_sparse``, as ``torchrun -m esl_sparse`` needs it: the same as ``esl-sparse``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
