"""The lazy decorators behave as those of torch.compiler."""

import subprocess
import sys

import pytest
import torch
from thinned import thinned

from bytelm.system import compiler


def graphs_of(disable, x):
    """The output of a module with a disabled method, and the nodes of its compiled graphs."""

    class Module(torch.nn.Module):
        @disable
        @torch.no_grad()
        def look_up(self, x, scale=1):
            assert not torch.compiler.is_compiling()
            return x.sin() * scale

        def forward(self, x):
            return (x + self.look_up(x, scale=2)).cos()

    graphs = []

    def backend(graph, inputs):
        graphs.append([node.name for node in graph.graph.nodes if node.op != "placeholder"])
        return graph

    torch._dynamo.reset()
    return torch.compile(Module(), backend=backend)(x), graphs


def test_a_disabled_function_is_left_out_of_graphs_as_torchs_is():
    x = torch.linspace(0, 1, 5)
    y, graphs = graphs_of(compiler.disable, x)
    expected, theirs = graphs_of(torch.compiler.disable, x)
    assert graphs == theirs == [["add", "cos", "output"]]
    assert torch.equal(y, expected)
    assert torch.equal(y, (x + 2 * x.sin()).cos())


def test_a_constant_result_is_marked_as_torch_marks_it():
    def theirs():
        return True

    def ours():
        return True

    assert vars(compiler.assume_constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}


@pytest.mark.parametrize("decorator", thinned(["disable", "assume_constant_result"], 1))
def test_decorating_loads_no_compiler(decorator):
    code = (
        "import sys; from bytelm.system import compiler\n"
        f"def function(): pass\ncompiler.{decorator}(function)\nprint('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
