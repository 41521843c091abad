"""A server of one model that says its name: `fake_server.py MODEL PORT [WAY…]`.

It starts a process of its own, as servers with workers do, and writes both ids to its output.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

model, port, *ways = sys.argv[1:]


class Answers(BaseHTTPRequestHandler):
    """Says that it is well, names its model, and answers with it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({"data": [{"id": "m/1"}] if "nameless" not in ways else []})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": f"{asked['model']} is {model}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        common = {"id": "x", "object": "chat.completion", "created": 1, "model": asked["model"]}
        self.reply({**common, "choices": [choice]})

    def reply(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


if __name__ == "__main__":
    if "broken" in ways:
        sys.exit("no such device: \x1b[31mTPU")
    if "stubborn" in ways:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("processes", json.dumps([os.getpid(), worker.pid]), flush=True)
    time.sleep(600 if "silent" in ways else 0.2)
    ThreadingHTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()
