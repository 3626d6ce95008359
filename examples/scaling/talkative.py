"""`mrgen` whose trainings report every REPORT_SECONDS of the environment, so that short ones can be timed."""

import os

import mrgen.prior.train
from mrgen.cli import main

mrgen.prior.train.REPORT_SECONDS = float(os.environ["REPORT_SECONDS"])

if __name__ == "__main__":
    main()
