"""BP-free training: gradients by their written-out formulas, one layer a stage, without autograd.

A stage of one layer (linear or convolution, with its norm and activation) and a linear head is so
shallow that its gradients can be written down. Nothing here makes a graph; autograd's only part is
the distance that ``--objective sgr`` reconciles by, in which there is no layer.

A module type of one's own joins in with :func:`closed_form_of`.
"""

# Their import is what registers the forms.
from pipelocal.closed_form import layers, norms, pointwise  # noqa: F401
from pipelocal.closed_form.check import check_stage
from pipelocal.closed_form.form import ClosedForm, accumulate, closed_form_of
from pipelocal.closed_form.stage import ClosedFormStage

__all__ = ["ClosedForm", "ClosedFormStage", "accumulate", "check_stage", "closed_form_of"]
