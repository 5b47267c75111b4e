"""Stands for the API process where only the launcher is tested: says that it is ready, and nothing else.

Run as ``python -m tests.kit.fake_node [exit status]``; with a status it ends at once.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.parent import die_with_launcher


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Serve on ``WAYBILL_API_PORT`` until ended."""
    die_with_launcher()
    if len(sys.argv) > 1:
        sys.exit(int(sys.argv[1]))
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["WAYBILL_API_PORT"])), _Ready).serve_forever()


if __name__ == "__main__":
    main()
