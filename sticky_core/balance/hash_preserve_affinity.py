"""How far a server that is full is insisted on (HAProxy `hash-preserve-affinity`)."""

from __future__ import annotations

from typing import Literal

#: `maxconn`: not at all, another server takes the request. `maxqueue`: the request waits there unless the queue is full
#: as well. `always`: it belongs there whatever happens. An algorithm does not know who is full, only whom to avoid: it
#: says what it would like, and who asks it acts on that.
Affinity = Literal["always", "maxconn", "maxqueue"]
