"""What flow_runner.py replaces in Prompt Flow's executor: the answers stay the same, and another version is noticed."""

from pathlib import Path
from typing import Any

import pytest
from chat_support import World

from function_app.flow_runner import FLOW_FILE, FlowRunner, flow_runner
from function_app.live import live_models
from function_app.model_choice import Choice

CHAIN = """
inputs:
  text: {type: string}
outputs:
  answer: {type: string, reference: "${second.output}"}
nodes:
- {name: first, type: python, source: {type: code, path: repeat.py}, inputs: {text: "${inputs.text}"}}
- {name: second, type: python, source: {type: code, path: repeat.py}, inputs: {text: "${first.output}"}}
"""
REPEAT = """
from promptflow.core import tool

@tool
async def repeat(text: str) -> dict:
    return {"said": text}
"""


async def asked(world: World, **more: Any) -> dict[str, Any]:
    from function_app.chat_answer import flow_inputs
    from function_app.openai_api import ChatRequest

    live = await live_models().find("support")
    assert live
    request = ChatRequest("support", [{"role": "user", "content": "Hi"}], {"temperature": 0.5}, False, False)
    return {**flow_inputs(request, Choice(live)), **more}


async def test_the_tuned_executor_answers_as_prompt_flows_own(world: World) -> None:
    from promptflow.executor import FlowExecutor

    plain = FlowExecutor.create(FLOW_FILE, connections={}, working_dir=FLOW_FILE.parent)
    given = await asked(world)
    expected = (await plain.exec_line_async(given, allow_generator_output=True)).output["answer"]
    assert await flow_runner().run(given) == expected
    assert world.endpoint.bodies[0] == world.endpoint.bodies[1]
    streams = await asked(world, stream=True)
    expected = (await plain.exec_line_async(streams, allow_generator_output=True)).output["answer"]
    answer = await flow_runner().run(streams)
    assert [chunk async for chunk in answer] == [chunk async for chunk in expected]


async def test_prompt_flow_loads_no_file_that_a_message_names(world: World, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("secret")
    image = {"data:image/png;path": str(tmp_path / "secret.png")}
    await flow_runner().run(await asked(world, messages=[{"role": "user", "content": "Hi", "image": image}]))
    assert world.endpoint.bodies[-1]["messages"][0]["image"] == image  # passed on as it is, not read


async def test_inputs_of_a_wrong_type_are_still_refused_by_prompt_flow(world: World) -> None:
    with pytest.raises(Exception, match=r"input.*messages"):
        await flow_runner().run(await asked(world, messages=3))


def write_flow(folder: Path, more: str) -> Path:
    (folder / "repeat.py").write_text(REPEAT)
    (folder / "flow.dag.yaml").write_text(CHAIN.replace(', inputs: {text: "${first.output}"}', more))
    return folder / "flow.dag.yaml"


async def test_nodes_run_in_turn_with_each_others_outputs(tmp_path: Path) -> None:
    runner = FlowRunner(write_flow(tmp_path, ', inputs: {text: "${first.output.said}"}'))
    assert await runner.run({"text": "Hello"}) == {"said": "Hello"}


@pytest.mark.parametrize(
    "more",
    [', inputs: {text: "x"}, activate: {when: "${inputs.text}", is: "x"}', ', inputs: {text: "x"}, aggregation: true'],
)
def test_a_flow_that_needs_prompt_flows_scheduler_is_not_loaded(tmp_path: Path, more: str) -> None:
    with pytest.raises(ValueError, match="node second"):
        FlowRunner(write_flow(tmp_path, more))


@pytest.mark.parametrize("name", ["_traverse_nodes_async", "_update_operation_context", "_exec_post_process"])
def test_another_version_of_prompt_flow_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from promptflow.executor import FlowExecutor

    monkeypatch.delattr(FlowExecutor, name)
    with pytest.raises(AttributeError, match=name):
        FlowRunner()
