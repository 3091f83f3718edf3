"""What benchmarks/serve.py lets locust do: clients that send the same image again and again, without a pause."""

import os
from pathlib import Path

from locust import FastHttpUser, constant, task

IMAGE = Path(os.environ.get("SERVE_IMAGE", "image.jpeg"))


class Client(FastHttpUser):
    """One of the concurrent clients: it asks again as soon as it is answered."""

    wait_time = constant(0)
    data = IMAGE.read_bytes() if IMAGE.is_file() else b""
    boundary = "finetune-benchmark"

    @task
    def predict(self) -> None:
        head = f'--{self.boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
        body = head + self.data + f"\r\n--{self.boundary}--\r\n".encode()
        self.client.post(
            "/predict", data=body, headers={"Content-Type": f"multipart/form-data; boundary={self.boundary}"}
        )
