"""A process with the graph in it: prints its address and serves until its standard input is closed.

`python -m tests.e2e.graph '{"rtc": {...}}'` takes changes of the application's arguments. A process of its own keeps
its Ray instance apart from the one that other tests share.
"""

import json
import sys

from benchmarks.serving import running_graph

if __name__ == "__main__":
    with running_graph(**json.loads(sys.argv[1])) as url:
        print(url, flush=True)
        sys.stdin.read()
