//! y = x Wᵀ + b.

use elapid_kernels::linear as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// y = x Wᵀ + b, with x `[.. k]`, W `[n k]`, b `[n]`, y `[.. n]`.
///
/// Under a tape this uses the fastest product. Without one, on the CPU, every element is summed in an order that depends on
/// k alone, so a sequence gives the same bits whole, in chunks, and one token at a time.
///
/// # Errors
/// If shapes do not fit.
pub fn linear(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let recorded = x.wants_grad() || weight.wants_grad();
    let y = product(x.value(), weight.value(), bias.map(Var::value), recorded)?;
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    let kept = weight.wants_grad().then(|| x.saved());
    let (x, weight, bias) = (x.without_numbers(), weight.clone(), bias.map(Var::without_numbers));
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let Some(gpu) = dy.gpu() else {
            if x.wants_grad() {
                grads.accumulate(&x, |dx, adds| kernel::backward_input(dy.rows(), weight.value().rows(), dx, adds))?;
            }
            if let Some(kept) = kept {
                let x = kept.recall()?;
                grads.write_rows([Want::Add(&weight)], |[dw]| {
                    kernel::backward_weight(dy.rows(), x.value().rows(), dw)
                })?;
            }
            if let Some(bias) = &bias {
                grads.write_rows([Want::Add(bias)], |[db]| kernel::backward_bias(dy.rows(), db.into_slice()))?;
            }
            return Ok(());
        };
        if x.wants_grad() {
            grads.accumulate_cuda(&x, |dx, adds| {
                kernel::cuda::backward_input(&gpu, dy.mat(), weight.value().mat(), dx, adds)
            })?;
        }
        if let Some(kept) = kept {
            let x = kept.recall()?;
            grads.write_cuda([Want::Add(&weight)], |[dw]| {
                dw.map_or(Ok(()), |dw| kernel::cuda::backward_weight(&gpu, dy.mat(), x.value().mat(), dw))
            })?;
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.wants_grad()) {
            grads.write_cuda([Want::Add(bias)], |[db]| {
                db.map_or(Ok(()), |db| kernel::cuda::backward_bias(&gpu, dy.mat(), db))
            })?;
        }
        Ok(())
    });
    Ok(y)
}

/// [`linear`], whose y no operation stores: the backward pass recomputes it, bit for bit. For a product with a small inner
/// dimension that is cheap compared with storing its output.
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
    let mut shape = x.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 1) = weight.row_count();
    let Some(gpu) = x.gpu() else {
        let product = if recorded { kernel::forward } else { kernel::forward_invariant };
        return Tensor::filled(&shape, |y| product(x.rows(), weight.rows(), bias.map(Tensor::as_slice), y));
    };
    let mut y = Tensor::uninit(gpu, x.dtype(), &shape)?;
    kernel::cuda::forward(&gpu, x.mat(), weight.mat(), bias.map(Tensor::flat), y.mat_mut())?;
    Ok(y)
}
