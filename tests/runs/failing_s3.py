"""An S3 server of moto's on loopback that fails one request in ten: half of those before they are done, half behind it."""

import random
from functools import partial

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

draw, say = random.Random(0), partial(print, flush=True)
app = DomainDispatcherApplication(create_backend_app)


def failing(environ, start_response):
    fails = draw.random() < 0.1
    if fails and draw.random() < 0.5:
        say("failed, before", environ["REQUEST_METHOD"])
        start_response("500 Internal Server Error", [])
        return [b""]
    answer = app(environ, (lambda *_: None) if fails else start_response)
    if not fails:
        return answer
    b"".join(answer)  # done, and nobody hears of it
    say("failed, behind", environ["REQUEST_METHOD"])
    start_response("500 Internal Server Error", [])
    return [b""]


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, failing, threaded=True)
    say(f"http://127.0.0.1:{server.port}")
    server.serve_forever()
