"""A WebSocket origin at the socket that is its standard input: it accepts one WebSocket, sends one message, and then
nothing: to be killed while it holds the connection.
"""

import base64
import hashlib
import select
import socket

listener = socket.socket(fileno=0)
request = b""
while b"\r\n\r\n" not in request:  # a connection of the test before may arrive late, and ends without a request
    select.select([listener], [], [])  # the test has made the socket non-blocking, in this process as well
    connection, _ = listener.accept()
    connection.setblocking(True)
    request = b""
    while b"\r\n\r\n" not in request and (data := connection.recv(65536)):
        request += data
listener.close()
key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(b": ")[1]
accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
connection.sendall(
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n\x81\x05hello"
)
while connection.recv(65536):
    pass
