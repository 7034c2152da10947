"""`python -m train.data prepare`: make ready what a training run reads."""

import sys

from train.data.prepare import main

if __name__ == "__main__":
    sys.exit(main())
