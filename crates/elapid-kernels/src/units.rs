//! Every CUDA kernel of every operation.

use crate::cuda::Unit;

/// Every kernel and specialisation that operations use: what `cargo xtask cuda-check` compiles.
pub fn all() -> Vec<Unit> {
    [
        crate::adamw::cuda::units(),
        crate::add_norm::cuda::units(),
        crate::answers::cuda::units(),
        crate::attention::cuda::units(),
        crate::attention::paged::units(),
        crate::batch_step::units(),
        crate::causal_conv1d::cuda::units(),
        crate::cell::cuda::units(),
        crate::cross_entropy::cuda::units(),
        crate::cumulative_softmax::cuda::units(),
        crate::diagonal_scan::cuda::units(),
        crate::discretise::cuda::units(),
        crate::dropout::cuda::units(),
        crate::embedding::cuda::units(),
        crate::experts::cuda::units(),
        crate::group_norm::cuda::units(),
        crate::layer_norm::cuda::units(),
        crate::linear::cuda::units(),
        crate::linear_attention::cuda::units(),
        crate::mamba1_step::cuda::units(),
        crate::mamba2_step::cuda::units(),
        crate::neg_exp::cuda::units(),
        crate::pointwise::cuda::units(),
        crate::positions::cuda::units(),
        crate::rotate::cuda::units(),
        crate::router::cuda::units(),
        crate::sampling::cuda::units(),
        crate::selective_scan::cuda::units(),
        crate::squared_error::cuda::units(),
        crate::step_sizes::cuda::units(),
        crate::taylor_map::cuda::units(),
        crate::two_halves::cuda::units(),
        crate::cuda::elementwise::units(),
    ]
    .concat()
}
