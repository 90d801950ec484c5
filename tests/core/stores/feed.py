"""The channel of invalidations without a connection: a feed with its replies, messages, and a local cache."""

from sticky_core.stores.invalidation import InvalidationFeed


class FakeLocalCache(dict[str, tuple[str, int]]):
    """A local cache: text and epoch by digest."""

    def on_invalidation(self, digest, text, epoch):
        if text is None:
            self.pop(digest, None)
        elif digest in self:
            self[digest] = text, epoch


def connected_feed(store, clock, received=()):
    """Return a feed with replies to all its commands so far, after which it has received more."""
    feed = InvalidationFeed(store, clock.monotonic())
    while (command := feed.next_command(clock.monotonic())) is not None:
        match command:
            case ("PING",):
                feed.on_reply([b"pong", b""])
            case ("SUBSCRIBE", *channels):
                for number, channel in enumerate(channels):
                    feed.on_reply([b"subscribe", str(channel).encode(), number + 1])
    for reply in received:
        feed.on_reply(reply)
    return feed


def message(namespace, payload):
    return [b"message", namespace.channel.encode(), payload]
