//! y = x Wᵀ + b.

use elapid_kernels::linear as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// y = x Wᵀ + b, with x `[.. k]`, W `[n k]`, b `[n]`, y `[.. n]`.
///
/// On the tape the product is the fastest one. Without it every element is summed in an order that depends on k alone,
/// so that a sequence gives the same bits whole, in chunks, and one token at a time.
///
/// # Errors
/// If shapes do not fit.
pub fn linear(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let n = weight.value().row_count();
    let mut shape = x.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 1) = n;
    let recorded = x.wants_grad() || weight.wants_grad();
    let y = Tensor::filled(&shape, |y| {
        let bias = bias.map(|b| b.value().as_slice());
        let product = if recorded { kernel::forward } else { kernel::forward_invariant };
        product(x.value().rows(), weight.value().rows(), bias, y)
    })?;
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y) else { return Ok(()) };
        if x.wants_grad() {
            grads.write([Want::Set(&x)], |[dx]| kernel::backward_input(dy.rows(), weight.value().rows(), dx))?;
        }
        if weight.wants_grad() {
            grads.write([Want::Add(&weight)], |[dw]| kernel::backward_weight(dy.rows(), x.value().rows(), dw))?;
        }
        if let Some(bias) = &bias {
            grads.write([Want::Add(bias)], |[db]| kernel::backward_bias(dy.rows(), db.into_slice()))?;
        }
        Ok(())
    });
    Ok(y)
}
