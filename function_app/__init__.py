"""The function app: its triggers, and in which module each lives.

on_dataset_uploaded, on_job_event   events.py    Event Grid → queue
advance_run, bury_run, sweep        advance.py   queue, poison queue and timer → the run's next steps
chat, models, page                  chat.py      HTTP → Prompt Flow → the model's endpoint
operations_*                        operations.py   HTTP → what operators see, and ask of runs and models
"""

import os

import azure.functions as func

from . import advance, chat, events, operations
from .settings import settings

# Under a Functions host (which sets this variable) a missing setting stops the start with one sentence, instead of
# failing the first event. The modules can be imported without one: the checker of datasets, say, needs no setting.
if "FUNCTIONS_WORKER_RUNTIME" in os.environ:
    settings()

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
app.register_functions(events.blueprint)
app.register_functions(advance.blueprint)
app.register_functions(chat.blueprint)
app.register_functions(operations.blueprint)
