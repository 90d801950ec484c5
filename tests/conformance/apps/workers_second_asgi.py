"""Another app than `workers_asgi`. STICKY: the options of StickyWorkers as JSON."""

import json
import os

from starlette.applications import Starlette

from sticky_asgi import StickyWorkers

app = StickyWorkers(Starlette(), **json.loads(os.environ["STICKY"]))
