"""Forward gradients (arXiv 2210.03310): a stage trained without a backward pass, by ``--objective lg-fg``.

With noise u on the outputs z of a layer, drawn anew for every sample, token and channel, one pass of
forward-mode AD gives the derivative of the loss along it, and u times that is in the mean the gradient at z::

    g = sum over all layers of dl/dz . u        E[ g u ] = dl/dz        so   dl/dW ~ (g u) x^T

From z to the layer's weights the formulas of :mod:`pipelocal.closed_form` go on, exactly. ``program`` finds
the places for noise in a body, ``run`` does a batch, ``stage`` is the stage.
"""

from pipelocal.forward_gradient.program import Program, check_stage
from pipelocal.forward_gradient.run import ForwardRun, Noise
from pipelocal.forward_gradient.stage import ForwardGradientStage

__all__ = ["ForwardGradientStage", "ForwardRun", "Noise", "Program", "check_stage"]
