//! y = x Wᵀ + b.

use elapid_kernels::linear as kernel;
use elapid_kernels::packed::{self, Packed};
use elapid_kernels::reuse::List;

use crate::autograd::{Var, record};
use crate::{Error, Result, Tensor};

/// y = x Wᵀ + b, with x `[.. k]`, W `[n k]`, b `[n]`, y `[.. n]`.
///
/// On the tape the product is the fastest one. Without it every element is summed, on the CPU, in an order that
/// depends on k alone, so that a sequence gives the same bits whole, in chunks, and one token at a time.
///
/// # Errors
/// If shapes do not fit.
pub fn linear(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let recorded = x.wants_grad() || weight.wants_grad();
    let y = product(x.value(), weight.value(), bias.map(Var::value), recorded)?;
    let inputs: List<&Var> = [x, weight].into_iter().chain(bias).collect();
    let kept = weight.wants_grad().then(|| x.saved());
    let (x, weight, bias) = (x.without_numbers(), weight.clone(), bias.map(Var::without_numbers));
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.accumulate(&x, |dx, adds| kernel::backward_input(dy.view(), weight.value().view(), dx, adds))?;
        if let Some(kept) = kept {
            let x = kept.recall()?;
            grads.add_by(&weight, |dw| kernel::backward_weight(dy.view(), x.value().view(), dw))?;
        }
        match &bias {
            Some(bias) => grads.add_by(bias, |db| kernel::backward_bias(dy.view(), db)),
            None => Ok(()),
        }
    });
    Ok(y)
}

/// [`linear`], whose y no operation keeps: the backward pass recomputes it, bit for bit. For a product of a few columns
/// that is cheap next to the memory of what it makes.
///
/// # Errors
/// If shapes do not fit.
pub fn linear_recomputed(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let y = linear(x, weight, bias)?;
    let recorded = x.wants_grad() || weight.wants_grad();
    let (x, weight, bias) = (x.saved(), weight.value().clone(), bias.map(|b| b.value().clone()));
    Ok(y.recomputed_by(move || product(x.recall()?.value(), &weight, bias.as_ref(), recorded)))
}

fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, recorded: bool) -> Result<Tensor> {
    if let Some(packed) = weight.packed() {
        return packed_product(x, packed, bias, recorded);
    }
    let shape = shape_of_y(x, weight.row_count());
    let mut y = Tensor::output(x.device(), x.dtype(), &shape)?;
    let bias = bias.map(Tensor::view_flat);
    match recorded {
        true => kernel::forward(x.view(), weight.view(), bias, y.view_mut())?,
        false => kernel::forward_invariant(x.view(), weight.view(), bias, y.view_mut())?,
    }
    Ok(y)
}

/// `[.. n]` of x `[.. k]`.
fn shape_of_y(x: &Tensor, n: usize) -> List<usize> {
    let mut shape: List<usize> = x.shape().iter().copied().collect();
    *shape.last_mut().unwrap_or(&mut 1) = n;
    shape
}

/// Refuses a packed weight where gradients are wanted.
pub(super) fn check_no_gradients(weight: &Packed, wanted: bool) -> Result<()> {
    let (form, fix) = (weight.form(), "load the model as f32 to train it");
    if wanted { Err(Error::Argument(format!("a weight stored as {form} has no gradients; {fix}"))) } else { Ok(()) }
}

fn packed_product(x: &Tensor, weight: &Packed, bias: Option<&Tensor>, recorded: bool) -> Result<Tensor> {
    check_no_gradients(weight, recorded)?;
    let shape = shape_of_y(x, weight.shape().0);
    Tensor::filled(&shape, |y| Ok::<_, Error>(packed::forward(x.rows(), weight, bias.map(Tensor::as_slice), y)?))
}
