"""`mrgen` as a rehearsal needs it, where a training takes a second: it reports after every update."""

import mrgen.prior.train
from mrgen.cli import main

mrgen.prior.train.REPORT_SECONDS = -1.0

if __name__ == "__main__":
    main()
