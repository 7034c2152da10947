"""`python -m train.evaluation`: judge an adapter or a base."""

import sys

from train.evaluation.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
