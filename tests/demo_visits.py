"""What the tests of the demo share: visitors without a browser, and what they classify."""

import io
from contextlib import contextmanager

from PIL import Image
from starlette.testclient import TestClient

from fedpgp.demo import server


@contextmanager
def visiting(show):
    with TestClient(server.create_app(show), base_url="http://127.0.0.1:7860") as client:
        assert show.wait(60)
        yield client
    show.wait(60)


def drawing(size=(40, 40), colour="red"):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def classify(visitor, classes, image=None, name="drawing.png"):
    files = {"image": (name, drawing() if image is None else image, "image/png")}
    return visitor.post("/api/classify", data={"classes": classes}, files=files)
