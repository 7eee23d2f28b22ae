"""The function app: its triggers, and which module to open for what.

The triggers
    on_dataset_uploaded, on_job_event   events.py      Event Grid → queue
    advance_run, bury_run, sweep        advance.py     queue, poison queue and timer → the run's next steps
    chat, models, page                  chat.py        HTTP → Prompt Flow → the model's endpoint
    operations_*                        operations.py  HTTP → what operators see, and ask of runs and models

A run, from file to live model: advance.py calls steps.py, again and again
    runs            the record and its store
    lifecycle       the state machine: what to do next; of step_kinds, by what observation says is there
    observe, steps  look at Azure, do the step
    gate, turn      may it serve, and is it its turn to change the endpoint
    settle          what is left to do after its end; outcomes tells a topic of it
    idle, poison    models that nobody uses; messages that nobody could work on

A file that was dropped: intake → examine → dataset/, recipe/
    estimate, prices, budget        what it will take and cost, and what the recipe allows
    machines, machines.yaml         what is known of base models and machines; prices.yaml of prices
    blob_ranges, block_writer, data_assets   read it; write its splits; show them in the studio

Training: engines/, one module for each way to train

The release of a model: release, by release_managed or release_serverless
    deployment_spec, serving_environment   what a deployment is made of
    stray_traffic                          traffic that an invocation too late took away is given back
    verification, content_safety           is it good enough to answer people
    lineage, model_versions, rollback      what is registered, and the way back
    live_record                            what serves now

The chat: chat → chat_answer → flow_runner; chat_errors, chat_log, chat_page
    openai_api, openai_messages, openai_parameters, openapi    the wire, and what it says of itself
    chat_leaving                    callers who leave before their answer
    callers, chat_keys              who may chat, with which models, and how much at a time
    entra_tokens, entra_signing_keys   the same by a token of Entra; the keys that its issuer signs with
    model_choice, live, usage       what a request's model means, which there are, and when each last answered

Operators: operations_runs, operations_models, operations_poison, operations_answers

Everywhere: settings, errors, azure_clients, blob_retries; api_keys makes a key
"""

import gc
import os

# What is imported stays. Looking through it for garbage, again and again as it grows, took a tenth of the cold start.
gc.disable()

import azure.functions as func  # noqa: E402

from . import advance, chat, events, operations  # noqa: E402
from .settings import settings  # noqa: E402

gc.freeze()
gc.enable()

# Under a Functions host (which sets this variable) a missing setting stops the start with one sentence, instead of
# failing the first event. The modules can be imported without one: the checker of datasets, say, needs no setting.
if "FUNCTIONS_WORKER_RUNTIME" in os.environ:
    settings()

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
app.register_functions(events.blueprint)
app.register_functions(advance.blueprint)
app.register_functions(chat.blueprint)
app.register_functions(operations.blueprint)
