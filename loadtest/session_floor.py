"""What the model alone costs: the runs that the server would do for the standard load, and nothing around them.

`python -m loadtest.session_floor BUNDLE TWEETS` runs every input once for each line on stdin, and answers with the
nanoseconds of CPU that the runs took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from loadtest import traffic
from service.decode import Decoder
from service.limits import Limits
from service.model import load_model


def main(argv: list[str]) -> None:
    """Answers until stdin ends."""
    model = load_model(Path(argv[0]), threads=1)
    requests = traffic.standard_load(model.schema, int(argv[1]))
    decoder = Decoder(Limits())
    tables = [model.aligner.align(decoder.candidates(request.candidates))[0] for request in requests]
    for _ in sys.stdin:
        before_ns = time.process_time_ns()
        for inputs in tables:
            model.scorer.score(inputs)  # session.run and a dict of its four inputs
        print(time.process_time_ns() - before_ns, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
