"""Every op in plain torch: obvious, slow, differentiable where the op is. The kernels are tested against it."""
