"""Whether a request waits for the server of its key if that is full (HAProxy `hash-preserve-affinity`)."""

from __future__ import annotations

from typing import Literal

#: `maxconn`: it does not wait, another server gets the request. `maxqueue`: it waits unless the server's queue is full
#: as well. `always`: it waits in any case. An algorithm does not know which servers are full, only which to avoid: it
#: declares this value, and its caller fills `avoid` accordingly.
Affinity = Literal["always", "maxconn", "maxqueue"]
