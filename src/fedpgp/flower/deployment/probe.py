"""A check that a node could connect to a server, which leaves no node behind."""

import base64
import datetime
import ssl
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedpgp.flower.deployment.credentials import public_key_pem
from fedpgp.flower.deployment.gate import KEY, SIGNATURE, TIMESTAMP

SECONDS = 5.0  # that a server has to answer
REFUSED = (
    "Invalid SuperNode authentication"  # a SuperLink's answer to a valid signature of a node that it does not know
)


class Probe:
    """Sends a node's request, signed with a key that the gate knows and that belongs to no node.

    The SuperLink refuses the request only after it has checked the signature and looked for the key in its database.

    Parameters
    ----------
    address
        Address of the server for its nodes.
    authority
        Certificate of the federation's authority; None means a server without TLS.
    """

    def __init__(self, address: str, authority: Path | None):
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._url = f"{'http' if authority is None else 'https'}://{address}/v1/fleet/send-node-heartbeat"
        self._secure = True if authority is None else ssl.create_default_context(cafile=str(authority))

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that the gate must know."""
        return self._key.public_key()

    def problem(self) -> str | None:
        """Return why no node can connect now, or None."""
        moment = datetime.datetime.now(datetime.UTC).isoformat()
        signature = self._key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
        headers = {
            KEY: base64.b64encode(public_key_pem(self.public_key)),
            SIGNATURE: base64.b64encode(signature),
            TIMESTAMP: moment.encode(),
            b"content-type": PROTOBUF_MEDIA_TYPE.encode(),
        }
        request = SendNodeHeartbeatRequest(node=Node(node_id=1), heartbeat_interval=30.0)
        # The server's certificate is also for localhost; its own address need not be.
        extensions = {"sni_hostname": "localhost"}
        try:
            with httpx.Client(verify=self._secure, trust_env=False, timeout=SECONDS) as client:
                answer = client.post(
                    self._url, content=request.SerializeToString(), headers=headers, extensions=extensions
                )
        except httpx.HTTPError as error:
            return f"{self._url} does not answer: {error or type(error).__name__}"
        if answer.status_code == httpx.codes.UNAUTHORIZED and REFUSED in answer.text:
            return None
        return f"{self._url} answers with {answer.status_code}: {answer.text[:200]}"
