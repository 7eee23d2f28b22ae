"""Serve the MLflow model of the deployment as an OpenAI-compatible chat endpoint.

Run as: AZUREML_MODEL_DIR=<folder> PORT=5001 python serve.py
"""

import logging
import os
import sys
from pathlib import Path

from model_folder import find_model, find_parts


def main() -> None:
    """Load, warm up, then open the port: whoever can connect is answered at once."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    if "AZUREML_MODEL_DIR" not in os.environ:
        sys.exit("error: set AZUREML_MODEL_DIR to the folder of the MLflow model")
    folder = find_model(Path(os.environ["AZUREML_MODEL_DIR"]))
    # The model is here; a look at the hub would cost seconds, or hang where there is no network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads that wait shall sleep, not spin: on shared cores spinning makes every step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")

    import uvicorn
    from chat_api import build_app
    from engine import Engine

    engine = Engine(*find_parts(folder))
    name = os.environ.get("MODEL_NAME", folder.name)
    # No proxy headers, no dates to compute: the endpoint in front has its own. A stream that outlives the deployment
    # is cut after five seconds.
    uvicorn.run(
        build_app(engine, name),
        host=os.environ.get("HOST", "0.0.0.0"),  # noqa: S104 the container's port is what the platform connects to
        port=int(os.environ.get("PORT", "5001")),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
