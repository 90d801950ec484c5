"""nginx's algorithms where they differ from HAProxy's, for configurations that come from nginx."""
