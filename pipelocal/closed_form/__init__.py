"""BP-free training: gradients by explicit formulas, one layer per stage, without autograd.

A stage of one layer (linear or convolution, with its norm and activation) and a linear head is so
shallow that its gradients can be written down. Nothing here builds a graph; autograd is used only
for the distance of ``--objective sgr``, which involves no layer.

Register a user's module type with :func:`closed_form_of`.
"""

# Importing these registers the forms.
from pipelocal.closed_form import layers, mixing, norms, pointwise  # noqa: F401
from pipelocal.closed_form.check import check_stage
from pipelocal.closed_form.form import ClosedForm, accumulate, closed_form_of
from pipelocal.closed_form.stage import ClosedFormStage

__all__ = ["ClosedForm", "ClosedFormStage", "accumulate", "check_stage", "closed_form_of"]
