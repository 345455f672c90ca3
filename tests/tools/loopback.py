"""A web server on this machine, for what would be downloaded: nothing of a test leaves it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PARTS = 20


@contextmanager
def serving(pages: dict[str, bytes], cut: int = 0, seconds: float = 0) -> Iterator[str]:
    """Serve what lies at each path, and yield the address; another path is answered by 404.

    Args:
        pages: contents by path, as "/a.txt"; changes are served as well.
        cut: bytes at the end of each answer that are announced and never sent.
        seconds: that each answer takes.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in pages:
                self.send_error(404)
                return
            content = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            sent = content[: len(content) - cut]
            step = -(-len(sent) // PARTS)
            for start in range(0, len(sent), step):
                time.sleep(seconds / PARTS)
                with suppress(ConnectionError):  # a client that was killed
                    self.wfile.write(sent[start : start + step])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
