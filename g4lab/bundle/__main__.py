"""`python -m g4lab.bundle MANIFEST`, which install.sh runs on the node: what is lacking there and what differs."""

import json
import sys
from pathlib import Path

from g4lab.bundle.there import problems

lacking, differing = problems(json.loads(Path(sys.argv[1]).read_text()))
for kind, lines in (("lacking", lacking), ("differs", differing)):
    for line in lines:
        print(f"{kind}: {line}")
print(f"node: {len(lacking)} lacking, {len(differing)} differing")
