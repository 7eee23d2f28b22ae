"""Start the real azureml-inference-server-http for a deployment, on this machine's loopback address alone.

Run as: python run_inference_server.py <site-packages of the image's environment> --entry_script score.py --port 5001
"""

import os
import site
import sys


def main() -> None:
    # The image's packages come behind the server's own: where both have one, the server needs its version.
    site.addsitedir(sys.argv.pop(1))
    del sys.path[0]  # this file's folder, which is none of the scoring script's business
    from azureml_inference_server_http import amlserver

    amlserver.DEFAULT_HOST = "127.0.0.1"  # in a container it listens on every address
    os.environ.setdefault("GUNICORN_CMD_ARGS", "--no-control-socket")  # one in the home folder, for all deployments
    amlserver.run()


if __name__ == "__main__":
    main()
