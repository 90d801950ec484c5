"""Finds out that an app issues keys where no worker reads them, such as in the body of a response.

Then the first request with a key is claimed by whichever worker accepts it, most often by another than the one that
has issued it, and the app there refuses the key. Where clients make keys up, as in `/rooms/{id}`, to claim them is
right, and apps accept them.
"""

from __future__ import annotations

import logging
from typing import Final

from sticky_core.samples import request as samples
from sticky_core.samples.request import Sample

_log = logging.getLogger("sticky_sessions")

#: how many keys have to be refused
MIN_REFUSED: Final = 5
#: the statuses with which apps refuse a key: Socket.IO and MCP respond with the first two
REFUSALS: Final = frozenset((400, 404, 410))
#: The samples of values that an app may have issued. A path, or a function of the user's, may be anything, such as the
#: number of an object that does not exist.
_ISSUED: Final = (samples.hdr, samples.cook, samples.url_param, samples.path_param)


class RefusedKeys:
    """Counts, in one worker, how the app has responded to requests with keys that no worker knew.

    Once the app has refused `MIN_REFUSED` keys that this worker has claimed, the worker warns if all this is true: no
    response that it knows of has issued a key; at least half of the keys that it has claimed were refused; at least as
    many requests had no key, as the first request of a client has none that is issued; and the key is in a header, a
    cookie or a parameter.

    Keys that clients make up are accepted by the app. Keys of sessions that were lost with a restart are refused, but
    those clients begin anew, without a key, and are issued one.

    - `key`: the samples of the key.
    - `learns_more`: whether there are samples of responses that the user has passed.
    """

    def __init__(self, key: tuple[Sample, ...], learns_more: bool) -> None:
        self._key = key
        self._learns_more = learns_more
        self._refused = self._accepted = self._without_key = 0
        #: whether the warning may still come; else nothing need be counted
        self.may_warn = all(isinstance(each, _ISSUED) for each in key)

    def key_issued(self) -> None:
        """Note that a response has issued a key: there will be no warning."""
        self.may_warn = False

    def count_without_key(self) -> None:
        """Count a request without a key."""
        self._without_key += 1

    def count_claimed(self, status: int) -> None:
        """Count the response to a request with a key that this worker has claimed. `status`: 0 if there was none."""
        if status not in REFUSALS:
            self._accepted += status > 0
            return
        self._refused += 1
        if self.may_warn and self._refused >= max(MIN_REFUSED, self._accepted) and self._without_key >= self._refused:
            self.may_warn = False
            _log.warning(
                "StickyWorkers: %s of %s keys (%s) that no worker knew were refused by the app, and no response has "
                "contained a key: %s",
                self._refused,
                self._refused + self._accepted,
                ", ".join(map(repr, self._key)),
                "the samples in learn= have found none, so look at where the app issues them"
                if self._learns_more
                else "if the app issues keys in the body of a response, pass a sample that finds them there, such as "
                "learn=res.json_field('sid') or learn=res.sse_endpoint('session_id')",
            )
